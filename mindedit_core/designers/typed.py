"""The user as designer: a blueprint, or any text, that the painter obeys to the letter."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..blueprint_parser import read_sections
from ..contracts import Plan
from ..prompts import check_instruction


class Typed:
    """text: used exactly as it is typed; if it is a blueprint, the plan has its sections too. ValueError for none."""

    def __init__(self, text: str):
        if not text.strip():
            raise ValueError("the typed text is empty; write what the painter is to obey, or choose another designer")
        self.text = text

    def design(self, image: Tensor, instruction: str, **options: Any) -> Plan:
        """image and options are not looked at. Raises ValueError for an empty or an overlong instruction."""
        return Plan(check_instruction(instruction), self.text, "typed", sections=read_sections(self.text) or None)
