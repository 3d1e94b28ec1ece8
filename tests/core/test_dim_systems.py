"""Draw-In-Mind as a system: dim-mini's layout, the published layouts in tiny, and the whole path through `edit`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindedit_core import edit, load_system
from mindedit_core.backbones.qwen2_5_vl import Answer, Qwen25VL
from mindedit_core.blueprint import SECTIONS, format_blueprint
from mindedit_core.checkpoint import CheckpointError
from mindedit_core.contracts import MLLM, Bridge, Designer, Misfit, Painter, PaintSettings, require_fit
from mindedit_core.designers.typed import Typed
from mindedit_core.designers.verbatim import Verbatim
from mindedit_core.dim.published import EMBEDDED_MLLM
from mindedit_core.pipeline import join_conditions
from mindedit_core.systems.tiny import LATENT_CHANNELS
from mindedit_core.systems.tiny_dim import NULL_TOKENS, TOKEN_DIM, save_tiny_dim, tiny_dim_parts

from .published_sana import PublishedSana

WISH = "make the cat blue"
SETTINGS = PaintSettings(steps=3, guidance_scale=3.0, seed=1)
SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def tiny_dim(tmp_path_factory):
    return save_tiny_dim(tmp_path_factory.mktemp("dim"))


@pytest.fixture(scope="module")
def system(tiny_dim):
    return load_system(tiny_dim)


@pytest.fixture(scope="module")
def image():
    return torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def published(tmp_path):
    """A folder with a system.json, a published painter, a Qwen2.5-VL folder and an autoencoder folder."""
    torch.manual_seed(0)
    parts = tiny_dim_parts()
    sana = PublishedSana(2 * LATENT_CHANNELS, LATENT_CHANNELS, 224, 2, TOKEN_DIM, 2, NULL_TOKENS)
    tensors = {f"decoder.model.{key}": tensor.clone() for key, tensor in sana.state_dict().items()}
    tensors |= {f"projector.{key}": tensor.clone() for key, tensor in parts["projector"].state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    parts["mllm"].save_pretrained(tmp_path / "qwen")
    parts["tokenizer"].save_pretrained(tmp_path / "qwen")
    parts["autoencoder"].save_pretrained(tmp_path / "dc-ae")
    said = {"system": "dim", "mllm": "qwen", "painter": "model.safetensors", "vae": "dc-ae", "settings": {"steps": 2}}
    (tmp_path / "system.json").write_text(json.dumps(said))
    return tmp_path


def changed(folder, **entries):
    path = folder / "system.json"
    said = {key: value for key, value in (json.loads(path.read_text()) | entries).items() if value is not None}
    path.write_text(json.dumps(said))
    return folder


# dim-mini's layout ---------------------------------------------------------------------------------------------------


def test_parts_follow_their_protocols_and_fit(system):
    parts = (system.mllm, system.designer, system.bridge, system.painter)
    for part, protocol in zip(parts, (MLLM, Designer, Bridge, Painter), strict=True):
        assert isinstance(part, protocol)
    require_fit(system.mllm, system.bridge, system.painter)
    assert system.name == "dim-mini" and system.provenance["dim.safetensors"]["recipe"] == "tiny, random"


def test_an_edit_reads_the_picture_once_and_is_the_same_every_time(system, image, monkeypatch):
    reads = []
    read = system.mllm.read
    monkeypatch.setattr(system.mllm, "read", lambda *args, **kwargs: reads.append(1) or read(*args, **kwargs))
    first = edit(system, image[:1], WISH, SETTINGS, design=SHORT)
    assert len(reads) == 1 and first.image.shape == (1, 128, 128, 3)
    assert torch.equal(first.image, edit(system, image[:1], WISH, SETTINGS, design=SHORT).image)


def test_pictures_of_a_batch_are_edited_as_if_alone(system, image):
    """Their turns are of unequal length, so the shorter one is padded and masked."""
    plain = replace(system, designer=Verbatim())
    wishes = [WISH, "remove the tree at the bottom left, then add a big red cat to the right of it"]
    both = edit(plain, image, wishes, SETTINGS)
    alone = edit(plain, image[:1], wishes[0], SETTINGS)
    torch.testing.assert_close(both.image[:1], alone.image, atol=2e-4, rtol=0)
    conditions = [plain.bridge(insight) for insight in both.insights]
    joined = join_conditions(conditions)
    assert joined.text_tokens.shape[:2] == joined.text_mask.shape == (2, max(c.text_mask.shape[1] for c in conditions))
    assert joined.text_mask.sum(1).tolist() == [condition.text_mask.shape[1] for condition in conditions]


def test_what_the_painter_is_told_depends_on_the_designer(system, image):
    typed = edit(replace(system, designer=Typed("5. Edited Image Imagination: a blue cat")), image[:1], WISH, SETTINGS)
    plain = edit(replace(system, designer=Verbatim()), image[:1], WISH, SETTINGS)
    assert (typed.image - plain.image).abs().mean() > 1e-4


def test_a_missing_file_is_named(tiny_dim, tmp_path):
    for file in tiny_dim.iterdir():
        if file.name != "mllm.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks mllm\.safetensors"):
        load_system(tmp_path)


def test_parts_of_two_papers_do_not_fit(system, tiny_folder):
    mini = load_system(tiny_folder)
    with pytest.raises(Misfit, match=r"span|states of the MLLM"):
        require_fit(mini.mllm, system.bridge, system.painter)
    with pytest.raises(Misfit, match="image_tokens"):
        require_fit(mini.mllm, mini.bridge, system.painter)


# Published layouts ---------------------------------------------------------------------------------------------------


def test_published_files_are_a_system(published, image):
    system = load_system(published)
    assert system.name == "dim" and system.settings.steps == 2 and system.settings.guidance_scale == 7.5
    assert edit(system, image[:1], WISH, design=SHORT).image.shape == (1, 128, 128, 3)


def test_a_converted_painter_gives_the_same_picture(published, image):
    from mindedit_core.systems.dim_convert import convert_dim

    first = edit(load_system(published), image[:1], WISH, design=SHORT)
    convert_dim(published / "model.safetensors", published / "dim.safetensors")
    (published / "model.safetensors").unlink()
    second = edit(load_system(changed(published, painter="dim.safetensors")), image[:1], WISH, design=SHORT)
    assert torch.equal(first.image, second.image)


def test_the_mllm_inside_a_published_file_is_the_folders(published, image):
    """The keys are those of transformers 4.51, and the folder keeps config and tokenizer alone."""
    first = edit(load_system(published), image[:1], WISH, design=SHORT)
    weights = load_file(published / "qwen" / "model.safetensors")
    old = {key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor.clone()
           for key, tensor in weights.items()}
    tensors = load_file(published / "model.safetensors") | {EMBEDDED_MLLM + key: tensor for key, tensor in old.items()}
    save_file(tensors, published / "model.safetensors")
    (published / "qwen" / "model.safetensors").unlink()
    second = edit(load_system(published), image[:1], WISH, design=SHORT)
    assert torch.equal(first.image, second.image)
    del tensors[EMBEDDED_MLLM + next(iter(old))]
    save_file(tensors, published / "model.safetensors")
    with pytest.raises(CheckpointError, match="lacks 1 of the model's weights"):
        load_system(published)


def test_a_wish_is_designed_once_across_loads(published, image, monkeypatch):
    form, asked = format_blueprint(dict.fromkeys(SECTIONS, "a blue cat")), []
    monkeypatch.setattr(Qwen25VL, "write", lambda *_, **__: asked.append(1) or Answer(form))
    first = edit(load_system(published), image[:1], WISH)
    again = edit(load_system(published), image[:1], WISH)
    assert len(asked) == 1 and torch.equal(first.image, again.image) and again.plan.text == form


def test_the_published_settings_are_the_default_and_the_published_pair_can_be_had(published, image):
    system = load_system(changed(published, settings=None))
    assert (system.settings.steps, system.settings.guidance_scale, system.settings.seed) == (30, 7.5, 233)
    assert system.designer.designer.shares and system.painter.schedule.shift == 3.0
    own = load_system(changed(published, share_prefix=False, flow_shift=2.0, settings={"framing": "crop"}))
    assert not own.designer.designer.shares and own.painter.schedule.shift == 2.0 and own.settings.framing == "crop"


def test_a_painter_that_sees_no_picture_is_refused(published):
    tensors = load_file(published / "model.safetensors")
    key = "decoder.model.x_embedder.proj.weight"
    save_file(tensors | {key: tensors[key][:, :LATENT_CHANNELS].clone()}, published / "model.safetensors")
    with pytest.raises(Misfit, match="paints from text alone.* dim_text_to_image"):
        load_system(published)


def test_half_precision_is_not_computed_on_a_cpu(published):
    tensors = {key: tensor.half() for key, tensor in load_file(published / "model.safetensors").items()}
    save_file(tensors, published / "model.safetensors")
    assert load_system(published).painter.transformer.dtype == torch.float32


@pytest.mark.parametrize("make", ["tiny_folder", "tiny_dim"])
def test_a_system_is_moved_whole(make, request):
    system = load_system(request.getfixturevalue(make)).to("meta")
    known = [system.bridge, *vars(system.mllm).values(), *vars(system.painter).values()]
    models = [model for model in known if isinstance(model, torch.nn.Module)]
    assert len(models) > 3 and {tensor.device.type for model in models for tensor in model.parameters()} == {"meta"}


@pytest.mark.parametrize("designer", ["verbatim", "self"])
def test_designers_are_chosen_by_name(published, image, designer):
    system = load_system(changed(published, designer=designer))
    plan = system.designer.design(image[:1], WISH, **SHORT)
    assert plan.designer == {"self": "blueprint"}.get(designer, designer)


def test_an_endpoint_is_described_by_its_address(published):
    system = load_system(changed(published, designer={"base_url": "http://127.0.0.1:9/v1", "model": "any"}))
    assert "127.0.0.1" in system.designer.identity


@pytest.mark.parametrize(("entries", "said"), [({"painter": None}, "lacks painter"), ({"unet": "x"}, "unknown entries"),
                                               ({"system": "sdxl"}, "unknown system 'sdxl'; have dim")])  # fmt: skip
def test_a_wrong_description_is_explained(published, entries, said):
    with pytest.raises(ValueError, match=said):
        load_system(changed(published, **entries))
