"""Draw-In-Mind's designer on a real tiny Qwen2.5-VL: one reading of the picture serves blueprint and states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.backbones.qwen2_5_vl import Answer, Qwen25VL
from mindedit_core.blueprint import SECTIONS, blueprint_prompt, format_blueprint
from mindedit_core.blueprint_parser import parse_blueprint
from mindedit_core.contracts import Designer, Interrupted, Misfit, Plan
from mindedit_core.designers import designer
from mindedit_core.designers.blueprint import BlueprintDesigner
from mindedit_core.designers.typed import Typed
from mindedit_core.designers.verbatim import Verbatim
from mindedit_core.systems.tiny_dim import tiny_qwen, tiny_qwen_tokenizer

WISH = "make the cat blue"
FORM = format_blueprint({name: f"a blue cat, {number}." for number, name in enumerate(SECTIONS[:4])})


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_qwen_tokenizer()


def lively(tokenizer, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = tiny_qwen(tokenizer).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3.0)  # so that answers depend on what was read
    return model


@pytest.fixture(scope="module")
def mllm(tokenizer):
    return Qwen25VL(lively(tokenizer, 0), tokenizer, side=126)


@pytest.fixture(scope="module")
def other(tokenizer):
    return Qwen25VL(lively(tokenizer, 1), tokenizer, side=126)


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 100, 140, 3, generator=torch.Generator().manual_seed(1))


class Counted:
    """How often the language model and the vision tower run within."""

    def __init__(self, mllm):
        self.modules = {"text": mllm.model.model.language_model, "vision": mllm.model.model.visual}

    def __enter__(self):
        self.runs = dict.fromkeys(self.modules, 0)
        self.handles = [part.register_forward_pre_hook(self.hook(name)) for name, part in self.modules.items()]
        return self

    def hook(self, name):
        def count(*_):
            self.runs[name] += 1

        return count

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def parameters(*parts) -> list[nn.Parameter]:
    """All parameters reachable from these objects through their attributes, each once."""
    seen, found, waiting = set(), {}, list(parts)
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found |= {id(parameter): parameter for parameter in part.parameters()}
        elif hasattr(part, "__dict__"):
            waiting += vars(part).values()
    return list(found.values())


# One reading ---------------------------------------------------------------------------------------------------------


def test_states_of_the_shared_reading_are_those_of_separate_runs(mllm, image):
    plan = BlueprintDesigner(mllm, "mini").design(image, WISH, max_new_tokens=24)
    alone = mllm.turn(mllm.read(image), plan.text)
    assert plan.states.turn == plan.text and plan.states.hidden.shape[1] > 12
    torch.testing.assert_close(plan.states.hidden, alone.hidden, atol=1e-4, rtol=1e-4)
    assert torch.equal(mllm.encode(image, plan).hidden, plan.states.hidden)


def test_after_a_shared_design_encode_runs_nothing(mllm, image):
    with Counted(mllm) as design:
        plan = BlueprintDesigner(mllm, "mini").design(image, WISH, max_new_tokens=8)
    with Counted(mllm) as encode:
        mllm.encode(image, plan)
    assert encode.runs == {"text": 0, "vision": 0}
    assert design.runs["vision"] == 1 and design.runs["text"] >= 3  # read, write, turn


def test_without_sharing_the_picture_is_read_again_and_the_states_are_the_same(mllm, image):
    """A square of the painter's own size is the same in its own aspect; any other picture is not."""
    wide = BlueprintDesigner(mllm, "mini", share_prefix=False).design(image, WISH, max_new_tokens=16)
    assert wide.text != BlueprintDesigner(mllm, "mini").design(image, WISH, max_new_tokens=16).text
    image = torch.rand(1, 126, 126, 3, generator=torch.Generator().manual_seed(2))
    shared = BlueprintDesigner(mllm, "mini").design(image, WISH, max_new_tokens=16)
    apart = BlueprintDesigner(mllm, "mini", share_prefix=False).design(image, WISH, max_new_tokens=16)
    assert apart.states is None and (apart.text, apart.sections) == (shared.text, shared.sections)
    with Counted(mllm) as encode:
        insight = mllm.encode(image, apart)
    assert encode.runs == {"text": 2, "vision": 1}
    torch.testing.assert_close(insight.hidden, shared.states.hidden, atol=1e-4, rtol=1e-4)


