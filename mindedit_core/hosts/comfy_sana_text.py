"""The text encoder of a published SANA (Gemma-2, arXiv 2410.10629, section 2.3) in the place of a CLIP.

`CLIP Text Encode` and whatever else asks a CLIP for tokens gets its last states of the text alone: what diffusers pads
to 300 tokens and masks is left out, which changes no attention. The published instruction before the text is not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ..backbones.hf_weights import load_tokenizer_of, stored_dtype
from ..model_files import load_published
from .comfy_dtype import AUTO, precision
from .comfy_managed import Box, manage, to_intermediate

MAX_TOKENS = 300
OPTIONS = "return_dict"


class SanaText:
    """encoder: a Gemma2Model, in the dtype in which it is kept;  tokenizer: its own;  compute: of what flows through"""

    def __init__(self, encoder: Any, tokenizer: Any, compute: torch.dtype) -> None:
        self.tokenizer = tokenizer
        box = Box(compute, encoder=encoder)
        self.patcher = manage(box, mm.text_encoder_device(), mm.text_encoder_offload_device())

    def get_ram_usage(self) -> int:
        return self.patcher.model_size()

    def clone(self) -> SanaText:
        return self

    def tokenize(self, text: str, **_: Any) -> list[int]:
        """Ids of the text as the published pipeline makes them, cut at 300."""
        return self.tokenizer(text.lower().strip(), truncation=True, max_length=MAX_TOKENS).input_ids

    @torch.inference_mode()
    def encode_from_tokens(self, tokens: list[int], return_pooled: Any = False, return_dict: bool = False) -> Any:
        """States float[1, L, D]; with them no pooled embedding, in whichever form the host asks for."""
        mm.load_models_gpu([self.patcher])
        ids = torch.tensor([tokens], device=self.patcher.load_device)
        states: Tensor = to_intermediate(self.patcher.model.encoder(ids, use_cache=False).last_hidden_state)
        if return_dict:
            return {"cond": states, "pooled_output": None}
        return (states, None) if return_pooled else states

    def encode_from_tokens_scheduled(self, tokens: list[int], **_: Any) -> list:
        """CONDITIONING."""
        return [[self.encode_from_tokens(tokens), {"pooled_output": None}]]


def load_text(folder: Path, dtype: str = AUTO) -> SanaText:
    """Of a diffusers folder of SANA: its `text_encoder` and `tokenizer`."""
    chosen = precision(dtype, stored_dtype(folder / "text_encoder"), mm.text_encoder_device())
    encoder = load_published("Gemma2Model", folder / "text_encoder", chosen.kept)
    return SanaText(encoder, load_tokenizer_of(folder / "tokenizer"), chosen.compute)
