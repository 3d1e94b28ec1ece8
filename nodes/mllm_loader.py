"""MLLM Loader: a folder under models/LLM, with the LoRA and head that MIND-Edit trained for it -> MINDEDIT_MLLM.

It expands into two nodes, the bare MLLM and an MLLM Adapter on top. The host caches each by itself, so that another
adapter, or none, is a patch on weights that are there already.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..mindedit_core.hosts import comfy_dtype, comfy_folders
from .adapter_sockets import lora_strength, mllm_output
from .errors import blame
from .schema import node_schema

NODE_ID = "MindEditMLLMLoader"
ADAPTER_NODE = "MindEditMLLMAdapter"


class MLLMLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="Loads the language model that reads the picture and your wish. It is moved to the GPU when it "
            "is needed and off it when something else is, like every model of this host.",
            search_aliases=["LLaVA-OneVision", "Qwen2.5-VL", "VLM loader", "vision language model", "MIND-Edit", "DIM"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=comfy_folders.list_mllms(),
                    default=comfy_folders.MINI,
                    tooltip="A built-in mini, or a folder under models/LLM (config.json, tokenizer, *.safetensors): "
                    "LLaVA-OneVision for MIND-Edit, Qwen2.5-VL-3B-Instruct for Draw-In-Mind.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=comfy_folders.list_adapters(),
                    default=comfy_folders.MINI,
                    tooltip="LoRA and insight head trained for this model, from models/mindedit. "
                    "'none' works without a visual insight: the text is still rewritten. Another one is put on the "
                    "same weights, which are not read again. A Qwen2.5-VL takes none.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(comfy_dtype.CHOICES),
                    default=comfy_dtype.AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="What the model computes in. auto: what the weights are stored in where this device is "
                    "fast in it, else the nearest it is fast in. The weights stay as they are stored unless you choose "
                    "something narrower. A CPU never computes fp16: it takes fp32 then. fp8_e4m3fn keeps the matrices "
                    "in half the memory of fp16 and computes as auto does.",
                ),
                lora_strength(optional=True, advanced=True),
            ],
            outputs=[mllm_output()],
            hidden=[io.Hidden.unique_id],
            enable_expand=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, adapter: str | None = None) -> bool | str:
        return comfy_folders.problem(mllm=model, adapter=adapter) or True

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, adapter: str | None = None, **_: Any) -> list[str]:
        chosen = {"mllm": model, "adapter": None if adapter == comfy_folders.NO_ADAPTER else adapter}
        return [comfy_folders.fingerprint(kind, choice) for kind, choice in chosen.items() if choice is not None]

    @classmethod
    def execute(
        cls, model: str, adapter: str | None = None, dtype: str = comfy_dtype.AUTO, lora_strength: float = 1.0
    ) -> io.NodeOutput:
        """adapter None: this is the first of the two nodes that a loader expands into."""
        if adapter is None:
            return cls._bare(model, dtype)
        from ..mindedit_core.hosts.comfy_ui import in_a_row

        row = [(NODE_ID, {"model": model, "dtype": dtype})]
        qwen_as_it_is = adapter == comfy_folders.MINI and comfy_folders.mllm_type(model) == comfy_folders.QWEN
        if adapter != comfy_folders.NO_ADAPTER and not qwen_as_it_is:
            row.append((ADAPTER_NODE, {"adapter": adapter, "lora_strength": lora_strength}))
        mllm, graph = in_a_row("mllm", row)
        return io.NodeOutput(mllm, expand=graph)

    @classmethod
    def _bare(cls, model: str, dtype: str) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_mllm_loading import describe, load_mllm
        from ..mindedit_core.hosts.comfy_ui import say, seen_node

        with blame(NODE_ID, "model and dtype"):
            say(seen_node(cls.hidden.unique_id), describe(model, dtype))
            return io.NodeOutput(load_mllm(model, None, dtype))
