"""edit(): the four steps in order, on tiny parts, with the real classes throughout."""

import pytest
import torch

from mindedit_core import edit, load_system
from mindedit_core.contracts import Condition, Interrupted, Misfit, Plan, Region
from mindedit_core.pipeline import join_conditions, own_masks
from mindedit_core.systems import System


@pytest.fixture(scope="module")
def system(tiny_folder):
    return load_system(tiny_folder)


@pytest.fixture
def image(generator):
    return torch.rand(1, 128, 128, 3, generator=generator)


SHORT = {"max_new_tokens": 4}


def settings(system, **changes):
    return system.settings.but(steps=2, **changes)


def test_a_picture_comes_back_with_its_plan_and_insight(system, image):
    result = edit(system, image, "make it red", settings(system), design=SHORT)
    assert result.image.shape == image.shape and 0 <= result.image.min() and result.image.max() <= 1
    assert not torch.equal(result.image, image)
    assert result.plan.raw == "make it red" and result.plan is result.plans[0]
    assert result.insight.image_embeds.shape == (1, 24) and result.insight.clip_space == "tiny-clip"
    assert any("no line 'optimized instruction: ...'" in note for note in result.notes)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(system, image):
    first, second, other = (
        edit(system, image, "make it red", settings(system, seed=seed), design=SHORT).image for seed in (7, 7, 8)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_the_mllm_runs_once(system, image):
    prefills = []
    hook = system.mllm.model.model.vision_tower.register_forward_hook(lambda *_: prefills.append(1))
    try:
        edit(system, image, "make it red", settings(system), design=SHORT)
    finally:
        hook.remove()
    assert len(prefills) == 1


def test_insight_and_text_both_reach_the_painter(system, image):
    def painted(instruction="make it red", **changes):
        return edit(system, image, instruction, settings(system, **changes), design=SHORT).image

    assert not torch.equal(painted(), painted(insight_scale=0.0))
    assert not torch.equal(painted(insight_scale=0.0), painted("make it blue", insight_scale=0.0))


def test_outside_the_mask_the_source_stays_bit_for_bit(system, image):
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 32:96] = 1
    result = edit(system, image, "make it red", settings(system, mask=mask), design=SHORT).image
    assert torch.equal(result[mask == 0], image[mask == 0]) and not torch.equal(result[mask == 1], image[mask == 1])


def test_a_batch_has_a_plan_each_and_may_have_an_instruction_each(system, generator):
    images = torch.rand(2, 64, 96, 3, generator=generator)
    result = edit(system, images, ["make it red", "make it blue"], settings(system), design=SHORT)
    assert result.image.shape == images.shape
    assert [plan.raw for plan in result.plans] == ["make it red", "make it blue"]
    first = edit(system, images[:1], "make it red", settings(system), design=SHORT)
    assert torch.allclose(result.insights[0].image_embeds, first.insight.image_embeds)
    with pytest.raises(ValueError, match="one for each of the 2 pictures, got 3"):
        edit(system, images, ["a", "b", "c"], settings(system), design=SHORT)


@pytest.mark.parametrize("size", [(1, 1), (1, 130), (17, 33)])
def test_odd_sizes_come_back_in_their_own_size(system, generator, size):
    image = torch.rand(1, *size, 3, generator=generator)
    assert edit(system, image, "make it red", settings(system), design=SHORT).image.shape == image.shape


def test_alpha_is_taken(system, generator):
    image = torch.rand(1, 32, 32, 4, generator=generator)
    assert edit(system, image, "make it red", settings(system), design=SHORT).image.shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("instruction", "message"), [("  ", "the instruction is empty"), ("x" * 10_000, "10000 characte")]
)
def test_what_cannot_be_an_instruction_is_refused(system, image, instruction, message):
    with pytest.raises(ValueError, match=message):
        edit(system, image, instruction, settings(system), design=SHORT)


