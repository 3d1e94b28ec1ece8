"""What a node shows or becomes while it runs: text on the node, outputs blocked with a reason, nodes in its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any


def say(node_id: str | None, text: str) -> None:
    """Show `text` on the node. Without a running server (tests, scripts) it is only not shown."""
    module = sys.modules.get("server")  # not imported here: it brings the whole web application
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if node_id and server is not None:
        server.send_progress_text(text, node_id)


def seen_node(node_id: str | None) -> str | None:
    """The node of the user's graph that a node belongs to: one that an expansion made has an id such as `7.0.0.1`."""
    return node_id.partition(".")[0] if node_id else node_id


def stream_to(node_id: str | None) -> Callable[[str, int], None]:
    """A callback for pieces of text as they are written: the node shows all that has been written so far."""
    written: list[str] = []

    def on_token(piece: str, _count: int) -> None:
        if piece:
            written.append(piece)
            say(node_id, "".join(written))

    return on_token


def in_a_row(socket: str, nodes: Sequence[tuple[str, dict[str, Any]]]) -> tuple[list, dict]:
    """What a node expands into: (type, inputs) each, fed in `socket` by the one before. (link of the result, graph)."""
    from comfy_execution.graph_utils import GraphBuilder

    graph, link = GraphBuilder(), None
    for kind, inputs in nodes:
        link = graph.node(kind, **inputs, **({} if link is None else {socket: link})).out(0)
    return link, graph.finalize()


def blocked(message: str) -> Any:
    """In place of one output: whoever uses it is not run, and the user is told `message`."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(message)