def test_designer_and_encoder_hold_one_copy_of_the_weights(mllm):
    alone = sum(parameter.numel() for parameter in mllm.model.parameters())
    assert sum(parameter.numel() for parameter in parameters(BlueprintDesigner(mllm), mllm)) == alone > 50_000


def test_another_encoders_states_are_not_captured(mllm, other, image):
    plan = BlueprintDesigner(other, "mini", encoder=mllm).design(image, WISH, max_new_tokens=8)
    assert plan.states is None and len(parameters(other, mllm)) == 2 * len(parameters(mllm))
    alone = mllm.turn(mllm.read(image), plan.text)
    torch.testing.assert_close(mllm.encode(image, plan).hidden, alone.hidden)
    same = BlueprintDesigner(mllm, "mini", encoder=mllm).design(image, WISH, max_new_tokens=8)
    assert same.states is not None


def test_states_of_another_mllm_in_a_plan_are_not_used(mllm, other, image):
    plan = BlueprintDesigner(other, "mini").design(image, WISH, max_new_tokens=8)
    assert not torch.equal(mllm.encode(image, plan).hidden, plan.states.hidden)


# What it asks and what comes of it -----------------------------------------------------------------------------------


class Says:
    """A Qwen25VL whose answer is given: tiny random weights never write a blueprint."""

    def __init__(self, mllm, answer, whole=True):
        self.mllm, self.answer, self.asked = mllm, Answer(answer, whole=whole), None
        self.mllm_id, self.read, self.turn = mllm.mllm_id, mllm.read, mllm.turn

    def write(self, reading, text, **options):
        self.asked = (text, options)
        return self.answer


def test_the_plan_holds_the_blueprint_its_sections_and_its_states(mllm, image):
    says = Says(mllm, f"Sure!\n{FORM}")
    plan = BlueprintDesigner(says).design(image, " make the\n cat blue ", max_new_tokens=5)
    assert (plan.raw, plan.text, plan.designer) == (WISH, FORM, "blueprint")
    assert plan.sections == parse_blueprint(FORM, WISH).sections and len(plan.sections) == 4
    assert "5. Edited Image Imagination" in plan.note and plan.states.turn == FORM
    assert says.asked == (blueprint_prompt(WISH, "dim"), {"max_new_tokens": 5})
    assert isinstance(BlueprintDesigner(says), Designer)


def test_nonsense_is_used_as_it_is_and_said(mllm, image):
    plan = BlueprintDesigner(Says(mllm, "I see a cat."), "mini").design(image, WISH)
    assert plan.text == "I see a cat." == plan.states.turn and "used as it is" in plan.note and not plan.sections


def test_a_blueprint_that_was_cut_off_says_what_to_do(mllm, image):
    whole, cut = (BlueprintDesigner(Says(mllm, FORM, whole)).design(image, WISH) for whole in (True, False))
    assert "raise max_new_tokens" in cut.note and "max_new_tokens" not in whole.note and cut.text == whole.text


def test_no_answer_leaves_the_wish(mllm, image):
    plan = BlueprintDesigner(mllm, "mini").design(image, WISH, max_new_tokens=0)
    assert plan.text == WISH == plan.states.turn and "the designer's answer is empty" in plan.note


def test_the_words_come_while_they_are_written(mllm, image):
    seen = []
    BlueprintDesigner(mllm, "mini").design(image, WISH, max_new_tokens=6, on_token=lambda texts: seen.append(texts[0]))
    assert len(seen) > 1 and seen[-1].startswith(seen[0])


def test_the_same_seed_gives_the_same_plan(mllm, image):
    def drawn(seed):
        options = {"temperature": 2.0, "generator": torch.Generator().manual_seed(seed), "max_new_tokens": 16}
        return BlueprintDesigner(mllm, "mini").design(image, WISH, **options).text

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("looks", [0, 3, 20])
def test_a_stop_is_heard_and_the_next_design_is_that_of_a_fresh_one(mllm, image, looks):
    asked = []
    designing = BlueprintDesigner(mllm, "mini")
    before = designing.design(image, WISH, max_new_tokens=16)
    with pytest.raises(Interrupted):
        designing.design(image, WISH, max_new_tokens=16, should_stop=lambda: len(asked) >= looks or asked.append(1))
    assert len(asked) == looks
    after = designing.design(image, WISH, max_new_tokens=16)
    assert after.text == before.text and torch.equal(after.states.hidden, before.states.hidden)


