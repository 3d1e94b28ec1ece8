"""Qwen2.5-VL's key layouts: of published files and transformers 4.51, and of transformers 4.52 and later."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

LAYOUTS = (  # of transformers before 4.52, in which Draw-In-Mind's `mllm.*` is written too
    (r"^(model\.)?visual\.", "model.visual."),
    (r"^model\.(language_model\.)?(?=layers\.|embed_tokens\.|norm\.)", "model.language_model."),
)


def modern(key: str) -> str:
    """A key of any layout as transformers has it in memory since 4.52.

    >>> modern("visual.blocks.0.attn.qkv.weight"), modern("model.layers.0.mlp.up_proj.weight")
    ('model.visual.blocks.0.attn.qkv.weight', 'model.language_model.layers.0.mlp.up_proj.weight')
    >>> modern("lm_head.weight"), modern("model.language_model.norm.weight")
    ('lm_head.weight', 'model.language_model.norm.weight')
    """
    for old, new in LAYOUTS:
        key, count = re.subn(old, new, key)
        if count:
            return key
    return key


def own_keys(tensors: Mapping[str, Tensor], _model: nn.Module) -> dict[str, Tensor]:
    """Any published layout of keys in that of this version of transformers."""
    return {modern(key): tensor for key, tensor in tensors.items()}
