"""IP-Adapter (arXiv 2308.06721, files of h94/IP-Adapter): a CLIP embedding of a picture becomes N image tokens.

MIND-Edit (arXiv 2505.19149) feeds its predicted v_insight to a stock, frozen IP-Adapter in place of an encoded picture.

    image_proj    base: the global embedding; plus, full-face: the states hidden_states[-2] of the CLIP vision model
    ip_adapter    to_k_ip, to_v_ip of the k-th attention layer, k = 1, 3, 5, ... (`cross_attention_layers`)

The unconditional branch is, THROUGH image_proj: zeros for base, the states of a zero image for plus and full-face.
`state_dict()` is the published layout, key by key.
B batch, T states, N image tokens, Dc Dh widths of what is read
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_strict, load_tensors, read_metadata
from ..contracts import GLOBAL, STATES, Condition, Insight, Misfit
from ..kinds import shapes_of
from .attention_processor import ImageBranch, KeyValue, attached, cross_attention_layers
from .image_projections import FullFaceProjection, ImageProjection
from .ip_adapter_layouts import PARTS, Layout, files_reading, layer_numbers, layout_of, said_embedding
from .resampler import Resampler

log = logging.getLogger(__name__)

NO_NEGATIVE = (
    "nobody gave the CLIP states of a zero image for the unconditional branch: zeros are used, and guidance is a "
    "little off; train the VisionHead's file with `negative_image_embeds`"
)
KINDS_READING = {GLOBAL: "a base IP-Adapter", STATES: "a plus or full-face IP-Adapter"}
SHAPES = {GLOBAL: "the global embedding [B,", STATES: "the penultimate states [B, T,"}


def flat_keys(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The nested layout {"image_proj": {...}, "ip_adapter": {...}} as flat keys; flat tensors stay, the rest goes."""
    flat = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    for part in PARTS:
        if isinstance(tensors.get(part), Mapping):
            flat.update({f"{part}.{name}": tensor for name, tensor in tensors[part].items()})
    return flat


# The modules ---------------------------------------------------------------------------------------------------------


def image_projection(layout: Layout) -> nn.Module:
    """The module that makes image tokens, with random weights."""
    embed_dim, token_dim = layout.embed_dim, layout.token_dim
    if layout.kind == "plus":
        return Resampler(embed_dim, token_dim, layout.tokens, **layout.sizes)
    if layout.kind == "full-face":
        return FullFaceProjection(embed_dim, token_dim, **layout.sizes)
    return ImageProjection(embed_dim, token_dim, layout.tokens)


