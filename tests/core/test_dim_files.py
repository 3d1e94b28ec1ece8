"""Draw-In-Mind's files: the published layout, ours, and from the one to the other; whatever does not fit is named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mindedit_core.checkpoint import CheckpointError, read_shapes
from mindedit_core.dim.files import DimParts
from mindedit_core.dim.keys import config_from, pieces
from mindedit_core.dim.published import SANA, embedded_vae
from mindedit_core.kinds import detect
from mindedit_core.painters.flow import FlowSchedule
from mindedit_core.painters.sana_files import load_dc_ae
from mindedit_core.systems.dim_convert import convert_dim, convert_sana
from mindedit_core.systems.dim_files import load_dim, save_dim
from mindedit_core.systems.tiny import LATENT_CHANNELS, tiny_autoencoder
from mindedit_core.systems.tiny_dim import NULL_TOKENS, TOKEN_DIM, tiny_dim_parts

from .published_sana import PublishedSana

WIDTH, CROSS_HEADS, HIDDEN = 224, 2, 48


@pytest.fixture(scope="module")
def sana():
    """Random weights of the published layout; the last layers are not zero, so that every one counts."""
    torch.manual_seed(0)
    return PublishedSana(2 * LATENT_CHANNELS, LATENT_CHANNELS, WIDTH, CROSS_HEADS, TOKEN_DIM, 2, NULL_TOKENS).eval()


@pytest.fixture(scope="module")
def tensors(sana):
    """A whole published file: MLLM, projector, SANA, autoencoder, and the text encoder that loaders drop."""
    torch.manual_seed(1)
    found = {f"decoder.model.{key}": tensor.clone() for key, tensor in sana.state_dict().items()}
    found["decoder.model.pos_embed"] = torch.zeros(1, 4, WIDTH)
    found |= {"projector.0.weight": torch.randn(TOKEN_DIM, HIDDEN), "projector.0.bias": torch.randn(TOKEN_DIM)}
    found |= {"projector.2.weight": torch.randn(TOKEN_DIM, TOKEN_DIM), "projector.2.bias": torch.randn(TOKEN_DIM)}
    found |= {f"decoder.vae.{key}": tensor.clone() for key, tensor in tiny_autoencoder().state_dict().items()}
    return found | {"mllm.lm_head.weight": torch.zeros(2, 2), "decoder.text_encoder.x.weight": torch.zeros(2)}


@pytest.fixture
def published(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def inputs(length: int = 11):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 2 * LATENT_CHANNELS, 6, 5, generator=generator)
    y = torch.randn(2, length, TOKEN_DIM, generator=generator)
    return x, y, torch.arange(length) < torch.tensor([[length], [7]]), torch.tensor([999, 93])


@torch.no_grad()
def velocity(parts: DimParts, x, y, mask, t):
    return parts.transformer(x, encoder_hidden_states=y, timestep=t, encoder_attention_mask=mask.float()).sample


# Loading -------------------------------------------------------------------------------------------------------------


def test_a_published_file_paints_what_its_own_code_would(sana, published):
    parts = load_dim(published)
    with torch.no_grad():
        theirs = sana(*inputs())
    torch.testing.assert_close(velocity(parts, *inputs()), theirs, atol=2e-5, rtol=1e-4)
    assert torch.equal(parts.null_tokens, sana.y_embedder.y_embedding)
    assert parts.projector.hidden_size == HIDDEN and parts.projector.max_tokens == NULL_TOKENS


def test_every_published_key_is_used_and_none_is_missing(sana, published):
    placed = pieces(sana.state_dict(), "test")
    used = {piece.source for piece in placed.values()}
    assert used == set(sana.state_dict()) - {"y_embedder.y_embedding"}
    assert set(placed) == set(load_dim(published).transformer.state_dict())


def test_the_published_sizes_give_the_published_configuration():
    """Shapes of DIM-4.6B-Edit, from its model card's architecture."""
    shapes = {"x_embedder.proj.weight": (2240, 64, 1, 1), "final_layer.linear.weight": (32, 2240)}
    shapes |= {"y_embedder.y_proj.fc1.weight": (2240, 2304), "blocks.0.mlp.point_conv.conv.weight": (2240, 5600, 1, 1)}
    shapes |= {"blocks.19.attn.qkv.weight": (6720, 2240), "blocks.0.attn.q_norm.weight": (2240,)}
    assert config_from(shapes, "DIM") == {
        "in_channels": 64,
        "out_channels": 32,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_layers": 20,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 2240,
        "caption_channels": 2304,
        "mlp_ratio": 2.5,
        "patch_size": 1,
        "sample_size": 32,
        "qk_norm": "rms_norm_across_heads",
    }


