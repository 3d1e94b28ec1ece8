"""IP-Adapter, base variant (arXiv 2308.06721, files of h94/IP-Adapter): a CLIP image embedding becomes N image tokens.

MIND-Edit (arXiv 2505.19149) feeds its predicted v_insight to a stock, frozen IP-Adapter in place of an encoded picture.

    image_proj    tokens = LayerNorm(reshape(Linear(e), N, token_dim)); the unconditional branch: zeros THROUGH it
    ip_adapter    to_k_ip, to_v_ip of the k-th attention layer, k = 1, 3, 5, ... (`cross_attention_layers`)

`state_dict()` is the published layout, key by key. Axes: B batch, N image tokens, Dc CLIP width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..checkpoint import CheckpointError, detect, load_strict, load_tensors, read_metadata
from ..contracts import Condition, Insight, Misfit
from .attention_processor import ImageBranch, KeyValue, attached, cross_attention_layers

log = logging.getLogger(__name__)

BASE_FILES = "ip-adapter_sd15.safetensors or ip-adapter_sd15_light.safetensors of h94/IP-Adapter"
OTHER_LAYOUTS = {
    "ip_adapter_plus": "a 'plus' IP-Adapter (image_proj.latents: a resampler over 257 CLIP states)",
    "ip_adapter_full_face": "a 'full-face' IP-Adapter (image_proj.proj.3: an MLP over 257 CLIP states)",
    "ip_adapter_faceid": "a FaceID IP-Adapter (to_q_lora in its attention layers, reads face embeddings)",
}


# Reading the published layouts --------------------------------------------------------------------


def flat_keys(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The nested layout {"image_proj": {...}, "ip_adapter": {...}} as flat keys; flat keys stay."""
    flat: dict[str, Tensor] = {}
    for key, value in tensors.items():
        flat.update(
            {f"{key}.{name}": tensor for name, tensor in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    return flat


def require_base(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, naming what was found, unless these flat keys are a base IP-Adapter's."""
    kind = "ip_adapter_faceid" if any("_lora." in key for key in tensors) else _kind(tensors)
    if kind == "ip_adapter":
        return
    what = OTHER_LAYOUTS.get(kind) or f"{len(tensors)} keys, such as {', '.join(sorted(tensors)[:3]) or 'none'}"
    later = ", whose support comes later" if kind in OTHER_LAYOUTS else ""
    raise CheckpointError(
        "a base IP-Adapter (image_proj.proj, image_proj.norm, ip_adapter.1.to_k_ip, ...) is needed, "
        f"found {what}{later}; use {BASE_FILES}"
    )


def _kind(tensors: Mapping[str, Tensor]) -> str:
    try:
        return detect(tensors)
    except CheckpointError:
        return "unknown"


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of the base IP-Adapter in these flat keys. Raises CheckpointError for another layout."""
    require_base(tensors)
    rows, embed_dim = tensors["image_proj.proj.weight"].shape
    token_dim = tensors["image_proj.norm.weight"].shape[0]
    found = sorted(int(key.split(".")[1]) for key in tensors if key.endswith(".to_k_ip.weight"))
    if found != _layer_numbers(len(found)) or rows % token_dim:
        raise CheckpointError(
            f"an IP-Adapter has layers 1, 3, 5, ... and a projection of N x {token_dim} rows, "
            f"got layers {found[:4]}... and {rows} rows; fetch the file again ({BASE_FILES})"
        )
    layer_dims = [tensors[f"ip_adapter.{k}.to_k_ip.weight"].shape[0] for k in found]
    return {"embed_dim": embed_dim, "token_dim": token_dim, "layer_dims": layer_dims, "tokens": rows // token_dim}


def _layer_numbers(count: int) -> list[int]:
    return [2 * index + 1 for index in range(count)]


# The modules --------------------------------------------------------------------------------------


class ImageProjection(nn.Module):
    """float[B, Dc] -> float[B, N, token_dim]: one Linear, split into tokens, LayerNorm."""

    def __init__(self, embed_dim: int, token_dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(embed_dim, tokens * token_dim)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        return self.norm(rearrange(self.proj(image_embeds), "b (n d) -> b n d", n=self.tokens))


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

    embed_dim: width of the CLIP embedding it reads;  clip_space: name of that space, None if the file does not say
    token_dim: the UNet's cross_attention_dim;  layer_dims: widths of its cross-attention layers, in file order
    tokens: N
    """

    emits = frozenset({"image_tokens"})

    def __init__(
        self, embed_dim: int, token_dim: int, layer_dims: Sequence[int], tokens: int = 4, clip_space: str | None = None
    ) -> None:
        super().__init__()
        self.embed_dim, self.token_dim, self.tokens, self.clip_space = embed_dim, token_dim, tokens, clip_space
        self.layer_dims = tuple(layer_dims)
        self.image_proj = ImageProjection(embed_dim, token_dim, tokens)
        numbers = _layer_numbers(len(self.layer_dims))
        layers = {str(k): LayerProjections(token_dim, dim) for k, dim in zip(numbers, self.layer_dims, strict=True)}
        self.ip_adapter = nn.ModuleDict(layers)

    @classmethod
    def from_state_dict(
        cls, tensors: Mapping[str, Any], clip_space: str | None = None, name: str = "ip_adapter"
    ) -> IPAdapter:
        """From flat keys or the nested dict, in fp32. Raises CheckpointError for any layout but the base one."""
        tensors = flat_keys(tensors)
        return load_strict(cls(**sizes_of(tensors), clip_space=clip_space), tensors, name)

    @classmethod
    def from_file(cls, path: str | Path, clip_space: str | None = None) -> IPAdapter:
        """From a .safetensors file; our own say their CLIP space in the metadata, `clip_space` names that of others."""
        said = read_metadata(path).get("config", {}).get("clip_space")
        said = said.get("name") if isinstance(said, Mapping) else said
        return cls.from_state_dict(load_tensors(path), said or clip_space, name=str(path))

    @classmethod
    def for_unet(cls, unet: nn.Module, embed_dim: int, tokens: int = 4, clip_space: str | None = None) -> IPAdapter:
        """A new adapter, to be trained with `unet` frozen.

        As in IP-Adapter's own recipe (tutorial_train.py) to_k_ip, to_v_ip start as copies of the UNet's to_k, to_v.
        """
        layers = list(cross_attention_layers(unet).values())
        adapter = cls(
            embed_dim, unet.config["cross_attention_dim"], [attn.inner_dim for attn in layers], tokens, clip_space
        )
        with torch.no_grad():
            for attn, projections in zip(layers, adapter.ip_adapter.values(), strict=True):
                projections.to_k_ip.weight.copy_(attn.to_k.weight)
                projections.to_v_ip.weight.copy_(attn.to_v.weight)
        return adapter

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments, as stored in a checkpoint's metadata."""
        names = ("embed_dim", "token_dim", "tokens", "clip_space")
        return {**{name: getattr(self, name) for name in names}, "layer_dims": list(self.layer_dims)}

    def project(self, image_embeds: Tensor) -> Tensor:
        """float[B, Dc] -> image tokens float[B, N, token_dim], in the adapter's dtype and on its device."""
        return self.image_proj(image_embeds.to(self.image_proj.proj.weight))

    def keys_values(self, image_tokens: Tensor) -> list[KeyValue]:
        """K and V of every layer, each projection run once: float[B, N, layer_dim] pairs in file order."""
        image_tokens = image_tokens.to(self.image_proj.proj.weight)
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
        """v_insight float[B, Dc] -> image_tokens, zeros -> negative_image_tokens; an empty Condition without v_insight.

        Raises Misfit for an embedding of another CLIP space.
        """
        if insight.image_embeds is None:
            log.warning("no v_insight to bridge: the picture is edited by text alone. %s", insight.note)
            return Condition()
        self._require_space(insight)
        embeds = insight.image_embeds
        return Condition(
            image_tokens=self.project(embeds), negative_image_tokens=self.project(torch.zeros_like(embeds))
        )

    def _require_space(self, insight: Insight) -> None:
        shape, space = tuple(insight.image_embeds.shape), insight.clip_space
        strangers = None not in (space, self.clip_space) and space != self.clip_space
        if len(shape) != 2 or shape[1] != self.embed_dim or strangers:
            raise Misfit(
                f"insight.image_embeds must be [B, {self.embed_dim}] of CLIP space {self.clip_space or 'unnamed'} "
                f"for this IP-Adapter, got {list(shape)} of {space or 'an unnamed space'}; "
                "use the IP-Adapter or the VisionHead trained for the other's space"
            )


def _said(width: int, dims: Sequence[int]) -> str:
    widths = f"{min(dims, default=0)}..{max(dims, default=0)}"
    return f"{len(dims)} cross-attention layers ({widths} wide) for tokens of {width}"
