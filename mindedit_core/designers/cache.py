"""Blueprints kept on disk: the same picture and wish are not designed twice, nor paid for, not even after a restart.

An entry is one small JSON file named by the hash of all that shapes the answer. It holds what the plan says; neither
states nor a key are in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..blueprint import SECTIONS
from ..contracts import Plan
from ..prompts import check_instruction
from ..tensors import image_key

log = logging.getLogger(__name__)

VERSION = 1  # of the entries; another one is not read
MAX_ENTRIES = 2000  # about 5 MB
CALLBACKS = ("on_token", "should_stop")  # options that leave the answer as it is
ENTRY = re.compile(r"[0-9a-f]{64}\.json")


class CachedDesigner:
    """designer: one whose plans have a blueprint's sections;  folder: made when the first entry is written

    identity: names designer, model and prompt (designers of blueprints have an `identity`), so that others never share
    max_entries: when there are more, the oldest go
    """

    def __init__(self, designer: Any, folder: str | Path, identity: str, max_entries: int = MAX_ENTRIES):
        self.designer, self.folder, self.identity, self.max_entries = designer, Path(folder), identity, max_entries

    def design(self, image: Tensor, instruction: str, **options: Any) -> Plan:
        """The kept plan, without states, or a new one, which is kept if its answer had a blueprint.

        on_token is called once with a kept plan's text, and the log says which file it is from. Words drawn without a
        seed are never kept.
        """
        line = check_instruction(instruction)
        path = self._path(image, line, options)
        plan = read_entry(path, line) if path else None
        if plan is None:
            plan = self.designer.design(image, instruction, **options)
            return self._kept(plan, path) if path and _has_blueprint(plan) else plan
        log.info("the blueprint was kept and is not designed anew; to have another, delete %s", path)
        if options.get("on_token") is not None:
            options["on_token"]([plan.text])
        return plan

    def _path(self, image: Tensor, line: str, options: Mapping[str, Any]) -> Path | None:
        """Where the entry is or would be; None if the answer cannot be had again."""
        shaping = {name: value for name, value in options.items() if name not in CALLBACKS}
        generator, temperature = shaping.pop("generator", None), float(shaping.pop("temperature", 0.0))
        seed = shaping.pop("seed", None) if generator is None else generator.initial_seed()
        if temperature > 0.0 and seed is None:
            return None
        drawn = [temperature, seed] if temperature > 0.0 else []
        said = [VERSION, image_key(image), line, self.identity, drawn, sorted(shaping.items())]
        return self.folder / f"{hashlib.sha256(repr(said).encode('utf-8', 'replace')).hexdigest()}.json"

    def _kept(self, plan: Plan, path: Path) -> Plan:
        """Written, or if the disk does not take it, with a note that says so."""
        try:
            write_entry(plan, path)
            self._make_room()
        except OSError as error:
            said = f"the blueprint could not be kept in {self.folder} ({error.strerror or error})"
            return replace(plan, note="; ".join(filter(None, (plan.note, said))))
        return plan

    def _make_room(self) -> None:
        """The oldest entries go; files that are none stay."""
        found = [Path(entry.path) for entry in os.scandir(self.folder) if ENTRY.fullmatch(entry.name)]
        if len(found) <= self.max_entries:
            return
        for path in sorted(found, key=_age)[: len(found) - self.max_entries]:
            path.unlink(missing_ok=True)


def read_entry(path: Path, raw: str) -> Plan | None:
    """The plan in an entry; None if there is none, or if the file is damaged or of another kind."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        texts = [said["text"], said["designer"], said["note"], *said["sections"].values()]
        whole = said["version"] == VERSION and said["raw"] == raw and set(said["sections"]) <= set(SECTIONS)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not whole or not said["text"] or not said["sections"] or not all(isinstance(text, str) for text in texts):
        return None
    return Plan(raw, said["text"], said["designer"], sections=said["sections"], note=said["note"])


def write_entry(plan: Plan, path: Path) -> None:
    """The file is complete or not there. Raises OSError."""
    said = {"version": VERSION, "raw": plan.raw, "text": plan.text, "designer": plan.designer}
    said |= {"sections": dict(plan.sections or {}), "note": plan.note}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.write_text(json.dumps(said, indent=1), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _has_blueprint(plan: Plan) -> bool:
    """Only then was there an answer worth keeping; a failed one is asked for again."""
    return bool(plan.sections) and set(plan.sections) <= set(SECTIONS)


def _age(path: Path) -> float:
    with suppress(OSError):  # another process has taken it away
        return path.stat().st_mtime
    return 0.0
