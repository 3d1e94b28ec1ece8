"""MLLMs by name; a new one is one file and one line here. `backbone(name).from_folder(path)` loads it."""

from typing import Any

from ..registry import lookup

BACKBONES = {"llava_onevision": ".llava_onevision:LlavaOnevision", "qwen2_5_vl": ".qwen2_5_vl:Qwen25VL"}


def backbone(name: str) -> Any:
    """The class of a backbone; an unknown name lists the known ones."""
    return lookup(BACKBONES, name, __name__, "backbone")
