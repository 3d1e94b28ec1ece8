"""VisionHeads by what they predict; `vision_head` in an adapter's metadata says which, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..contracts import GLOBAL, STATES
from ..registry import lookup

HEADS = {GLOBAL: ".vision_head:VisionHead", STATES: ".states_head:StatesHead"}


def build_head(said: Mapping[str, Any]) -> nn.Module:
    """A head with random weights. said: of `describe_head`; files that do not say the form have a global one."""
    form = said.get("form", GLOBAL)
    sizes = {name: value for name, value in said.items() if name != "form"}
    return lookup(HEADS, form, __package__, "form of VisionHead")(**sizes)


def describe_head(head: nn.Module | None) -> dict[str, Any]:
    """Sizes, and the form where it is not global, as plain JSON values; {} without a head."""
    if head is None:
        return {}
    return dict(head.sizes) if head.embed_form == GLOBAL else {"form": head.embed_form, **head.sizes}
