"""Painter LoRA: a LoRA of diffusers or peft on a SANA MODEL; keys that match nothing are said."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .errors import blame
from .schema import node_schema

NODE_ID = "MindEditPainterLoRA"


class PainterLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..mindedit_core.hosts.comfy_sana_lora import list_loras

        return node_schema(
            NODE_ID,
            description="Puts a LoRA that was trained for SANA (keys such as transformer.*) on a clone of the model, "
            "and says which of its keys match nothing, by name or by size.",
            search_aliases=["SANA LoRA", "LoRA loader", "Draw-In-Mind"],
            inputs=[
                io.Model.Input("model", tooltip="From Painter Loader. It is not changed: a clone is."),
                io.Combo.Input("lora", options=list_loras(), tooltip="A file from models/loras."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Weight of the LoRA; 0 leaves the model as it was.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The clone with the LoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, lora: str, strength: float) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_sana_lora import resolve_lora, with_lora
        from ..mindedit_core.hosts.comfy_ui import say

        with blame(NODE_ID, f"lora ({lora})"):
            patched, strange = with_lora(model, resolve_lora(lora), strength)
        if not strange:
            return io.NodeOutput(patched)
        said = f"{len(strange)} keys of {lora} match nothing in this SANA by name or size, such as "
        said += ", ".join(strange[:3])
        say(cls.hidden.unique_id, said)
        return io.NodeOutput(patched, ui=ui.PreviewText(said))
