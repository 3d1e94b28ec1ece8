"""DC-AE (arXiv 2410.10733) as the host's own VAE: the autoencoder of SANA, 32 pixels a cell, and of the minis, 16.

The host has no class for it, so diffusers' is boxed; batching, cropping, tiling and memory are the host's.
B pictures, C latent channels
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import comfy.sd
import comfy.taesd.taesd
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..tensors import to_model
from .comfy_managed import Box, manage

LEAST = 800  # numbers alive for a pixel while a small one is encoded
ALIVE = 8  # widest feature maps alive at a time
TILE = 512  # pixels of a tile's side, and a quarter of it overlap: as the host tiles an autoencoder of 8 pixels a cell
HOST_CELL = 8  # pixels a cell that the host's Empty Latent Image counts


class AutoencoderBox(Box):
    """What the host asks of a VAE's model: unscaled latents from pixels in -1..1, and back."""

    def encode(self, pixels: Tensor) -> Tensor:
        return self.autoencoder.encode(pixels).latent

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        return self.autoencoder.decode(latents).sample


class DcAeVAE(comfy.sd.VAE):
    """autoencoder: diffusers' AutoencoderDC, in the dtype in which it is kept;  compute: of what flows through it"""

    def __init__(self, autoencoder: Any, compute: torch.dtype) -> None:
        # the host's constructor sets whatever its methods read (other hosts, other names); then its model is exchanged
        super().__init__(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())
        config = autoencoder.config
        self.first_stage_model = AutoencoderBox(compute, autoencoder=autoencoder)
        self.patcher = manage(self.first_stage_model, self.device, mm.vae_offload_device())
        self.downscale_ratio = self.upscale_ratio = 2 ** (len(config["encoder_block_out_channels"]) - 1)
        self.latent_channels, self.scaling_factor = config["latent_channels"], config["scaling_factor"]
        self.working_dtypes, self.vae_dtype, self.size = [compute], compute, None
        alive = max(LEAST, ALIVE * config["decoder_block_out_channels"][0])
        self.memory_used_encode = lambda shape, dtype: alive * shape[2] * shape[3] * mm.dtype_size(dtype)
        self.memory_used_decode = lambda shape, dtype: self.memory_used_encode(shape, dtype) * self.upscale_ratio**2

    def decode_tiled_(
        self, samples: Tensor, tile_x: int | None = None, tile_y: int | None = None, overlap: int | None = None
    ) -> Tensor:
        """The host's, which it falls back on when memory runs out; its own tile of 64 cells would be all of a picture.

        tile_x, tile_y, overlap: in cells;  None: TILE pixels and a quarter of them
        """
        tile = TILE // self.upscale_ratio
        overlap = tile // 4 if overlap is None else overlap
        return super().decode_tiled_(samples, tile_x or tile, tile_y or tile, overlap)

    @cached_property
    @torch.inference_mode()
    def rgb(self) -> Tensor:
        """float[C + 1, 3]: scaled latents (and 1) to colours in -1..1, a least-squares fit on pictures of the world."""
        pictures = _pictures()
        latents = self.scaling_factor * self.encode(pictures)
        colours = F.adaptive_avg_pool2d(to_model(pictures), latents.shape[2:])
        known = rearrange(latents.float(), "b c h w -> (b h w) c")
        known = torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
        return torch.linalg.lstsq(known, rearrange(colours, "b c h w -> (b h w) c")).solution.clone()

    @torch.inference_mode()
    def blank_latent(self) -> Tensor:
        """float[C]: the scaled latent of mid-grey."""
        grey = torch.full_like(_pictures(1), 0.5)
        return (self.scaling_factor * self.encode(grey))[0].mean(dim=(1, 2)).clone()


class DcAeLatents(comfy.latent_formats.LatentFormat):
    """Latents scaled to unit variance, and a linear map to colours for previews, made when one is first asked for."""

    def __init__(self, vae: DcAeVAE) -> None:
        self.vae, self.scale_factor, self.latent_channels = vae, vae.scaling_factor, vae.latent_channels
        self.spacial_downscale_ratio = vae.upscale_ratio  # newer hosts fit an Empty Latent Image to it; v0.10 does not

    latent_rgb_factors = property(lambda self: self.vae.rgb[:-1].tolist())
    latent_rgb_factors_bias = property(lambda self: self.vae.rgb[-1].tolist())


def empty_latent_size(pixels: int, factor: int) -> int:
    """What to type into Empty Latent Image for a side of so many pixels, at `factor` pixels a cell, on this host."""
    fits_by_itself = hasattr(comfy.latent_formats.LatentFormat, "spacial_downscale_ratio")
    return pixels if fits_by_itself else pixels * HOST_CELL // factor


def _pictures(count: int = 8) -> Tensor:
    """float[count, 128, 128, 3] in 0..1."""
    from ..scenes import sample

    return torch.stack([torch.from_numpy(sample(seed).source_image.copy()).float() / 255.0 for seed in range(count)])
