"""What a checkpoint is, told by its keys and shapes; no file is judged by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from .checkpoint import CheckpointError, read_shapes

Shapes = Mapping[str, tuple[int, ...]]


def _is_unet(shapes: Shapes) -> bool:
    return "conv_in.weight" in shapes and "conv_out.weight" in shapes and _any(shapes, "down_blocks.")


def _input_channels(shapes: Shapes) -> tuple[int, int]:
    return shapes["conv_in.weight"][1], shapes["conv_out.weight"][0]


def _any(shapes: Shapes, *prefixes: str) -> bool:
    return all(any(key.startswith(prefix) for key in shapes) for prefix in prefixes)


def _has(shapes: Shapes, *keys: str) -> bool:
    return all(key in shapes for key in keys)


def is_dc_ae(shapes: Shapes) -> bool:
    """Whether an autoencoder is a DC-AE in diffusers' keys: no block in its middle, and no distribution."""
    apart = any(key.startswith(("encoder.mid_block.", "quant_conv.")) for key in shapes)
    return _any(shapes, "encoder.down_blocks.", "decoder.up_blocks.", "encoder.conv_out.") and not apart


# The first match wins; each line is the smallest set of keys that no other kind has.
KINDS: dict[str, Callable[[Shapes], bool]] = {
    "mind_edit": lambda s: (
        _any(s, "vision_head.") or (_any(s, "lora.") and any(key.endswith(".lora_A.weight") for key in s))
    ),
    "peft_lora": lambda s: _any(s, "base_model.model.") and any(key.endswith(".lora_A.weight") for key in s),
    "dim_published": lambda s: _has(s, "projector.0.weight", "decoder.model.x_embedder.proj.weight"),
    "dim": lambda s: _has(s, "projector.0.weight", "transformer.patch_embed.proj.weight"),
    "sana_published": lambda s: _has(s, "x_embedder.proj.weight", "blocks.0.attn.qkv.weight"),
    "sana": lambda s: _has(s, "patch_embed.proj.weight", "transformer_blocks.0.ff.conv_inverted.weight"),
    "ip_adapter_faceid_plus": lambda s: _any(s, "image_proj.perceiver_resampler."),
    "ip_adapter_faceid": lambda s: any(key.startswith("ip_adapter.") and "_lora." in key for key in s),
    "ip_adapter_portrait": lambda s: (
        _has(s, "image_proj.proj.2.weight", "image_proj.norm.weight") and "image_proj.proj.3.weight" not in s
    ),
    "ip_adapter_full_face": lambda s: _has(s, "image_proj.proj.3.weight"),
    "ip_adapter_plus": lambda s: _has(s, "image_proj.latents"),
    "ip_adapter": lambda s: _has(s, "image_proj.proj.weight", "image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"),
    "sd_checkpoint": lambda s: _any(s, "model.diffusion_model."),
    "mllm": lambda s: (
        _any(s, "model.language_model.", "model.vision_tower.") or _any(s, "language_model.model.", "vision_tower.")
    ),
    "unet": lambda s: _is_unet(s) and _input_channels(s)[0] == _input_channels(s)[1],
    "unet_inpaint": lambda s: _is_unet(s) and _input_channels(s)[0] == 2 * _input_channels(s)[1] + 1,
    "unet_instruct": lambda s: _is_unet(s) and _input_channels(s)[0] == 2 * _input_channels(s)[1],
    "autoencoder": lambda s: (
        _has(s, "encoder.conv_in.weight", "decoder.conv_out.weight")
        or (_any(s, "encoder.", "decoder.conv_in.") and not _any(s, "down_blocks."))
    ),
    "clip": lambda s: _any(s, "text_model.", "vision_model."),
    "clip_text": lambda s: _any(s, "text_model."),
    "clip_vision": lambda s: _any(s, "vision_model."),
}


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Key -> shape of tensors in memory."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def kind_of(shapes: Shapes) -> str | None:
    """The first of KINDS that these keys and shapes match; None for a stranger."""
    return next((kind for kind, matches in KINDS.items() if matches(shapes)), None)


def detect(source: str | Path | Mapping[str, Tensor]) -> str:
    """What a checkpoint is, by its keys and shapes: one of KINDS. Raises CheckpointError for a stranger."""
    shapes = shapes_of(source) if isinstance(source, Mapping) else read_shapes(source)
    if (kind := kind_of(shapes)) is not None:
        return kind
    where = "these tensors are" if isinstance(source, Mapping) else f"{source} is"
    raise CheckpointError(
        f"{where} no kind of checkpoint known here: {_sample(shapes)}; known kinds: {', '.join(KINDS)}"
    )


def require_kind(source: str | Path | Mapping[str, Tensor], *kinds: str, where: str) -> str:
    """`detect(source)`, which must be one of `kinds`; `where` tells the reader where such a file belongs."""
    found = detect(source)
    if found not in kinds:
        what = "the given tensors" if isinstance(source, Mapping) else str(source)
        raise CheckpointError(
            f"{what}: found a checkpoint of kind {found!r}, needed {' or '.join(map(repr, kinds))}; {where}"
        )
    return found


def _sample(keys: Iterable[str], count: int = 3) -> str:
    keys = list(keys)
    return f"{len(keys)} keys, such as {', '.join(keys[:count])}" if keys else "no tensors at all"