def test_ours_is_saved_and_loaded_bit_for_bit(tmp_path):
    found = tiny_dim_parts()
    parts = DimParts(found["projector"], found["transformer"], found["null_tokens"], FlowSchedule(2.0))
    loaded = load_dim(save_dim(tmp_path / "dim.safetensors", parts, recipe="test"))
    assert torch.equal(velocity(loaded, *inputs()), velocity(parts, *inputs()))
    assert torch.equal(loaded.null_tokens, parts.null_tokens) and loaded.schedule == parts.schedule
    states = torch.randn(1, 5, HIDDEN)
    assert torch.equal(loaded.projector(states), parts.projector(states))


def test_stored_weights_are_mapped_not_widened(tensors, tmp_path):
    half = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
    save_file(half, tmp_path / "half.safetensors")
    parts = load_dim(tmp_path / "half.safetensors", dtype=None)
    assert {parameter.dtype for parameter in parts.transformer.parameters()} == {torch.bfloat16}
    assert parts.null_tokens.dtype == torch.bfloat16


def test_the_autoencoder_inside_is_read(published):
    own = tiny_autoencoder()
    vae = load_dc_ae(embedded_vae(published), str(published), dict(own.config))
    assert set(vae.state_dict()) == set(own.state_dict()) and vae.config["scaling_factor"] == 0.5


# What does not fit ---------------------------------------------------------------------------------------------------

FREE = {"projector.0.weight": 1, f"{SANA}y_embedder.y_embedding": 0}  # axes of any size: the MLLM's width, most tokens
GONE_WITHOUT_HARM = ("pos_embed", "decoder.vae.", "decoder.text_encoder.", "mllm.")  # made anew, or another part's


def names(key: str) -> list[str]:
    """How an error may call a published key: as it is, or as diffusers does."""
    if key.startswith("projector."):
        return [key, key.removeprefix("projector.")]
    own = key.removeprefix(SANA)
    return [own, *({} if own == "y_embedder.y_embedding" else pieces([own], "test"))]


def parts_of_the_painter(tensors) -> list[str]:
    return [key for key in tensors if not any(word in key for word in GONE_WITHOUT_HARM)]


