"""Systems from names and folders: the mini's layout, and published layouts of full size in tiny."""

import json

import pytest
import torch

from mindedit_core import edit, load_system
from mindedit_core.checkpoint import CheckpointError, save_checkpoint
from mindedit_core.contracts import MLLM, Bridge, Designer, Painter, require_fit
from mindedit_core.systems import SYSTEMS
from mindedit_core.systems.tiny import save_tiny
from mindedit_core.systems.tiny import tiny_parts as build_tiny_parts


def test_a_systems_file_is_a_page(root):
    for place in SYSTEMS.values():
        path = root / "mindedit_core" / "systems" / f"{place.strip('.').partition(':')[0]}.py"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path


def test_an_unknown_system_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown system 'insightedit'; have dim, dim-mini, mind_edit, mini, or give the folder of one"
    ):
        load_system("insightedit")


# The mini's layout ---------------------------------------------------------------------------------------------------


def test_parts_of_a_mini_follow_their_protocols_and_fit(tiny_folder):
    system = load_system(tiny_folder)
    parts = (system.mllm, system.designer, system.bridge, system.painter)
    for part, protocol in zip(parts, (MLLM, Designer, Bridge, Painter), strict=True):
        assert isinstance(part, protocol)
    require_fit(system.mllm, system.bridge, system.painter)
    assert system.mllm.clip_space == system.bridge.clip_space == "tiny-clip"
    assert system.provenance["unet.safetensors"]["recipe"] == "tiny, random"


def test_nothing_in_a_mini_is_trainable_or_in_training(tiny_folder):
    system = load_system(tiny_folder)
    painter = system.painter
    models = (system.mllm.model, system.mllm.head, system.bridge, painter.unet, painter.unet_inpaint, painter.vae)
    for model in (*models, painter.text_encoder):
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_description_fits_the_text_encoder_of_the_painter(tiny_folder):
    system = load_system(tiny_folder)
    counted = system.designer.count_tokens("small red cat")
    assert counted == len(system.painter.tokenizer("small red cat").input_ids) == 5


def test_a_mini_that_lacks_files_names_them(tmp_path):
    with pytest.raises(CheckpointError, match="a mini needs 8 files, .* lacks mllm.safetensors, .*tokenizer.json"):
        load_system(tmp_path)


def test_tiny_parts_are_the_same_for_a_seed_and_leave_the_global_generator_alone(tiny_parts):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    again, other = build_tiny_parts(0), build_tiny_parts(1)
    assert torch.equal(torch.rand(2), expected)
    for name in ("mllm", "clip", "autoencoder", "unet", "unet_inpaint"):
        mine, same, another = (parts[name].state_dict() for parts in (tiny_parts, again, other))
        assert all(torch.equal(value, same[key]) for key, value in mine.items())
        assert any(not torch.equal(value, another[key]) for key, value in mine.items())
    assert tiny_parts["tokenizer"].get_vocab() == again["tokenizer"].get_vocab()


# Published layouts ---------------------------------------------------------------------------------------------------


def clip_tokenizer_files(folder):
    """The two files of CLIPTokenizer with letters only."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(tokens)


def sd_folder(folder, in_channels, seed):
    """A random Stable Diffusion in diffusers' layout, of the real classes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    words = clip_tokenizer_files(folder / "tokenizer")
    UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**blocks, block_out_channels=(8, 16), norm_num_groups=4).save_pretrained(folder / "vae")
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text = CLIPTextConfig(vocab_size=words, max_position_embeddings=77, **size, **ids)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")


@pytest.fixture(scope="module")
def full_size(tiny_parts, tmp_path_factory):
    """A folder with a system.json, everything in the layouts that are published, of the real classes, random."""
    from diffusers import UNet2DConditionModel

    from mindedit_core.bridges.ip_adapter import IPAdapter

    folder = tmp_path_factory.mktemp("full")
    with torch.random.fork_rng(devices=[]):
        sd_folder(folder / "sd", 4, seed=0)
        sd_folder(folder / "sd_inpaint", 9, seed=1)
        unet = UNet2DConditionModel.from_pretrained(folder / "sd" / "unet", local_files_only=True)
        adapter = IPAdapter.for_unet(unet, embed_dim=24)
    save_checkpoint(folder / "ip-adapter_sd15.safetensors", adapter.state_dict(), {})
    tiny_parts["mllm"].save_pretrained(folder / "llava")
    tiny_parts["tokenizer"].save_pretrained(folder / "llava")
    save_tiny(folder / "mini", parts=tiny_parts)
    (folder / "mini" / "mind_edit.safetensors").rename(folder / "mind_edit.safetensors")
    describe(folder)
    return folder


