"""Boxes: a foreign nn.Module made into one that ComfyUI's memory manager can load, offload and patch.

A transformers PreTrainedModel or a diffusers ModelMixin cannot be wrapped as it is (its `device` has no setter), so
it is put into a plain module, and its leaves become comfy.ops classes *in place*: the tensors, and what is tied, stay
the same objects. Such a leaf casts its weights to the device and dtype of what flows through it, so any part of a box
may stay in RAM (lowvram), stored in fp16, and still compute in fp32.

What is not a leaf is on a list: SMALL parameters that their owner casts where it uses them, and REWRITTEN modules
that look at a weight's dtype to cast their input, which in a box is the stored dtype and not the one to compute in.
"""

from __future__ import annotations

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
from comfy.float import stochastic_rounding
from einops import rearrange
from torch import Tensor, nn

ops = comfy.ops.manual_cast

# Parameters of modules that have children; each is cast with `.to(x)` where it is used.
SMALL = (
    "image_newline",  # LlavaOnevisionModel.pack_image_features
    "query",  # VisionHead
    "queries",  # StatesHead
    "latents",  # Resampler of a plus IP-Adapter
    "scale_shift_table",  # SANA, cast by comfy_sana
)


class _Cast:
    """Mixin of every swapped leaf: compute in the box's dtype, whatever dtype comes in."""

    compute_dtype = torch.float32

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        return super().forward(x.to(self.compute_dtype), *args, **kwargs)


class Linear(_Cast, ops.Linear):
    """The host merges a LoRA in a dtype of its choice, fp16 on a GPU; these two make it an fp32 sum and one cast."""

    def convert_weight(self, weight: Tensor, inplace: bool = False, **_) -> Tensor:
        """What the host adds to: the stored weight, where `weight`, the host's own cast of it, lies."""
        return self.weight.to(weight.device, torch.float32, copy=True)

    def set_weight(
        self, weight: Tensor, inplace_update: bool = False, seed: int | None = None, return_weight: bool = False, **_
    ) -> Tensor | None:
        """Put the sum in place, in the stored dtype; fp8 by chance, as the host does, or a small LoRA would be lost."""
        is_fp8 = self.weight.dtype.itemsize == 1
        weight = stochastic_rounding(weight, self.weight.dtype, seed or 0) if is_fp8 else weight.to(self.weight.dtype)
        if return_weight:
            return weight
        if inplace_update:
            self.weight.data.copy_(weight)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        return None


class Conv1d(_Cast, ops.Conv1d):
    pass


class Conv2d(_Cast, ops.Conv2d):
    pass


class Conv3d(_Cast, ops.Conv3d):
    pass


class ConvTranspose2d(_Cast, ops.ConvTranspose2d):
    pass


class LayerNorm(_Cast, ops.LayerNorm):
    pass


class GroupNorm(_Cast, ops.GroupNorm):
    pass


class Embedding(ops.Embedding):
    """Rows of the table in the compute dtype."""

    compute_dtype = torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids, out_dtype=self.compute_dtype)


class ScaledEmbedding(Embedding):
    """Gemma's: its rows times the square root of the model's width."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.scalar_embed_scale


class RMSNorm(nn.Module, comfy.ops.CastWeightBiasOp):
    """x / rms(x) * weight [+ bias] with the mean of squares in fp32, as Qwen2's and diffusers' RMSNorm compute it."""

    comfy_cast_weights = True
    compute_dtype = torch.float32
    offset = 0.0  # added to the weight: Gemma stores what differs from 1

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states.to(self.compute_dtype)
        inverse = torch.rsqrt(hidden_states.float().pow(2).mean(-1, keepdim=True) + self.eps)
        normed = (hidden_states.float() * inverse).to(self.compute_dtype)
        if self.weight is None:
            return normed
        weight, bias, stream = comfy.ops.cast_bias_weight(self, hidden_states, offloadable=True)
        normed = (weight + self.offset) * normed if bias is None else weight * normed + bias
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return normed


class SiglipVisionEmbeddings(nn.Module):
    """SigLIP's patches plus positions, without casting the pixels to the dtype the weights are stored in."""

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        if interpolate_pos_encoding:
            raise ValueError(
                "SigLIP in a box takes pictures of its own size; resize them, interpolate_pos_encoding must be False"
            )
        patches = rearrange(self.patch_embedding(pixel_values), "b d h w -> b (h w) d")
        return patches + self.position_embedding(self.position_ids.to(patches.device))


