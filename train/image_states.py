"""What a head of states is trained towards: CLIP's penultimate states of a picture, as plus IP-Adapters read them.

IP-Adapter (arXiv 2308.06721, tutorial_train_plus.py and inference of plus): hidden_states[-2] of the CLIP vision model,
class token first, before the last layer and its norm. B batch, T states, Dh width of the vision model
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def image_states(clip: nn.Module, pixel_values: Tensor) -> Tensor:
    """float[B, 3, H, W], as the CLIP was trained to see -> float[B, T, Dh], fp32.

    clip: anything with a `vision_model`, such as CLIPModel and CLIPVisionModelWithProjection
    """
    with torch.autocast(pixel_values.device.type, enabled=False):
        return clip.vision_model(pixel_values, output_hidden_states=True).hidden_states[-2]


def zero_image_states(clip: nn.Module) -> Tensor:
    """float[T, Dh]: what stands for no picture, for `save_adapter(negative_image_embeds=...)`: pixel values of zero."""
    config, weight = clip.vision_model.config, next(clip.vision_model.parameters())
    nothing = weight.new_zeros(1, config.num_channels, config.image_size, config.image_size)
    return image_states(clip, nothing)[0]