def describe(folder, **changes):
    said = {"mllm": "llava", "adapter": "mind_edit.safetensors", "sd": "sd", "sd_inpaint": "sd_inpaint"}
    said |= {
        "ip_adapter": "ip-adapter_sd15.safetensors",
        "clip_space": "tiny-clip",
        "settings": {"steps": 2},
        **changes,
    }
    (folder / "system.json").write_text(json.dumps(said))


def test_published_layouts_run_end_to_end(full_size, generator):
    describe(full_size)
    system = load_system(full_size)
    assert system.name == "mind_edit" and system.settings.steps == 2
    image = torch.rand(1, 50, 61, 3, generator=generator)
    mask = torch.zeros(1, 50, 61)
    mask[:, 10:30, 10:30] = 1
    whole, inside = (
        edit(system, image, "make it red", system.settings.but(mask=m), design={"max_new_tokens": 4})
        for m in (None, mask)
    )
    assert whole.image.shape == inside.image.shape == image.shape
    assert not torch.equal(whole.image, image) and torch.equal(inside.image[mask == 0], image[mask == 0])
    assert whole.insight.image_embeds.shape == (1, 24)


def test_without_an_adapter_the_insight_is_off_and_that_is_said(full_size, generator):
    describe(full_size, adapter=None)
    system = load_system(full_size)
    result = edit(system, torch.rand(1, 32, 32, 3, generator=generator), "make it red", design={"max_new_tokens": 4})
    assert result.insight.image_embeds is None
    assert any("no VisionHead is loaded, so the insight is off" in note for note in result.notes)


def test_without_an_ip_adapter_the_text_alone_leads_as_with_one_at_lambda_0(full_size, generator):
    image, painted = torch.rand(1, 32, 32, 3, generator=generator), []
    for changes in ({"settings": {"steps": 2, "insight_scale": 0}}, {"ip_adapter": None, "clip_space": None}):
        describe(full_size, **changes)
        system = load_system(full_size)
        painted.append(edit(system, image, "make it red", design={"max_new_tokens": 4}).image)
    assert system.painter.adapter is None and torch.equal(*painted)


def test_one_of_the_two_stable_diffusions_is_enough(full_size, generator):
    describe(full_size, sd=None)
    system = load_system(full_size)
    assert system.painter.unet is None and system.painter.unet_inpaint.config.in_channels == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mllm": None}, "lacks mllm; write it as"),
        ({"sd": None, "sd_inpaint": None}, "lacks sd or sd_inpaint"),
        ({"ip_adaptor": "x"}, "has unknown entries ip_adaptor"),
        ({"sd": "nowhere"}, "no UNet2DConditionModel in .*nowhere.unet: it lacks config.json; fetch"),
        ({"ip_adapter": "nowhere.safetensors"}, "no weights file at .*nowhere.safetensors; put it there"),
        ({"mllm": "sd"}, "sd holds no MLLM: needed is a LLaVA-OneVision folder"),
        ({"settings": {"stepz": 3}}, "unknown paint setting stepz; have steps"),
    ],
)
def test_a_wrong_description_says_what_to_mend(full_size, changes, message):
    describe(full_size, **changes)
    with pytest.raises(ValueError, match=message):
        load_system(full_size)


def test_a_broken_description_is_named(full_size):
    (full_size / "system.json").write_text("{")
    with pytest.raises(CheckpointError, match="system.json is not a JSON object .*; write it as"):
        load_system(full_size)


def test_the_name_alone_says_what_a_folder_needs():
    with pytest.raises(
        CheckpointError, match="loaded from a folder with a system.json, but no folder was given; write it as"
    ):
        load_system("mind_edit")


def test_a_folder_with_missing_weights_never_gets_random_ones(full_size, tmp_path):
    import shutil

    shutil.copytree(full_size / "sd" / "vae", tmp_path / "vae")
    from mindedit_core.checkpoint import load_tensors
    from mindedit_core.model_files import load_published

    tensors = load_tensors(tmp_path / "vae")
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_checkpoint(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", tensors, {})
    with pytest.raises(CheckpointError, match=f"lacks 1 weights of AutoencoderKL, first: {lost}"):
        load_published("AutoencoderKL", tmp_path / "vae")