class QwenPatchEmbed(nn.Module):
    """Qwen2.5-VL's patches, without casting the pixels to the dtype the weights are stored in."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        cut = rearrange(
            pixel_values,
            "n (c t p q) -> n c t p q",
            t=self.temporal_patch_size,
            p=self.patch_size,
            q=self.patch_size,
        )
        return rearrange(self.proj(cut), "n d 1 1 1 -> n d")


LEAVES: dict[type, type] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.LayerNorm: LayerNorm,
    nn.GroupNorm: GroupNorm,
    nn.Embedding: Embedding,
}
# by name: transformers and diffusers have their own; 4.x and 5.x alike
RMS_NORMS = ("Qwen2RMSNorm", "Qwen2_5_VLRMSNorm", "RMSNorm", "Gemma2RMSNorm")
REWRITTEN = {
    "SiglipVisionEmbeddings": SiglipVisionEmbeddings,
    "Qwen2_5_VisionPatchEmbed": QwenPatchEmbed,
}


class Box(nn.Module):
    """A plain module around foreign ones, which ModelPatcher may give its attributes. Frozen, in eval mode.

    Each keyword names a child; its stored dtype is kept, it computes in `compute_dtype`.
    """

    def __init__(self, compute_dtype: torch.dtype = torch.float32, **parts: nn.Module) -> None:
        super().__init__()
        self.manual_cast_dtype = compute_dtype  # the host reads this name to know what a cast costs
        for name, part in parts.items():
            self.add_module(name, swap_leaves(part, compute_dtype).requires_grad_(False).eval())

    def get_dtype(self) -> torch.dtype:
        return self.manual_cast_dtype


def swap_leaves(module: nn.Module, compute_dtype: torch.dtype) -> nn.Module:
    """Change the class of every known leaf in place; tensors, ties and names stay. Returns the module."""
    for part in module.modules():
        if (leaf := _leaf_class(part)) is not None:
            if leaf is RMSNorm:
                part.eps = getattr(part, "variance_epsilon", None) or part.eps
                part.offset = float(type(part).__name__ == "Gemma2RMSNorm")
            if not hasattr(part, "bias"):
                part.bias = None  # comfy's casting asks every leaf for one
            part.__class__ = leaf
            part.compute_dtype = compute_dtype
        elif type(part).__name__ in REWRITTEN:
            part.__class__ = REWRITTEN[type(part).__name__]
    return module


def _leaf_class(module: nn.Module) -> type | None:
    if type(module).__name__ in RMS_NORMS and hasattr(module, "weight"):
        return RMSNorm
    if type(module).__name__ == "Gemma2TextScaledWordEmbedding":  # of transformers 5
        return ScaledEmbedding
    return LEAVES.get(type(module))


def unmanaged(module: nn.Module) -> list[str]:
    """Names of parameters that are neither in a casting leaf nor SMALL: none, or the box would break when offloaded."""
    named = [
        (f"{owner}.{name}", part, name)
        for owner, part in module.named_modules()
        for name, _ in part.named_parameters(recurse=False)
    ]
    return [path for path, part, name in named if name not in SMALL and not getattr(part, "comfy_cast_weights", False)]


def manage(box: nn.Module, load_device: torch.device, offload_device: torch.device):
    """The host's ModelPatcher (CoreModelPatcher where it exists) around a box, tied weights counted once."""
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher_class(box, load_device=load_device, offload_device=offload_device, size=module_bytes(box))


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, each tensor once."""
    tensors = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def stored_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Parameters in `dtype`, ties kept; buffers (rotary frequencies, position ids) as they are."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def stored_dtype(module: nn.Module) -> torch.dtype:
    """Of the largest parameter."""
    return max(module.parameters(), key=lambda parameter: parameter.numel()).dtype


def matrices_in(module: nn.Module, dtype: torch.dtype, apart: nn.Module | None = None) -> nn.Module:
    """Weights of Linear layers in `dtype`, one after the other; `apart` and all else as it is."""
    for part in module.modules():
        if isinstance(part, nn.Linear) and part is not apart:
            part.weight.data = part.weight.data.to(dtype)
    return module


def to_intermediate(x: Tensor | None) -> Tensor | None:
    """Where node outputs belong, so that no cached result holds device memory."""
    return None if x is None else x.to(mm.intermediate_device())
