"""MLLM Loader: a folder under models/LLM, with the LoRA and head that MIND-Edit trained for it -> MINDEDIT_MLLM."""

from __future__ import annotations

from comfy_api.latest import io

from ..mindedit_core.hosts import comfy_folders
from .errors import blame
from .schema import node_schema
from .sockets import MLLM

NODE_ID = "MindEditMLLMLoader"


class MLLMLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="Loads the language model that reads the picture and your wish. It is moved to the GPU when it "
            "is needed and off it when something else is, like every model of this host.",
            search_aliases=["LLaVA-OneVision", "VLM loader", "vision language model", "MIND-Edit"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=comfy_folders.list_mllms(),
                    default=comfy_folders.MINI,
                    tooltip="The built-in mini, or a LLaVA-OneVision folder under models/LLM "
                    "(config.json, tokenizer and *.safetensors in one folder).",
                ),
                io.Combo.Input(
                    "adapter",
                    options=comfy_folders.list_adapters(),
                    default=comfy_folders.MINI,
                    tooltip="LoRA and insight head trained for this model, from models/mindedit. "
                    "'none' works without a visual insight: the text is still rewritten.",
                ),
            ],
            outputs=[
                io.Custom(MLLM).Output(
                    "mllm", display_name="mllm", tooltip="For Instruction Optimizer and Insight Embedding."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, adapter: str | None = None) -> bool | str:
        try:
            if model is not None:  # None: it comes through a link
                comfy_folders.resolve_mllm(model)
            if adapter not in (None, comfy_folders.NO_ADAPTER):
                comfy_folders.resolve_adapter(adapter)
        except (FileNotFoundError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, adapter: str | None = None) -> list[str]:
        chosen = {"mllm": model, "adapter": None if adapter == comfy_folders.NO_ADAPTER else adapter}
        return [comfy_folders.fingerprint(kind, choice) for kind, choice in chosen.items() if choice is not None]

    @classmethod
    def execute(cls, model: str, adapter: str) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_mllm import load_mllm

        with blame(NODE_ID, "model and adapter"):
            return io.NodeOutput(load_mllm(model, None if adapter == comfy_folders.NO_ADAPTER else adapter))