def refused(changed, tmp_path) -> str:
    save_file(changed, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_dim(tmp_path / "file.safetensors")
    return str(error.value)


def test_each_key_that_is_missing_is_named(tensors, tmp_path):
    for gone in parts_of_the_painter(tensors):
        said = refused({key: tensor for key, tensor in tensors.items() if key != gone}, tmp_path)
        assert any(name in said for name in names(gone)) and "lacks" in said, (gone, said)


def test_each_key_of_another_shape_is_named(tensors, tmp_path):
    for cut in parts_of_the_painter(tensors):
        tensor = tensors[cut]
        axis = max(set(range(tensor.ndim)) - {FREE.get(cut)}, key=lambda axis: tensor.shape[axis])
        less = tensor.narrow(axis, 0, tensor.shape[axis] // 2).clone()
        said = refused({**tensors, cut: less}, tmp_path)
        assert any(name in said for name in names(cut)), (cut, said)


@pytest.mark.parametrize(
    ("extra", "said"),
    [("decoder.model.blocks.0.strange.weight", "blocks.0.strange.weight"), ("adapter.x", "adapter.x"),
     ("projector.4.weight", "4.weight")],
)  # fmt: skip
def test_a_strange_key_is_named(tensors, tmp_path, extra, said):
    save_file({**tensors, extra: torch.zeros(3)}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load_dim(tmp_path / "file.safetensors")


def test_another_file_is_no_painter(tmp_path):
    save_file({"lm_head.weight": torch.zeros(2)}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match="no painter of Draw-In-Mind"):
        load_dim(tmp_path / "file.safetensors")


# Converting ----------------------------------------------------------------------------------------------------------


def test_a_converted_file_paints_the_same_bit_for_bit(published, tmp_path):
    out = tmp_path / "dim.safetensors"
    count = convert_dim(published, out)
    assert count == len(read_shapes(out))
    before, after = load_dim(published), load_dim(out)
    assert torch.equal(velocity(before, *inputs()), velocity(after, *inputs()))
    assert torch.equal(before.null_tokens, after.null_tokens)
    states = torch.randn(1, 5, HIDDEN)
    assert torch.equal(before.projector(states), after.projector(states))
    assert not any(key.startswith(("mllm.", "decoder.")) for key in read_shapes(out))


def test_a_damaged_file_is_not_converted(tensors, tmp_path):
    gone = f"{SANA}blocks.1.attn.proj.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != gone}, tmp_path / "in.safetensors")
    with pytest.raises(CheckpointError, match=r"transformer_blocks.1.attn1.to_out.0.weight"):
        convert_dim(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "in.safetensors"]


def test_what_was_written_wrongly_is_found(published, tmp_path, monkeypatch):
    from mindedit_core import streamed

    write = streamed._bytes
    broken = "transformer.proj_out.bias"
    monkeypatch.setattr(streamed, "_bytes", lambda key, t: bytes(t.size) if key == broken else write(key, t))
    (tmp_path / "out.safetensors").write_text("an older one")
    with pytest.raises(CheckpointError, match=broken):
        convert_dim(published, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_text() == "an older one"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "out.safetensors"]


def test_converting_never_holds_the_model(tensors, tmp_path):
    """Peak memory beyond the start is a few tensors' worth, not that of all that is wanted."""
    with torch.device("meta"):
        wide = PublishedSana(2 * LATENT_CHANNELS, LATENT_CHANNELS, 896, 8, TOKEN_DIM, 10, NULL_TOKENS)
    large = {key: tensor for key, tensor in tensors.items() if not key.startswith(SANA)}
    large |= {SANA + key: torch.zeros(tensor.shape) for key, tensor in wide.state_dict().items()}
    size, largest = (f(tensor.nbytes for tensor in large.values()) / 1024 for f in (sum, max))
    save_file({**large, "mllm.big": torch.zeros(48 << 20)}, tmp_path / "in.safetensors")  # 192 MB that are not wanted
    code = f"""
import resource, sys
from mindedit_core.systems.dim_convert import convert_dim, convert_sana
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_dim({str(tmp_path / "in.safetensors")!r}, {str(tmp_path / "out.safetensors")!r})
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) < size / 2 and size > 20 * largest, f"{said.stdout} kB more, of {size:.0f} kB"


def test_an_original_sana_is_converted_from_its_pickle(sana, tmp_path):
    """As NVlabs publishes it: a state dict inside a pickle; what comes out is diffusers' own class."""
    from mindedit_core.checkpoint import load_strict, load_tensors, read_metadata
    from mindedit_core.model_files import build_model

    torch.save({"state_dict": sana.state_dict()}, tmp_path / "sana.pth")
    count = convert_sana(tmp_path / "sana.pth", tmp_path / "sana.safetensors")
    assert count == len(read_shapes(tmp_path / "sana.safetensors"))
    model = build_model(read_metadata(tmp_path / "sana.safetensors"), "sana").eval()
    load_strict(model, load_tensors(tmp_path / "sana.safetensors"), "sana")
    x, y, mask, t = inputs()
    with torch.no_grad():
        ours = model(x, encoder_hidden_states=y, timestep=t, encoder_attention_mask=mask.float()).sample
        torch.testing.assert_close(ours, sana(x, y, mask, t), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dim", "sana"])
def test_the_command_line_converts(kind, sana, published, tmp_path, capsys):
    from mindedit_core.__main__ import main

    torch.save(sana.state_dict(), tmp_path / "sana.pth")
    source = {"dim": published, "sana": tmp_path / "sana.pth"}[kind]
    assert main(["convert", kind, str(source), str(tmp_path / "out.safetensors")]) == 0
    assert "tensors" in capsys.readouterr().out and detect(tmp_path / "out.safetensors") == kind
    assert main(["convert", kind, str(source), str(tmp_path / "out.bin")]) == 1


def test_the_download_is_never_overwritten_by_what_is_made_of_it(published, capsys):
    from mindedit_core.__main__ import main

    before = published.read_bytes()
    assert main(["convert", "dim", str(published), str(published)]) == 1
    assert "OUT must be another file than IN" in capsys.readouterr().err and published.read_bytes() == before
