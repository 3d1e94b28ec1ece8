"""Decoupled cross-attention inside a diffusers UNet: processors that add the image branch, put in and taken out again.

Keys and values of the image tokens do not depend on the step, so they come ready-made: computed once, freed on leaving.
The UNet gets no parameter and no buffer from this, and its own processors back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..attention import decoupled_attention, is_shut
from ..contracts import Misfit

KeyValue = tuple[Tensor, Tensor]  # float[B, N, H*d] each


@dataclass(eq=False)
class ImageBranch:
    """What all processors of one attachment share; `scale` (lambda) and `gate` may be set between two steps.

    keys_values: one pair a layer, in the order of `cross_attention_layers`
    scale, gate: as in `attention.add_image_branch`
    """

    keys_values: list[KeyValue]
    scale: float | Tensor = 1.0
    gate: bool | Tensor | None = None


class DecoupledProcessor:
    """Stands in for `original` in one cross-attention layer; while the image branch is shut, `original` itself runs."""

    def __init__(self, original: Any, branch: ImageBranch, index: int) -> None:
        self.original, self.branch, self.index = original, branch, index

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states: float[B, L, C];  encoder_hidden_states: float[B, S, Dt];  returns float[B, L, C]."""
        branch = self.branch
        if is_shut(branch.scale, branch.gate):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        image_key, image_value = branch.keys_values[self.index]
        if attention_mask is not None:
            attention_mask = _mask_of_heads(attn, attention_mask, encoder_hidden_states)
        attended = decoupled_attention(
            attn.to_q(hidden_states),
            key,
            value,
            image_key,
            image_value,
            branch.scale,
            attn.heads,
            branch.gate,
            attention_mask,
        )
        return attn.to_out[1](attn.to_out[0](attended))


def _mask_of_heads(attn: nn.Module, attention_mask: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    batch, length = encoder_hidden_states.shape[:2]
    return attn.prepare_attention_mask(attention_mask, length, batch).unflatten(0, (batch, attn.heads))


def cross_attention_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """Name -> Attention module of every text cross-attention, in the order of `unet.attn_processors`: down, up, mid.

    That is the order of the keys 1, 3, 5, ... of an IP-Adapter file (even numbers are self-attention). A resampler that
    diffusers put into the UNet (`encoder_hid_proj`) has attention too, which is none of these.
    """
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    others = ("encoder_hid_proj.",)
    return {n: unet.get_submodule(n) for n in names if not n.endswith(".attn1") and not n.startswith(others)}


@contextmanager
def attached(
    unet: nn.Module, keys_values: Sequence[KeyValue], scale: float | Tensor = 1.0, gate: bool | Tensor | None = None
) -> Iterator[ImageBranch]:
    """Within this block the UNet's cross-attention also reads the image keys and values; afterwards it is as it was.

    Yields the ImageBranch, whose `scale` and `gate` may be changed from step to step. With gradient checkpointing run
    `backward` inside the block too, since layers are computed again there.
    """
    layers = list(cross_attention_layers(unet).values())
    _require_plain(unet, layers)
    if len(layers) != len(keys_values):
        raise Misfit(
            f"the UNet has {len(layers)} cross-attention layers, got image keys and values for {len(keys_values)}"
        )
    branch = ImageBranch(list(keys_values), scale, gate)
    originals = [attn.processor for attn in layers]
    try:
        for index, attn in enumerate(layers):
            attn.set_processor(DecoupledProcessor(originals[index], branch, index))
        yield branch
    finally:
        for attn, original in zip(layers, originals, strict=True):
            attn.set_processor(original)
        branch.keys_values.clear()


def _require_plain(unet: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Only what SD's cross-attention does is done here; anything more would be lost silently."""
    if unet.config.get("encoder_hid_dim_type") == "ip_image_proj":
        raise Misfit("the UNet already carries diffusers' own IP-Adapter; call `unload_ip_adapter()` first")
    for attn in layers:
        extras = [
            name
            for name in ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k")
            if getattr(attn, name, None) is not None
        ]
        if (
            extras
            or attn.residual_connection
            or attn.rescale_output_factor != 1.0
            or attn.processor.__class__ is DecoupledProcessor
        ):
            what = ", ".join(extras) or "a residual, a rescaled output or an image branch"
            raise Misfit(
                f"a cross-attention layer of the UNet has {what}; the IP-Adapter needs plain SD cross-attention"
            )
