"""What an SDXL UNet is told beside the tokens (arXiv 2307.01952, sections 2.1-2.2), in ComfyUI's conventions.

    tokens    the penultimate states of CLIP-L and of bigG, without a final layer norm, side by side: 768 + 1280 = 2048
    pooled    bigG's projected embedding of the end token
    sizes     original height and width, crop top and left, target height and width, each through a sinusoid

As the host: the sizes are those of the painted picture, padded to whole latent cells, the crop is 0, and they are the
same for a negative text; an empty text is encoded like any other. diffusers' pipelines differ in one thing: they put
zeros in place of a negative text that is not given (`force_zeros_for_empty_prompt`), but not of "".

R rows, Dp width of the pooled embedding
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import Misfit
from .text import Say, Text, token_ids

log = logging.getLogger(__name__)

PENULTIMATE = -2  # of the hidden states
SIZES = 6  # numbers in `size_ids`
SDXL, SD15 = "text_time", None  # UNet2DConditionModel's addition_embed_type


def encode_text_sdxl(
    text_encoder: nn.Module,
    tokenizer: Any,
    text_encoder_2: nn.Module,
    tokenizer_2: Any,
    text: str,
    say: Say = log.warning,
) -> Text:
    """Text -> states float[1, 77, Dt] of both encoders side by side, pooled float[1, Dp] of the second.

    text_encoder: CLIPTextModel;  text_encoder_2: CLIPTextModelWithProjection
    """
    length = text_encoder.config.max_position_embeddings
    first_ids = token_ids(tokenizer, text, length, say)
    second_ids = token_ids(tokenizer_2, text, length, lambda _: None)  # the same words: said once
    first = text_encoder(first_ids.to(text_encoder.device), output_hidden_states=True)
    second = text_encoder_2(second_ids.to(text_encoder_2.device), output_hidden_states=True)
    states = [first.hidden_states[PENULTIMATE], second.hidden_states[PENULTIMATE].to(text_encoder.device)]
    return Text(torch.cat(states, dim=-1), second.text_embeds)


def size_ids(height: int, width: int, rows: int) -> Tensor:
    """float[R, 6] for a picture of this many pixels, uncropped."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(rows, -1)


def require_text_encoders(unet: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module | None) -> None:
    """Raise Misfit unless this UNet was made for these text encoders: SD1.5's one, or SDXL's two."""
    config, kind = unet.config, unet.config.get("addition_embed_type")
    if kind not in (SD15, SDXL):
        raise Misfit(f"a UNet of SD1.5 or SDXL is needed, this one also reads {kind!r}; use another")
    if (kind == SDXL) != (text_encoder_2 is not None):
        has, needs = ("one", "text_encoder and text_encoder_2") if kind == SDXL else ("two", "text_encoder alone")
        raise Misfit(f"the UNet reads {needs}, got {has}; take UNet and text encoders from one folder, SD1.5 or SDXL")
    encoders = [text_encoder] if text_encoder_2 is None else [text_encoder, text_encoder_2]
    width = sum(getattr(each.config, "text_config", each.config).hidden_size for each in encoders)
    if width != config["cross_attention_dim"]:
        raise Misfit(
            f"the UNet reads text tokens of {config['cross_attention_dim']}, the text encoders write {width}; "
            "take UNet and text encoders from one folder (SD1.5: 768, SDXL: 768 + 1280)"
        )
    if kind == SDXL:
        _require_sizes(config, text_encoder_2.config.projection_dim)


def _require_sizes(config: Any, pooled: int) -> None:
    reads = config["projection_class_embeddings_input_dim"] - pooled
    if reads != SIZES * config["addition_time_embed_dim"]:
        raise Misfit(
            f"an SDXL base UNet is told {SIZES} sizes of {config['addition_time_embed_dim']} numbers each beside the "
            f"pooled {pooled}, this one {reads} numbers; is it the refiner? Use the base model"
        )
