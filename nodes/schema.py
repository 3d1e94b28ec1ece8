"""Builds a node's Schema so that hosts older and newer than this pack accept it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from .sockets import CATEGORY, NODES


def node_schema(node_id: str, **wanted: Any) -> io.Schema:
    """An io.Schema of this pack's category and title; fields this host does not know are left out, not fatal."""
    known = {field.name for field in fields(io.Schema)}
    wanted = {"display_name": NODES[node_id].title, "category": CATEGORY, **wanted}
    return io.Schema(node_id=node_id, **{name: value for name, value in wanted.items() if name in known})
