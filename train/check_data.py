"""Looks at a dataset once, from end to end, and says on one screen what it holds and what cannot be used.

    python -m train.check_data --reader human_edit --set path=HumanEdit/data --set split=train --workers 8

Rows that cannot be used go to OUT/rejects.jsonl with their reason. Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from train.readers import READERS, open_records, options_from
from train.rejects import PARTS, REJECTS, Finding, check

SHOWN = 5  # examples of a kind, so that it stays one screen
WIDTH = 100


def report(name: str, notes: Sequence[str], findings: Sequence[Finding], folder: Path) -> list[str]:
    """The screen, line by line."""
    good = [finding for finding in findings if not finding.reject]
    bad = [finding.reject for finding in findings if finding.reject]
    lines = [f"{name}: {len(findings)} rows, {len(good)} can be used, {len(bad)} rejected"]
    lines += [f"note: {note}" for note in notes]
    lines += [*_contents(good), *_rejected(bad, folder)] if good else _rejected(bad, folder)
    return [line if len(line) <= 2 * WIDTH else line[: 2 * WIDTH - 3] + "..." for line in lines]


def _contents(good: Sequence[Finding]) -> list[str]:
    sizes = Counter(f"{width}x{height}" for width, height in (finding.size for finding in good))
    words = sorted(finding.words for finding in good)
    masked = [finding.masked for finding in good if finding.masked is not None]
    kinds = Counter(finding.kind for finding in good if finding.kind)
    notes = Counter(note for finding in good for note in finding.notes)
    has = Counter(part for finding in good for part in finding.has)
    lines = [
        f"ids            {good[0].id} ... {good[-1].id}",
        f"pictures       {_most(sizes)}",
        f"sides          {min(min(f.size) for f in good)} to {max(max(f.size) for f in good)} pixels",
        f"instructions   {words[0]} to {words[-1]} words, half of them have at most {median(words):g}",
        f"present        {', '.join(f'{part} {has[part]}' for part in PARTS if has[part]) or 'instructions only'}",
    ]
    if masked:
        lines.append(f"masks          cover {min(masked):.1%} to {max(masked):.1%}, half at most {median(masked):.1%}")
    if kinds:
        lines.append(f"kinds          {_most(kinds, 12)}")
    return lines + [f"changed        {count} rows: {note}" for note, count in notes.most_common(SHOWN)]


def _most(counts: Counter, shown: int = SHOWN) -> str:
    rest = len(counts) - shown
    named = ", ".join(f"{name} ({count})" for name, count in counts.most_common(shown))
    return named + (f" and {rest} more" if rest > 0 else "")


def _rejected(bad: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    if not bad:
        return ["rejected       none"]
    shown = [f"  {line['file']}, row {line['file_row']} ({line['id']}): {line['reason']}" for line in bad[:SHOWN]]
    more = [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    return [f"rejected       {len(bad)}, all in {folder / REJECTS}", *shown, *more]


def arguments(words: Iterable[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", required=True, choices=sorted(READERS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the reader")
    parser.add_argument("--out", type=Path, help=f"folder of {REJECTS} (default: runs/check/READER)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode pictures; 0: this one")
    return parser.parse_args(words)


def main(words: Iterable[str] | None = None) -> int:
    options = arguments(words)
    folder = options.out or Path("runs") / "check" / options.reader
    try:
        records = open_records(options.reader, **options_from(options.set))
        found = list(tqdm(check(records, folder, options.workers), total=len(records), unit="row", disable=None))
    except (ValueError, OSError) as error:
        print(f"check_data: error: {error}", file=sys.stderr)
        return 2
    print(*report(options.reader, getattr(records, "notes", ()), found, folder), sep="\n")
    return int(any(finding.reject for finding in found))


if __name__ == "__main__":
    sys.exit(main())
