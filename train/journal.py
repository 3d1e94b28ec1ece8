"""A file of JSON lines that survives SIGKILL: every line is on the disk before the next one begins."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no advisory locks; two builds into one folder are the user's care there
    fcntl = None


class Journal:
    """Appends to `path`. note: what had to be healed, "" if nothing.

    Raises ValueError while another process writes here, and for a broken line that is not the last.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self.note = heal(self.path)
            self.lines = read_lines(self.path)
        except ValueError:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            if fcntl:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process is writing {self.path}; wait for it, or choose another folder") from None

    def append(self, line: dict[str, Any]) -> None:
        os.write(self.file, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        os.fsync(self.file)
        self.lines.append(line)

    def close(self) -> None:
        os.close(self.file)


def heal(path: Path) -> str:
    """Takes away a last line that was cut off in writing, or ends it if it is whole. Returns what was done."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end == len(data):
        return ""
    whole = _is_json(data[end:])
    with open(path, "r+b") as file:
        file.seek(len(data))
        file.write(b"\n") if whole else file.truncate(end)
        file.flush()
        os.fsync(file.fileno())
    return f"{path}: the last line was cut off and has been {'ended' if whole else 'taken away'}"


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Every line as a dict; a torn last one is left out. Raises ValueError naming a broken line before it."""
    *whole, last = Path(path).read_bytes().split(b"\n")
    lines = [*whole, last] if _is_json(last) else whole
    return [_parsed(path, number, text) for number, text in enumerate(lines, 1) if text.strip()]


def _parsed(path: str | Path, number: int, text: bytes) -> dict[str, Any]:
    if not _is_json(text):
        raise ValueError(f"{path}, line {number} is no JSON object; repair it or take it out")
    return json.loads(text)


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