class LayerProjections(nn.Module):
    """to_k_ip and to_v_ip of one cross-attention layer, without bias."""

    def __init__(self, token_dim: int, layer_dim: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(token_dim, layer_dim, bias=False)
        self.to_v_ip = nn.Linear(token_dim, layer_dim, bias=False)

    def forward(self, image_tokens: Tensor) -> KeyValue:
        return self.to_k_ip(image_tokens), self.to_v_ip(image_tokens)


class IPAdapter(nn.Module):
    """Bridge from v_insight to a UNet's cross-attention.

        condition = adapter(insight)                                   # image_tokens, negative_image_tokens
        with adapter.attached(unet, image_tokens=tokens) as branch:    # K/V once, gradients flow to the adapter
            noise = unet(latents, timestep, text_tokens).sample

    layout: kind and every size;  clip_space: name of the space it reads, None if the file does not say
    """

    emits = frozenset({"image_tokens"})

    def __init__(self, layout: Layout, clip_space: str | None = None) -> None:
        super().__init__()
        self.layout, self.clip_space = layout, clip_space
        self.image_proj = image_projection(layout)
        numbers = layer_numbers(len(layout.layer_dims))
        dims = zip(numbers, layout.layer_dims, strict=True)
        self.ip_adapter = nn.ModuleDict({str(k): LayerProjections(layout.token_dim, dim) for k, dim in dims})

    embed_form = property(lambda self: self.layout.embed_form)
    embed_dim = property(lambda self: self.layout.embed_dim)
    token_dim = property(lambda self: self.layout.token_dim)
    tokens = property(lambda self: self.layout.tokens)
    layer_dims = property(lambda self: self.layout.layer_dims)

    @classmethod
    def from_state_dict(
        cls,
        tensors: Mapping[str, Any],
        clip_space: str | None = None,
        name: str = "ip_adapter",
        dtype: torch.dtype | None = torch.float32,
    ) -> IPAdapter:
        """From flat keys or the nested dict. dtype: None keeps the stored one, and shares memory with `tensors`.

        Raises CheckpointError for any other layout and for a missing, surplus or wrongly sized tensor.
        """
        tensors = flat_keys(tensors)
        with torch.device("meta"):  # the largest has 0.4 billion weights, which would be drawn at random first
            adapter = cls(layout_of(shapes_of(tensors), name), clip_space)
        if dtype is not None:
            tensors = {key: tensor.to(dtype, copy=True) for key, tensor in tensors.items()}
        return load_strict(adapter, tensors, name, assign=True)

    @classmethod
    def from_file(cls, path: str | Path, clip_space: str | None = None) -> IPAdapter:
        """From a .safetensors file; our own say their CLIP space in the metadata, `clip_space` names that of others."""
        said = read_metadata(path).get("config", {}).get("clip_space")
        said = said.get("name") if isinstance(said, Mapping) else said
        return cls.from_state_dict(load_tensors(path), said or clip_space, name=str(path))

    @classmethod
    def for_unet(
        cls,
        unet: nn.Module,
        embed_dim: int,
        tokens: int | None = 4,
        clip_space: str | None = None,
        kind: str = "base",
        **sizes: int,
    ) -> IPAdapter:
        """A new adapter, to be trained with `unet` frozen. kind, sizes: as in Layout.

        As in IP-Adapter's own recipe (tutorial_train.py) to_k_ip, to_v_ip start as copies of the UNet's to_k, to_v.
        """
        layers = list(cross_attention_layers(unet).values())
        dims = tuple(attn.inner_dim for attn in layers)
        layout = Layout(kind, embed_dim, unet.config["cross_attention_dim"], dims, tokens, sizes)
        adapter = cls(layout, clip_space)
        with torch.no_grad():
            for attn, projections in zip(layers, adapter.ip_adapter.values(), strict=True):
                projections.to_k_ip.weight.copy_(attn.to_k.weight)
                projections.to_v_ip.weight.copy_(attn.to_v.weight)
        return adapter

    @property
    def config(self) -> dict[str, Any]:
        """What a checkpoint's metadata says of it: plain JSON values."""
        return {**self.layout.as_config(), "clip_space": self.clip_space}

    def project(self, image_embeds: Tensor) -> Tensor:
        """float[B, Dc] or float[B, T, Dh] -> image tokens float[B, N, token_dim], in the adapter's dtype and device."""
        return self.image_proj(image_embeds.to(self._weight()))

    def _weight(self) -> Tensor:
        return self.ip_adapter["1"].to_k_ip.weight

    def keys_values(self, image_tokens: Tensor) -> list[KeyValue]:
        """K and V of every layer, each projection run once: float[B, N, layer_dim] pairs in file order."""
        image_tokens = image_tokens.to(self._weight())
        return [projections(image_tokens) for projections in self.ip_adapter.values()]

    def require_unet(self, unet: nn.Module) -> None:
        """Raise Misfit unless this adapter was made for UNets of this shape."""
        width = unet.config["cross_attention_dim"]
        dims = tuple(attn.inner_dim for attn in cross_attention_layers(unet).values())
        if (width, dims) != (self.token_dim, self.layer_dims):
            raise Misfit(
                f"this IP-Adapter has {_said(self.token_dim, self.layer_dims)}, the UNet {_said(width, dims)}; load an "
                "IP-Adapter made for this base model (SD1.5 and SDXL each have their own), or the UNet it was made for"
            )

    def attached(
        self, unet: nn.Module, image_tokens: Tensor, scale: float | Tensor = 1.0, gate: bool | Tensor | None = None
    ) -> AbstractContextManager[ImageBranch]:
        """Context manager in which `unet` also attends to `image_tokens`, float[B, N, token_dim] with the UNet's B.

        Under guidance the rows are [negative, positive], as in the batch. K/V are computed once, here, under autograd
        where that is on. See `attention_processor.attached` for scale, gate and gradient checkpointing.
        """
        self.require_unet(unet)
        return attached(unet, self.keys_values(image_tokens), scale, gate)

    def forward(self, insight: Insight) -> Condition:
        """v_insight -> image_tokens, its counterpart -> negative_image_tokens; an empty Condition without v_insight.

        Raises Misfit for an embedding of another form, width or CLIP space.
        """
        if insight.image_embeds is None:
            log.warning("no v_insight to bridge: the picture is edited by text alone. %s", insight.note)
            return Condition()
        self.require_insight(insight)
        return Condition(
            image_tokens=self.project(insight.image_embeds),
            negative_image_tokens=self.project(negative_embeds(insight)),
        )

    def require_insight(self, insight: Insight, source: str = "") -> None:
        """Raise Misfit, saying which adapter and which VisionHead would fit, unless this one reads such an embedding.

        source: where the adapter came from, for the message
        """
        shape, space = tuple(insight.image_embeds.shape), insight.clip_space
        strangers = None not in (space, self.clip_space) and space != self.clip_space
        if (insight.embed_form, shape[-1]) == (self.embed_form, self.embed_dim) and not strangers:
            return
        wanted = f"{SHAPES[self.embed_form]} {self.embed_dim}] in CLIP space {self.clip_space or 'unnamed'}"
        raise Misfit(
            f"this IP-Adapter ({source + ': ' if source else ''}{self.layout}) reads {wanted}, the insight is "
            f"{list(shape)} in {space or 'unnamed'}; use {self._alternative(insight)}, or an adapter file whose "
            f"VisionHead predicts {wanted}"
        )

    def _alternative(self, insight: Insight) -> str:
        """Which IP-Adapter would take this insight."""
        form, width = insight.embed_form or self.embed_form, insight.image_embeds.shape[-1]
        if (form, width) == (self.embed_form, self.embed_dim):
            return f"{KINDS_READING[form]} for the insight's CLIP space"
        files = files_reading(form, width, self.layout.base_model)
        return (
            f"{files} for this insight" if files else f"{KINDS_READING[form]} that reads {said_embedding(form, width)}"
        )


def negative_embeds(insight: Insight) -> Tensor:
    """What the unconditional branch projects, of the shape of `image_embeds`: what the insight says, else zeros."""
    embeds, negative = insight.image_embeds, insight.negative_image_embeds
    if negative is None:
        if insight.embed_form == STATES:
            log.warning(NO_NEGATIVE)
        return torch.zeros_like(embeds)
    if negative.shape[1:] != embeds.shape[1:] or negative.shape[0] not in (1, embeds.shape[0]):
        raise Misfit(
            f"insight.negative_image_embeds must be of the shape of image_embeds {list(embeds.shape)}, "
            f"got {list(negative.shape)}; use the adapter file as it was trained"
        )
    return negative.to(embeds).expand_as(embeds)


def _said(width: int, dims: Sequence[int]) -> str:
    widths = f"{min(dims, default=0)}..{max(dims, default=0)}"
    return f"{len(dims)} cross-attention layers ({widths} wide) for tokens of {width}"
