"""What a node shows while and after it runs: text on the node, and outputs that are blocked with a reason."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def say(node_id: str | None, text: str) -> None:
    """Show `text` on the node. Without a running server (tests, scripts) it is only not shown."""
    module = sys.modules.get("server")  # not imported here: it brings the whole web application
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if node_id and server is not None:
        server.send_progress_text(text, node_id)


def stream_to(node_id: str | None) -> Callable[[str, int], None]:
    """A callback for pieces of text as they are written: the node shows all that has been written so far."""
    written: list[str] = []

    def on_token(piece: str, _count: int) -> None:
        if piece:
            written.append(piece)
            say(node_id, "".join(written))

    return on_token


def blocked(message: str) -> Any:
    """In place of one output: whoever uses it is not run, and the user is told `message`."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(message)
