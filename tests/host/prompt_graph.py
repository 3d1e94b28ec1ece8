"""API prompts, built and changed by names instead of numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

Link = list  # [node id, output slot]


class Graph:
    """`graph["MindEditEditSampler"]` are the inputs of the only node of that type; `add` returns a new node's id."""

    def __init__(self, prompt: dict | None = None) -> None:
        self.prompt = prompt or {}

    @classmethod
    def load(cls, path: Path) -> Graph:
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def copy(self) -> Graph:
        return Graph(copy.deepcopy(self.prompt))

    def id(self, class_type: str) -> str:
        found = [number for number, node in self.prompt.items() if node["class_type"] == class_type]
        assert len(found) == 1, f"{len(found)} nodes of type {class_type}"
        return found[0]

    def __getitem__(self, class_type: str) -> dict[str, Any]:
        return self.prompt[self.id(class_type)]["inputs"]

    def __setitem__(self, class_type: str, inputs: dict[str, Any]) -> None:
        self.prompt[self.id(class_type)]["inputs"] = inputs

    def link(self, class_type: str, slot: int = 0) -> Link:
        """To an output of the only node of that type."""
        return [self.id(class_type), slot]

    def add(self, class_type: str, **inputs: Any) -> str:
        """A new node; returns its id."""
        number = str(1 + max(map(int, self.prompt), default=0))
        self.prompt[number] = {"class_type": class_type, "inputs": inputs}
        return number

    def remove(self, class_type: str) -> None:
        del self.prompt[self.id(class_type)]
