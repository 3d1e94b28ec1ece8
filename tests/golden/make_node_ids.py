"""Writes node_ids.json from a running ComfyUI with this pack: `python tests/golden/make_node_ids.py 127.0.0.1:8188`.

Look at the difference before committing it: lines may be added at the end of a list and nowhere else.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parent / "host" / "comfy_client.py"


def main(address: str) -> None:
    spec = importlib.util.spec_from_file_location("comfy_client", CLIENT)
    client = sys.modules["comfy_client"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    with urllib.request.urlopen(f"http://{address}/object_info", timeout=60) as answer:
        names = client.names_of(json.load(answer))
    lines = [f" {json.dumps(node)}: {listed(sockets)}" for node, sockets in names.items()]
    (HERE / "node_ids.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def listed(sockets: dict) -> str:
    """One socket a line, so that an appended one is an added line."""
    sides = []
    for side, entries in sockets.items():
        rows = ",\n".join(f"   {json.dumps(entry)}" for entry in entries)
        sides.append(f'  "{side}": [\n{rows}\n  ]' if rows else f'  "{side}": []')
    return "{\n" + ",\n".join(sides) + "\n }"


if __name__ == "__main__":
    main(sys.argv[1])
