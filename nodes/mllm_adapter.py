"""MLLM Adapter: another LoRA and insight head on an MLLM that is loaded already -> MINDEDIT_MLLM."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..mindedit_core.hosts import comfy_folders
from .adapter_sockets import lora_strength, mllm_output
from .errors import blame
from .schema import node_schema
from .sockets import MLLM

NODE_ID = "MindEditMLLMAdapter"
LOADER = "MindEditMLLMLoader"


class MLLMAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="Puts another LoRA and insight head on a language model that is loaded already. The weights "
            "are neither read again nor copied: two adapters side by side cost one model.",
            search_aliases=["LoRA loader", "MLLM LoRA", "insight head", "MIND-Edit"],
            inputs=[
                io.Custom(MLLM).Input("mllm", tooltip="From MLLM Loader or MindEdit Mini Loader. It is not changed."),
                io.Combo.Input(
                    "adapter",
                    options=comfy_folders.list_adapters(),
                    default=comfy_folders.NO_ADAPTER,
                    tooltip="LoRA and insight head trained for this model, from models/mindedit, in place of those it "
                    "has. 'none' takes them off.",
                ),
                lora_strength(),
            ],
            outputs=[mllm_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        return comfy_folders.problem(adapter=adapter) or True

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None, **_: Any) -> str:
        return "" if adapter in (None, comfy_folders.NO_ADAPTER) else comfy_folders.fingerprint("adapter", adapter)

    @classmethod
    def execute(cls, mllm: Any, adapter: str, lora_strength: float) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_mllm_loading import adapted
        from ..mindedit_core.hosts.comfy_ui import seen_node

        own = cls.hidden.unique_id
        is_expanded = seen_node(own) != own  # an MLLM Loader is what the user sees
        with blame(LOADER if is_expanded else NODE_ID, f"adapter ({adapter})"):
            return io.NodeOutput(adapted(mllm, adapter, lora_strength))
