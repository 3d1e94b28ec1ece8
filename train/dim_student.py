"""What learns in Draw-In-Mind: the MLP, SANA and the null tokens, by flow matching (arXiv 2410.10629, section 2.3)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from mindedit_core.bridges.mlp import MLPProjector
from mindedit_core.dim.files import DimParts
from mindedit_core.losses import flow_loss
from mindedit_core.model_files import load_published
from mindedit_core.painters.flow import FlowSchedule, noised
from train.dim_attention import quick_cross_attention
from train.loop import Losses

CHANNELS, NULL_TOKENS = 16, 320  # of the mini
HEADS, HEAD_DIM, LAYERS = 7, 32, 6
WIDTH = HEADS * HEAD_DIM
PUBLISHED_NULL_TOKENS = 8192


def mini_parts(hidden_size: int) -> DimParts:
    """A text-to-image painter for the mini's latents, random. It is told positions: 8 x 8 cells have few edges."""
    transformer = SanaTransformer2DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=HEADS, attention_head_dim=HEAD_DIM,
        num_layers=LAYERS, num_cross_attention_heads=HEADS, cross_attention_head_dim=HEAD_DIM,
        cross_attention_dim=WIDTH, caption_channels=WIDTH, sample_size=8, interpolation_scale=1,
        qk_norm="rms_norm_across_heads")
    return connected(transformer, hidden_size, NULL_TOKENS)


def connected(transformer: nn.Module, hidden_size: int, null_tokens: int = PUBLISHED_NULL_TOKENS) -> DimParts:
    """A SANA with a new projector and new null tokens, which start as noise of unit length, as published."""
    width = transformer.config.caption_channels
    null = nn.Parameter(torch.randn(null_tokens, width) / width**0.5)
    return DimParts(MLPProjector(hidden_size, width, null_tokens), transformer, null, FlowSchedule())


def from_sana(folder: Path, hidden_size: int) -> DimParts:
    """The start of text-to-image training: a published SANA1.5 (diffusers' folder, or its `transformer`)."""
    inner = folder / "transformer"
    return connected(load_published("SanaTransformer2DModel", inner if inner.is_dir() else folder), hidden_size)


def widened(transformer: SanaTransformer2DModel, zero_init: bool) -> SanaTransformer2DModel:
    """The same painter with the source's latents on further channels, noise first, as published.

    zero_init: blind to the source at first; else the layer's usual random weights
    """
    channels = transformer.config.in_channels
    wide = SanaTransformer2DModel.from_config(dict(transformer.config) | {"in_channels": 2 * channels})
    state, new = transformer.state_dict(), wide.patch_embed.proj.weight.detach()
    source = (torch.zeros_like(new) if zero_init else new)[:, channels:]
    known = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = torch.cat([known, source.to(known)], 1)
    wide.load_state_dict(state)
    return wide


class Student(nn.Module):
    """Projector, SANA and null tokens, and their loss.

    A batch has clean, source, noise float[B, C, h, w], states float[B, L, D] under mask bool[B, L], level float[B]
    (standard normal) and dropped bool[B], whose text is not heard.
    """

    def __init__(self, parts: DimParts):
        super().__init__()
        self.projector, self.transformer, self.null_tokens = parts.projector, parts.transformer, parts.null_tokens
        self.schedule = parts.schedule
        quick_cross_attention(self.transformer)

    @property
    def parts(self) -> DimParts:
        return DimParts(self.projector, self.transformer, self.null_tokens, self.schedule)

    @property
    def edits(self) -> bool:
        """Whether the painter sees a source."""
        return self.transformer.config.in_channels > self.transformer.config.out_channels

    def forward(self, batch: dict) -> Losses:
        sigma = self.schedule.shifted(torch.sigmoid(batch["level"]))
        sample = noised(batch["clean"], batch["noise"], sigma[:, None, None, None])
        velocity = self.transformer(
            torch.cat([sample, batch["source"]], 1) if self.edits else sample,
            encoder_hidden_states=self.tokens(batch), timestep=self.schedule.timestep(sigma),
            encoder_attention_mask=batch["mask"].float()).sample
        return {"flow": flow_loss(velocity, batch["clean"], batch["noise"])}

    def tokens(self, batch: dict) -> Tensor:
        """float[B, L, Dt]: projected states, or the null tokens, as many and under the same mask."""
        tokens = self.projector(batch["states"])
        null = self.null_tokens[:tokens.shape[1]].to(tokens)
        return torch.where(batch["dropped"][:, None, None], null, tokens)
