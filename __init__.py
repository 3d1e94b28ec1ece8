"""MindEdit, a ComfyUI node pack. Hands the nodes over when ComfyUI imports this file, else does nothing."""

import sys

if __package__ and "comfy" in sys.modules:  # hosted; pytest imports this file too, and must not need ComfyUI
    from .nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
