"""Tables of parts: name -> ".file:Attribute", resolved when asked for, so that nothing heavy is imported at start."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def lookup(table: Mapping[str, str], name: str, package: str, kind: str) -> Any:
    """The attribute that `table[name]` names, imported relative to `package`.

    >>> lookup({"join": "os.path:join"}, "split", "", "path function")
    Traceback (most recent call last):
    ValueError: unknown path function 'split'; have join
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; have {', '.join(sorted(table)) or 'none'}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module, package), attribute)
