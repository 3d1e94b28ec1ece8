"""Says where an error happened: every message that reaches the user starts with the node and the socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .sockets import NODES

# what our parts raise; anything else is the host's or a bug of ours
KINDS = (FileNotFoundError, TypeError, ValueError, OSError)


@contextmanager
def blame(node_id: str, socket: str) -> Iterator[None]:
    """Prefix an error of our parts with "Node, socket: "; interrupts and out-of-memory pass untouched."""
    try:
        yield
    except KINDS as error:
        kind = next(kind for kind in KINDS if isinstance(error, kind))
        raise kind(f"{NODES[node_id].title}, {socket}: {error}") from error
