"""LLaVA-OneVision's key layouts: of the published files, of transformers 4.52 and later, and of transformers 5."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

LAYOUTS = (  # of published files, then of transformers 4.52 and later
    (r"^(model\.)?language_model\.lm_head\.", "lm_head."),
    (r"^(model\.)?language_model\.(model\.)?", "model.language_model."),
    (r"^(model\.)?(vision_tower\.|multi_modal_projector\.|image_newline$)", r"model.\2"),
)


def modern(key: str) -> str:
    """A key of any layout as transformers has it in memory since 4.52.

    >>> modern("language_model.model.layers.0.mlp.up_proj.weight")
    'model.language_model.layers.0.mlp.up_proj.weight'
    >>> modern("language_model.lm_head.weight"), modern("image_newline")
    ('lm_head.weight', 'model.image_newline')
    """
    for old, new in LAYOUTS:
        key, count = re.subn(old, new, key)
        if count:
            return key
    return key


def own_keys(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Any published or saved layout of keys in that of this version of transformers."""
    return rename_keys({modern(key): tensor for key, tensor in tensors.items()}, model)


def rename_keys(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Keys as this version of transformers has them: version 5 dropped `.vision_model` from the SigLIP tower's path."""
    own = model.state_dict().keys()
    renamed = {}
    for key, tensor in tensors.items():
        shorter = key.replace("vision_tower.vision_model.", "vision_tower.", 1)
        longer = shorter.replace("vision_tower.", "vision_tower.vision_model.", 1)
        renamed[next((name for name in (key, shorter, longer) if name in own), key)] = tensor
    return renamed