def test_callbacks_are_called_in_order_and_an_interrupt_leaves_a_working_system(system, image):
    told = []
    calls = {"on_plan": lambda plan: told.append("plan"), "on_step": lambda done, of: told.append((done, of))}
    edit(
        system,
        image,
        "make it red",
        settings(system),
        design={**SHORT, "on_token": lambda _: told.append("t")},
        **calls,
    )
    assert told[0] == "t" and told[told.index("plan") :] == ["plan", (1, 2), (2, 2)]
    for stop_at in ("plan", (1, 2)):
        told.clear()
        with pytest.raises(Interrupted):
            edit(
                system,
                image,
                "make it red",
                settings(system),
                design=SHORT,
                should_stop=lambda at=stop_at: at in told,
                **calls,
            )
    told.clear()
    with pytest.raises(Interrupted):
        edit(system, image, "make it red", settings(system), design=SHORT, should_stop=lambda: True, **calls)
    assert told == []
    assert torch.isfinite(edit(system, image, "make it red", settings(system), design=SHORT).image).all()


def test_a_misfit_is_found_before_anything_runs(system, image):
    class Bridge:
        emits = frozenset({"spatial"})

    class Asleep:
        def __getattr__(self, name):
            raise AssertionError(f"{name} was used")

    crooked = System("crooked", system.mllm, Asleep(), Bridge(), system.painter)
    with pytest.raises(Misfit, match="UNetPainter has no place for spatial from Bridge"):
        edit(crooked, image, "make it red")


def test_conditions_of_one_batch_are_joined_stream_by_stream():
    one, two = (
        Condition(image_tokens=torch.full((1, 4, 8), n), negative_image_tokens=torch.zeros(1, 4, 8)) for n in (1.0, 2.0)
    )
    joined = join_conditions([one, two])
    assert joined.streams == {"image_tokens"} and joined.text_tokens is None
    assert joined.image_tokens[:, 0, 0].tolist() == [1.0, 2.0] and joined.negative_image_tokens.shape == (2, 4, 8)


def test_conditions_that_cannot_be_one_batch_are_refused():
    with pytest.raises(ValueError, match=r"same streams, got \[\] and \['image_tokens'\]; edit them one by one"):
        join_conditions([Condition(), Condition(image_tokens=torch.zeros(1, 4, 8))])
    with pytest.raises(ValueError, match="image_tokens of one batch must be of one shape"):
        join_conditions([Condition(image_tokens=torch.zeros(1, n, 8)) for n in (4, 16)])


def test_any_parts_of_the_protocols_will_do(system, image):
    from mindedit_core.designers.verbatim import Verbatim

    plain = System("plain", system.mllm, Verbatim(), system.bridge, system.painter)
    result = edit(plain, image, "red cat", settings(system))
    assert isinstance(result.plan, Plan) and result.plan.text == "red cat" and result.insight.image_embeds is not None


# Its own mask --------------------------------------------------------------------------------------------------------


def test_own_masks_are_the_regions_of_each_plan_and_everything_where_none_is_named():
    left = Plan("raw", "text", regions=(Region("box", (0.0, 0.0, 400.0, 1000.0)),))
    masks = own_masks([left, Plan("raw", "text")], torch.rand(2, 20, 30, 3))
    assert masks.shape == (2, 20, 30) and masks[0, :, :12].all() and not masks[0, :, 14:].any() and masks[1].all()


def test_an_edit_with_its_own_mask_changes_nothing_outside_the_regions(system, image, monkeypatch):
    plan = Plan("make it red", "red", regions=(Region("box", (0.0, 0.0, 400.0, 1000.0)),))
    monkeypatch.setattr(system.designer, "design", lambda *_, **__: plan)
    result = edit(system, image, "make it red", settings(system), own_mask=True)
    changed = (result.image != image).any(-1)[0]
    assert changed[:, :40].any() and not changed[:, 60:].any()
    given = edit(system, image, "make it red", settings(system, mask=own_masks([plan], image)))
    assert torch.equal(result.image, given.image)


def test_without_settings_an_own_mask_takes_those_of_a_mask(system, image, monkeypatch):
    seen, paint = [], system.painter.paint

    def painted(image, plans, condition, chosen, **rest):
        seen.append(chosen)
        return paint(image, plans, condition, chosen, **rest)

    monkeypatch.setattr(system.painter, "paint", painted)
    monkeypatch.setattr(system.designer, "design", lambda *_, **__: Plan("raw", "red"))
    edit(system, image, "make it red", own_mask=True)
    assert seen[0].strength == system.settings.strength and seen[0].mask.all()
