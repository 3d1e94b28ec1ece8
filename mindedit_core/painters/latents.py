"""Pictures as latents and back: the autoencoder's two ways.

B pictures, H W their size, C latent channels, h w latent size
"""

from __future__ import annotations

from torch import Tensor, nn

from ..tensors import from_model, to_model


def pixels_per_latent(vae: nn.Module) -> int:
    """Pixels along one side of a latent cell: 8 for Stable Diffusion's AutoencoderKL, 16 for the mini's."""
    blocks = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]
    return 2 ** (len(blocks) - 1)


def encode_unscaled(vae: nn.Module, image: Tensor) -> Tensor:
    """Picture float[B, H, W, 3] -> latents float[B, C, h, w], fp32; of a distribution its mode, as the host."""
    encoded = vae.encode(to_model(image.float()).to(device=vae.device, dtype=vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    return latents.float()


def encode(vae: nn.Module, image: Tensor) -> Tensor:
    """Picture float[B, H, W, 3] -> scaled latents float[B, C, h, w], of about unit variance, fp32."""
    return encode_unscaled(vae, image) * vae.config["scaling_factor"]


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Scaled latents float[B, C, h, w] -> picture float[B, H, W, 3] in 0..1, fp32."""
    unscaled = latents / vae.config["scaling_factor"]
    return from_model(vae.decode(unscaled.to(device=vae.device, dtype=vae.dtype)).sample.float())
