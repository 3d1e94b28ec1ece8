"""The embedding that v_insight has to become: what a CLIP sees in the target picture, as an IP-Adapter takes it.

A folder as published with IP-Adapters (`models/image_encoder` of h94/IP-Adapter: config.json, model.safetensors), or
the mini's CLIP. Base adapters take the projected global embedding, un-normalised; plus and full-face adapters the
states of the last layer but one (arXiv 2308.06721 and its files).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from mindedit_core.backbones.hf_weights import fingerprint
from mindedit_core.checkpoint import read_shapes
from mindedit_core.model_files import load_model
from mindedit_core.scenes import Sample
from train.config import Training
from train.data import to_model

Sort = Literal["global", "states"]
MINI_SPACE = "mindedit-mini-clip"


class ClipTarget(nn.Module):
    """clip: a CLIPModel or CLIPVisionModelWithProjection, frozen;  space: its name;  sort: which of its outputs

    processor: transformers' image processor, None for the mini's CLIP, whose pictures are only brought to its size
    """

    def __init__(self, clip: nn.Module, space: str, sort: Sort = "global", processor=None):
        super().__init__()
        self.clip, self.space, self.sort, self.processor = clip.eval().requires_grad_(False), space, sort, processor

    @property
    def vision_config(self) -> Any:
        return getattr(self.clip.config, "vision_config", self.clip.config)

    @property
    def dim(self) -> int:
        return self.clip.visual_projection.out_features if self.sort == "global" else self.vision_config.hidden_size

    @property
    def tokens(self) -> int:
        """T: patches and the class token, 257 for ViT-H."""
        return 1 + (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def settings(self) -> str:
        """What an encoding depends on beside the picture."""
        return f"{fingerprint(self.clip)} {self.sort} {self.processor.to_dict() if self.processor else 'as it is'}"

    @torch.no_grad()
    def forward(self, images: np.ndarray) -> Tensor:
        """uint8[B, H, W, 3] -> float[B, Dc] (global) or float[B, T, Dh] (states), in the model's dtype."""
        return self.seen(self.pixels(images))

    @torch.no_grad()
    def seen(self, pixel_values: Tensor) -> Tensor:
        """The same of float[B, 3, T, T], as the model takes it."""
        pixel_values = pixel_values.to(self.clip.visual_projection.weight)
        out = self.clip.vision_model(pixel_values, output_hidden_states=self.sort == "states")
        if self.sort == "states":
            return out.hidden_states[-2]
        return self.clip.visual_projection(out.pooler_output)

    def zero_image(self) -> Tensor | None:
        """float[T, Dh], what plus and full-face adapters take for no picture: the states of pixel values of zero.

        None for the global embedding, for which it is zeros.
        """
        if self.sort == "global":
            return None
        config = self.vision_config
        return self.seen(torch.zeros(1, config.num_channels, config.image_size, config.image_size))[0]

    def pixels(self, images: np.ndarray) -> Tensor:
        if self.processor is None:
            return to_model(squared(images, self.vision_config.image_size))
        return self.processor(list(images), return_tensors="pt")["pixel_values"]


def squared(images: np.ndarray, side: int) -> np.ndarray:
    """uint8[B, H, W, 3] -> uint8[B, side, side, 3], bicubic where it is not of that size already."""
    if images.shape[1:3] == (side, side):
        return images
    shrunk = (Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images)
    return np.stack([np.asarray(image) for image in shrunk])


def target_pixels(batch: list[Sample]) -> Tensor:
    """Targets of the world as the mini's CLIP takes them: float[B, 3, 128, 128] in -1..1."""
    return to_model(np.stack([item.target_image for item in batch]))


@torch.no_grad()
def image_embeds(clip: nn.Module, targets: Tensor) -> Tensor:
    """Un-normalised CLIP embeddings of float[B, 3, 128, 128], as an IP-Adapter takes them: float[B, 256], fp32."""
    with torch.autocast(targets.device.type, enabled=False):
        return clip.visual_projection(clip.vision_model(targets).pooler_output)


def clip_target(name: str, config: Training, space: str | None, sort: Sort = "global") -> ClipTarget:
    """name: "mini" (that of the weights folder), or the folder of a CLIP vision model; space: named by the folder."""
    if name == "mini":
        return ClipTarget(load_model(config.weights / "clip.safetensors"), space or MINI_SPACE, sort)
    folder = Path(name)
    read_shapes(folder)  # every shard is there and whole
    clip = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return ClipTarget(clip, space or folder.name, sort, processor_of(folder, clip))


def processor_of(folder: Path, clip: nn.Module):
    """The folder's image processor, or CLIP's own for the model's size where the folder has none, as h94's has not."""
    processor_class = image_processor_class()
    if (folder / "preprocessor_config.json").is_file():
        return processor_class.from_pretrained(folder, local_files_only=True)
    side = clip.config.image_size
    return processor_class(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def image_processor_class() -> type:
    """The one that needs Pillow only; its name ends in Pil in transformers 5, and does not in 4."""
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor as Processor
    return Processor
