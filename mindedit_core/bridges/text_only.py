"""The bridge that carries nothing: T_opt alone leads, and no IP-Adapter is needed."""

from __future__ import annotations

from ..contracts import Condition, Insight


class TextOnly:
    emits: frozenset[str] = frozenset()

    def __call__(self, insight: Insight) -> Condition:
        """No stream, whatever was foreseen: the painter reads the plan's text."""
        return Condition()
