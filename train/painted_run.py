"""A folder of painted pictures that a stopped or killed run goes on in, and that another run is kept out of."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mindedit_core.contracts import Interrupted, PaintSettings
from mindedit_core.designers.transport import EndpointUnusable
from mindedit_core.pictures import save_picture
from mindedit_core.pipeline import edit
from train.benchmarks import Sample, read_json
from train.journal import Journal
from train.written_blueprints import Written, named

RUN, FAILURES = "run.json", "failures.jsonl"
AGAIN = "what was painted is kept: the same command goes on from there"


class Run:
    """A folder of painted pictures, and what run.json says of it.

    facts: what must stay the same, that all pictures be painted alike;  about: what else is to be known
    Raises ValueError for the folder of another run, of pictures from elsewhere, or where another process paints.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], facts: Mapping[str, Any], about: Mapping[str, Any]):
        self.folder, self.samples = folder, samples
        blueprints = {each.name: digest(each.blueprint) for each in samples if each.blueprint}
        before = self._before(plain(facts), blueprints)
        self.failures = Journal(folder / FAILURES)
        for part in folder.rglob(".*.part"):  # what a kill left: nobody else writes here now
            part.unlink()
        self.counts = Counter(samples=len(samples), painted=0, failed=0)
        self.notes, self.seconds = Counter(before.get("notes", {})), before.get("seconds", 0.0)
        self.said = {**facts, **about, "started": before.get("started", now()), "finished": None,
                     "blueprints": {**before.get("blueprints", {}), **blueprints}}
        self.write()

    def _before(self, facts: dict[str, Any], blueprints: Mapping[str, str]) -> dict[str, Any]:
        """What run.json says, if the run may go on; {} for a folder without pictures. New blueprints may come."""
        if not (self.folder / RUN).is_file():
            if strange := [each.result for each in self.samples if (self.folder / each.result).exists()]:
                raise ValueError(f"{self.folder} has {strange[0]}, and no {RUN} that tells how it was painted; choose "
                                 "another --out")
            return {}
        before = read_json(self.folder / RUN)
        other = differences({name: before.get(name) for name in facts}, facts)
        known = before.get("blueprints", {})
        other += [f"the blueprint of {name} is another" for name in known.keys() & blueprints.keys()
                  if known[name] != blueprints[name]]
        if other:
            raise ValueError(f"{self.folder} holds a run that was begun otherwise: {named(other)}; choose another "
                             f"--out, or go on with its own command: {before.get('command')}")
        return before

    def has(self, sample: Sample) -> bool:
        files = [self.folder / file for file in (sample.result, sample.source) if file is not None]
        return all(file.is_file() and is_whole(file) for file in files)

    def paint(self, system: Any, settings: PaintSettings) -> None:
        """What is not there yet. A sample that fails is written down, and the next one follows."""
        for sample in tqdm(self.samples, unit="picture", disable=None):
            if self.has(sample):
                self.counts["painted"] += 1
                continue
            started = time.monotonic()
            try:
                source, result, notes = paint(system, sample, settings)
            except (EndpointUnusable, Interrupted):  # so would all that follow
                raise
            except (ValueError, RuntimeError, OSError) as error:
                self.fail(sample, error)
            else:
                self.keep(sample, source, result)
                self.note(sample, notes)
                self.seconds += time.monotonic() - started
            self.write()

    def keep(self, sample: Sample, source: Tensor, result: Tensor) -> None:
        if sample.source is not None:
            save_picture(source, self.folder / sample.source)
        save_picture(result, self.folder / sample.result)
        self.counts["painted"] += 1

    def fail(self, sample: Sample, error: Exception) -> None:
        attempt = 1 + sum(line["name"] == sample.name for line in self.failures.lines)
        reason = str(error) or type(error).__name__
        self.failures.append({"name": sample.name, "instruction": sample.wish, "reason": reason, "attempt": attempt,
                              "time": now()})
        self.counts["failed"] += 1
        tqdm.write(f"failed: {sample.name}: {reason}")

    def note(self, sample: Sample, notes: Sequence[str]) -> None:
        """Each is told once, and counted."""
        for note in notes:
            if note not in self.notes:
                tqdm.write(f"note: {sample.name}: {note}")
            self.notes[note] += 1

    def write(self, **more: Any) -> None:
        """run.json, whole at any moment."""
        self.said.update(more)
        said = {**self.said, "counts": self.counts, "seconds": round(self.seconds, 3), "notes": self.notes}
        part = self.folder / f".{RUN}.{os.getpid()}.part"
        part.write_text(json.dumps(plain(said), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, self.folder / RUN)

    def close(self) -> None:
        self.failures.close()


def differences(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> list[str]:
    """What changed, value by value.

    >>> differences({"seed": 0, "settings": {"steps": 2}}, {"seed": 0, "settings": {"steps": 3}})
    ['settings.steps was 2 and is 3']
    """
    found: list[str] = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{at}{key}.")
        elif old != new:
            found.append(f"{at}{key} was {old!r} and is {new!r}")
    return found


def plain(said: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(said, default=str))


def digest(said: Any) -> str:
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def paint(system: Any, sample: Sample, settings: PaintSettings) -> tuple[Tensor, Tensor, list[str]]:
    """What was edited, what came of it, both float[1, H, W, 3] in 0..1, and notes."""
    image = torch.from_numpy(sample.read())[None].float() / 255.0
    if sample.blueprint is not None:
        system = replace(system, designer=Written(sample.blueprint))
    notes: list[str] = []
    result = edit(system, image, sample.wish, settings, on_note=notes.append)
    return image, result.image, [*result.notes, *notes]


def is_whole(file: Path) -> bool:
    """True for a PNG to its last chunk, every one with the right checksum."""
    try:
        with Image.open(file) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True
