"""What is minimised, as pure functions of tensors.

Axes: B batch, D width of an embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor


def epsilon_loss(predicted: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the predicted noise (DDPM, arXiv 2006.11239, equation 14), times the sample's weight.

    predicted, noise: float[B, C, h, w];  weight: float[B] or None
    """
    error = reduce((predicted.float() - noise.float()) ** 2, "b c h w -> b", "mean")
    return error.mean() if weight is None else (weight * error).mean()


def flow_loss(predicted: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, noise - clean (arXiv 2410.10629, section 2.3); all float[B, C, h, w]."""
    return F.mse_loss(predicted.float(), noise.float() - clean.float())


def min_snr_weight(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) / SNR, float[B]: the Min-SNR weight of an epsilon loss (arXiv 2303.09556)."""
    signal = alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = signal / (1.0 - signal)
    return snr.clamp(max=gamma) / snr


def edm_weight(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float = 5.0, most: float = 50.0) -> Tensor:
    """(min(SNR, gamma) + 1) / SNR, float[B]: EDM's weight (arXiv 2206.00364, table 1) with Min-SNR's cap, for epsilon.

    A picture's content is settled at high noise, where the error of the noise is SNR times that of the picture: left
    unweighted, those steps hardly count, and the text that only they need is hardly learnt. most: a bound on 1 / SNR.
    """
    signal = alphas_cumprod.to(timesteps.device)[timesteps].float()
    return min_snr_weight(alphas_cumprod, timesteps, gamma) + ((1.0 - signal) / signal).clamp(max=most)


def insight_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """MIND-Edit's regression of v_insight to the target picture's CLIP embedding: direction and length.

    predicted, target: float[B, D]. The paper prints no formula; ours is (1 - cosine) plus the squared error relative to
    the target's own size, so that both terms are of order one in every CLIP space.
    """
    predicted, target = predicted.float(), target.float()
    direction = 1.0 - F.cosine_similarity(predicted, target, dim=-1)
    size = (target**2).mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return (direction + ((predicted - target) ** 2).mean(-1) / size).mean()


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float) -> Tensor:
    """CLIP's symmetric cross-entropy (arXiv 2103.00020, figure 3): row i of the one belongs to row i of the other.

    image_embeds, text_embeds: float[B, D], of any length;  logit_scale: the temperature's inverse, not its logarithm
    """
    images, texts = F.normalize(image_embeds.float(), dim=-1), F.normalize(text_embeds.float(), dim=-1)
    logits = logit_scale * images @ texts.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