def test_a_stop_is_heard_while_the_picture_is_read(mllm, image):
    with Counted(mllm) as counted, pytest.raises(Interrupted):
        BlueprintDesigner(mllm, "mini").design(image, WISH, should_stop=lambda: True)
    assert counted.runs["text"] == 1  # begun, and not a second time


def test_a_stop_after_the_last_word_is_heard_too(mllm, image):
    stop = []
    says = Says(mllm, FORM)
    says.write = lambda *_, **__: stop.append(1) or Answer(FORM)
    with pytest.raises(Interrupted, match="after the blueprint"):
        BlueprintDesigner(says).design(image, WISH, should_stop=lambda: bool(stop))


# What is refused -----------------------------------------------------------------------------------------------------


def test_an_mllm_that_cannot_is_refused_with_the_ones_that_can(tiny_parts):
    llava = LlavaOnevision(tiny_parts["mllm"], tiny_parts["tokenizer"])
    with pytest.raises(Misfit, match=r"LlavaOnevision cannot design blueprints.* 'qwen2_5_vl'.* 'endpoint'"):
        BlueprintDesigner(llava)


def test_an_unknown_prompt_is_said_before_anything_runs(mllm):
    with pytest.raises(ValueError, match="unknown blueprint prompt 'full'; have dim, mini"):
        BlueprintDesigner(mllm, "full")


@pytest.mark.parametrize(("wish", "remedy"), [("  ", "say what to change"), ("x" * 3000, "shorten it")])
def test_an_empty_or_overlong_wish_is_refused_before_the_picture_is_read(mllm, image, wish, remedy):
    with Counted(mllm) as counted, pytest.raises(ValueError, match=remedy):
        BlueprintDesigner(mllm).design(image, wish)
    assert counted.runs == {"text": 0, "vision": 0}


def test_one_plan_for_several_pictures_is_refused(mllm, image):
    with pytest.raises(ValueError, match="one picture, got 2"):
        BlueprintDesigner(mllm).design(image.expand(2, -1, -1, -1), WISH)


# Typed ---------------------------------------------------------------------------------------------------------------


def test_a_typed_blueprint_is_used_to_the_letter_and_its_sections_are_known(image):
    typed = f"  Sure!\n**1. Edit Instruction:** {WISH}\n\n5) edited image: a blue cat\n"
    plan = Typed(typed).design(image, " make the cat  blue", max_new_tokens=3)
    assert (plan.raw, plan.text, plan.designer, plan.note, plan.states) == (WISH, typed, "typed", "", None)
    assert plan.sections == {"Edit Instruction": WISH, "Edited Image Imagination": "a blue cat"}


def test_typed_text_of_another_form_has_no_sections(image):
    plan = Typed("a blue cat,\n  soft light").design(image, WISH)
    assert plan.text == "a blue cat,\n  soft light" and plan.sections is None


def test_typed_text_reaches_the_states_of_the_turn(mllm, image):
    plan = Typed(FORM).design(image, WISH)
    torch.testing.assert_close(mllm.encode(image, plan).hidden, mllm.turn(mllm.read(image), FORM).hidden)
    assert not torch.equal(mllm.encode(image, Verbatim().design(image, WISH)).hidden, mllm.encode(image, plan).hidden)


def test_nothing_typed_is_refused():
    with pytest.raises(ValueError, match="or choose another designer$"):  # a node and a system have different ones
        Typed(" \n")


@pytest.mark.parametrize(("name", "made"), [("blueprint", "BlueprintDesigner"), ("endpoint", "EndpointDesigner"),
                                            ("typed", "Typed")])
def test_the_new_designers_are_in_the_table(name, made):
    assert designer(name).__name__ == made


def test_a_plan_without_states_and_one_with_them_say_the_same(mllm, image):
    """What a cache or an endpoint gives back: only the text of a plan counts for `encode`."""
    plan = BlueprintDesigner(mllm, "mini").design(image, WISH, max_new_tokens=12)
    bare = Plan(plan.raw, plan.text)
    torch.testing.assert_close(mllm.encode(image, bare).hidden, mllm.encode(image, plan).hidden, atol=1e-4, rtol=1e-4)
