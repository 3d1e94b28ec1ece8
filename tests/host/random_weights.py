"""Random weights that behave: what the scripts write that the host's Python runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

generator = torch.Generator().manual_seed(0)


def random_like(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Norms are the identity, biases zero, everything else keeps the variance of what goes through it."""
    if not tensor.is_floating_point():
        return tensor
    if tensor.ndim == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(tensor.shape, dtype=torch.float16)
    return (torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5).half()


def base_adapter(
    widths: Sequence[int], embed: int, width: int = 768, tokens: int = 4, gain: float = 1.0, silent: int | None = None
) -> dict[str, torch.Tensor]:
    """Keys as in h94/IP-Adapter: odd numbers over the cross-attentions, down, up, middle.

    widths: of those layers;  embed: of the insight;  silent: the layer that adds nothing (its V is zero)
    """
    tensors = {
        "image_proj.proj.weight": random_like("weight", torch.empty(tokens * width, embed)),
        "image_proj.proj.bias": torch.zeros(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    for layer, inner in enumerate(widths):
        for side in "kv":
            factor = 0.0 if side == "v" and layer == silent else gain
            weight = random_like("weight", torch.empty(inner, width))
            tensors[f"ip_adapter.{2 * layer + 1}.to_{side}_ip.weight"] = factor * weight
    return tensors
