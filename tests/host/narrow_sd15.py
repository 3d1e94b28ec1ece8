"""The host's own UNetModel in SD1.5's layout, narrow and of random weights, and base IP-Adapters for it.

Its 16 cross-attentions stand where SD1.5's do: that is where packs that know SD1.5 by heart put their patches.
"""

from __future__ import annotations

import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch
from torch import Tensor
from unet_config import sd15_unet

from mindedit_core.contracts import Insight

WIDTH, EMBED, TOKENS = 24, 20, 4  # of text, insight; unequal, so that a mix-up cannot pass
CHANNELS, LEVELS = 32, (1, 2, 2, 2)
CROSS_ATTENTIONS = [1] * 2 + [2] * 2 + [2] * 2 + [2] * 6 + [1] * 3 + [2]  # widths, in the order of an adapter's file
MIDDLE = 2 * len(CROSS_ATTENTIONS) - 1  # the number of the middle block's projections in that file


def narrow_model():
    """A MODEL; weights keep the variance of what goes through them, norms are the identity."""
    config = comfy.supported_models.SD15(sd15_unet(CHANNELS, LEVELS, WIDTH))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim == 1:
            parameter.data = torch.zeros_like(parameter) if name.endswith("bias") else torch.ones_like(parameter)
        else:
            scale = parameter[0].numel() ** -0.5
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def random_adapter(seed: int = 1, silent: tuple[int, ...] = ()) -> dict[str, dict[str, Tensor]]:
    """An IPADAPTER as loaders pass it around. silent: numbers of projections that add nothing (their V is zero)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return shape[-1] ** -0.5 * torch.randn(shape, generator=generator)

    proj = {"proj.weight": normal(TOKENS * WIDTH, EMBED), "proj.bias": 0.1 * torch.ones(TOKENS * WIDTH)}
    norm = {"norm.weight": 1 + 0.1 * normal(WIDTH), "norm.bias": 0.1 * normal(WIDTH)}
    layers = {}
    for number, level in enumerate(CROSS_ATTENTIONS):
        for side in "kv":
            weight = 3.0 * normal(CHANNELS * level, WIDTH)
            is_silent = side == "v" and 2 * number + 1 in silent
            layers[f"{2 * number + 1}.to_{side}_ip.weight"] = torch.zeros_like(weight) if is_silent else weight
    return {"image_proj": {**proj, **norm}, "ip_adapter": layers}


def random_insight(batch: int = 1, seed: int = 2) -> Insight:
    embeds = torch.randn(batch, EMBED, generator=torch.Generator().manual_seed(seed))
    return Insight(None, None, image_embeds=embeds)


def sample(model, *, steps: int = 2, cfg: float = 3.0, batch: int = 1, side: int = 8) -> Tensor:
    """float[B, 4, side, side] by the host's own sampler, the same noise and texts every time."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(batch, 4, side, side, generator=generator)
    positive, negative = ([[text, {}]] for text in torch.randn(2, 1, 7, WIDTH, generator=generator))
    start, settings = torch.zeros_like(noise), (steps, cfg, "euler", "simple")
    return comfy.sample.sample(model, noise, *settings, positive, negative, start, disable_pbar=True, seed=5)
