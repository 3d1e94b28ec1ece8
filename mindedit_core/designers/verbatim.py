"""The designer that changes nothing: the painter obeys the user's own words."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..contracts import Plan
from ..prompts import check_instruction


class Verbatim:
    """T_opt = T_raw."""

    def design(self, image: Tensor, instruction: str, **options: Any) -> Plan:
        """image and options are not looked at. Raises ValueError for an empty or an overlong instruction."""
        text = check_instruction(instruction)
        return Plan(text, text, "verbatim")
