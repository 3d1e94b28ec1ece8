"""Two-scale guidance on the host's sampler (InstructPix2Pix, arXiv 2211.09800, equation 3; see painters/guidance.py).

The same as the host's nodes InstructPixToPixConditioning, DualCFGGuider (style "regular": cond1 with picture and text,
cond2 with the picture, negative with neither) and SamplerCustomAdvanced in a row.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers
import node_helpers
from torch import Tensor

CONCAT = "concat_latent_image"  # the host's name for what an instruct UNet sees on its further channels


def with_picture(conditioning: list, latents: Tensor) -> list:
    """`conditioning` whose branch sees `latents`, unscaled float[B, C, h, w]; the MODEL scales them if it has to."""
    return node_helpers.conditioning_set_values(conditioning, {CONCAT: latents})


def without_picture(conditioning: list) -> list:
    """`conditioning` whose branch sees zeros in the picture's place."""
    return [[tokens, {key: value for key, value in extras.items() if key != CONCAT}] for tokens, extras in conditioning]


class TwoScaleGuider(comfy.samplers.CFGGuider):
    """A GUIDER of three branches: neither, picture alone, picture and text; those that weigh nothing are not run."""

    def set_conds(self, full: list, picture: list, null: list) -> None:
        picture = node_helpers.conditioning_set_values(picture, {"prompt_type": "negative"})
        self.inner_set_conds({"positive": full, "middle": picture, "negative": null})

    def set_cfg(self, text: float, image: float) -> None:
        self.text, self.image = text, image

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None) -> Tensor:
        options = model_options or {}
        null, picture, full = (self.conds.get(side) for side in ("negative", "middle", "positive"))
        if not options.get("disable_cfg1_optimization", False) and math.isclose(self.image, 1.0):
            null = None
            picture = None if math.isclose(self.text, 1.0) else picture
        foreseen = comfy.samplers.calc_cond_batch(self.inner_model, [null, picture, full], x, timestep, options)
        by_picture = comfy.samplers.cfg_function(
            self.inner_model,
            foreseen[1],
            foreseen[0],
            self.image,
            x,
            timestep,
            model_options=options,
            cond=picture,
            uncond=null,
        )
        return by_picture + (foreseen[2] - foreseen[1]) * self.text
