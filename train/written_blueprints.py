"""Blueprints from a file in the place of a designer: lines of id (or key) and prompt, as Draw-In-Mind has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mindedit_core.blueprint_parser import read_sections
from mindedit_core.contracts import Plan
from mindedit_core.designers.typed import Typed
from train.benchmarks import Sample, whole_lines

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Written:
    """A designer whose blueprint was written before, for one picture."""

    blueprint: str

    def design(self, image: Tensor, instruction: str, **options: Any) -> Plan:
        if not self.blueprint:
            raise ValueError("the file of blueprints has none for it")
        return replace(Typed(self.blueprint).design(image, instruction), designer="file")


def read_blueprints(file: Path, language: str) -> dict[str, str]:
    """Id or key -> blueprint. Lines in another language than the benchmark's are left out."""
    found: dict[str, str] = {}
    for row, line in enumerate(whole_lines(file)):
        text, ids = line.get("prompt"), {str(line[name]) for name in ("id", "key") if line.get(name) is not None}
        if not ids or not isinstance(text, str) or not text.strip():
            raise ValueError(f"{file}, row {row} must have an id (or key) and a prompt, got {', '.join(line)}")
        if line.get("instruction_language", language) == language:
            if other := [name for name in ids if found.get(name, text) != text]:
                raise ValueError(f"{file}, row {row} has another blueprint for {other[0]} than a row before; keep one")
            found.update(dict.fromkeys(ids, text))
    return found


def with_blueprints(samples: Sequence[Sample], found: Mapping[str, str]) -> list[Sample]:
    """Each with its blueprint, "" where there is none."""
    texts = (next((found[name] for name in sample.ids if name in found), "") for sample in samples)
    return [replace(sample, blueprint=text) for sample, text in zip(samples, texts, strict=True)]


def notes_on_blueprints(samples: Sequence[Sample]) -> list[str]:
    without = [each.name for each in samples if each.blueprint == ""]
    shapeless = [each.name for each in samples if each.blueprint and not read_sections(each.blueprint)]
    told = {"have no blueprint in the file and fail": without,
            "have a blueprint without any of its five sections": shapeless}
    return [f"{len(names)} samples {what}: {named(names)}" for what, names in told.items() if names]


def named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
