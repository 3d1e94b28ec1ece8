"""system.json: what makes a folder a system of full size. Paths in it are relative to the folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import CheckpointError

DESCRIPTION = "system.json"


def system_of(folder: Path) -> str:
    """Which of SYSTEMS a folder is: as its system.json says, else MIND-Edit; without one a mini, by its files."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return "dim-mini" if (folder / "dim.safetensors").is_file() else "mini"
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("system", "mind_edit")
    except (ValueError, AttributeError):
        return "mind_edit"  # whose loader says what is wrong with the file


def read_description(
    folder: str | Path | None, required: Sequence[str], optional: Sequence[str], form: str
) -> dict[str, Any]:
    """The entries of `folder`/system.json that are not null. form: what one looks like, for the error message.

    A required entry "a|b" is satisfied by either. Raises CheckpointError for a missing, broken or misspelt description.
    """
    if folder is None or not (path := Path(folder) / DESCRIPTION).is_file():
        place = "no folder was given" if folder is None else f"{folder} has none"
        raise CheckpointError(
            f"this system is loaded from a folder with a {DESCRIPTION}, but {place}; write it as\n{form}"
        )
    try:
        said = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if value is not None}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a JSON object ({error}); write it as\n{form}") from error
    known = {name for entry in (*required, *optional) for name in entry.split("|")}
    if unknown := sorted(set(said) - known):
        raise CheckpointError(f"{path} has unknown entries {', '.join(unknown)}; write it as\n{form}")
    if missing := [entry for entry in required if not set(entry.split("|")) & set(said)]:
        raise CheckpointError(f"{path} lacks {', '.join(missing).replace('|', ' or ')}; write it as\n{form}")
    return said
