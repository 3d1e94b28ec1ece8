"""Readers by name: a published dataset, or your own pictures, as `train.records.Records`. A new one is one line here.

A recipe's config names a reader and its options: open_records("human_edit", path="HumanEdit/data", split="train").
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any

from mindedit_core.registry import lookup
from train.records import Records

READERS = {
    "dim_edit": ".dim_edit:open_dim_edit",
    "dim_t2i": ".dim_t2i:open_dim_t2i",
    "folder": ".folder:open_folder",
    "human_edit": ".human_edit:open_human_edit",
    "magic_brush": ".magic_brush:open_magic_brush",
    "multistep": ".multistep:open_multistep",
    "world": ".world:World",
}


def reader(name: str) -> Any:
    """What opens a dataset of this format; an unknown name lists the known ones."""
    return lookup(READERS, name, __name__, "reader")


def open_records(name: str, **options: Any) -> Records:
    """The dataset that `options` describe. Raises ValueError for an option that this reader has not, or lacks."""
    opens = reader(name)
    try:
        inspect.signature(opens).bind(**options)
    except TypeError as error:
        raise ValueError(f"reader {name}: {error}; it takes {inspect.signature(opens)}") from None
    return opens(**options)


def options_from(words: Iterable[str]) -> dict[str, Any]:
    """Options as they are typed: JSON where it is JSON, else text; a dot leads into a table.

    >>> options_from(["path=data/pairs", "columns.source=before", "partial=true", "count=20"])
    {'path': 'data/pairs', 'columns': {'source': 'before'}, 'partial': True, 'count': 20}
    """
    options: dict[str, Any] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise ValueError(f"an option is written key=value, got {word!r}")
        *tables, last = key.split(".")
        place = options
        for table in tables:
            place = place.setdefault(table, {})
        place[last] = _value(text)
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
