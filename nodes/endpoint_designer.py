"""Endpoint Designer: any OpenAI-compatible server writes the blueprint -> MINDEDIT_MLLM, for Instruction Optimizer."""

from __future__ import annotations

from comfy_api.latest import io

from .errors import blame
from .schema import node_schema
from .sockets import MLLM

NODE_ID = "MindEditEndpointDesigner"


class EndpointDesigner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="A designer behind an address: vLLM, SGLang, llama.cpp, Ollama, LM Studio, OpenAI and whatever "
            "speaks their chat format. Picture and wish are sent there. A key is read from the environment variable "
            "MINDEDIT_API_KEY (or OPENAI_API_KEY) and is never part of a workflow.",
            search_aliases=["OpenAI", "vLLM", "Ollama", "API designer", "blueprint", "Draw-In-Mind"],
            inputs=[
                io.String.Input(
                    "base_url",
                    default="http://127.0.0.1:8000/v1",
                    tooltip="Up to and with /v1. No key belongs in it.",
                ),
                io.String.Input(
                    "model", default="", placeholder="name of the model there", tooltip="As the server calls it."
                ),
                io.Float.Input(
                    "timeout",
                    default=60.0,
                    min=1.0,
                    max=3600.0,
                    step=1.0,
                    advanced=True,
                    tooltip="Seconds of silence before a request counts as lost and is sent once more. The whole "
                    "answer is written in silence: raise it for a slow model, or one that is loaded when it is asked.",
                ),
            ],
            outputs=[
                io.Custom(MLLM).Output(
                    "designer",
                    display_name="designer",
                    tooltip="For the mllm input of Instruction Optimizer. Insight Embedding needs the painter's own.",
                )
            ],
        )

    @classmethod
    def execute(cls, base_url: str, model: str, timeout: float = 60.0) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_designers import ManagedEndpoint

        with blame(NODE_ID, "base_url and model"):
            return io.NodeOutput(ManagedEndpoint(base_url, model, timeout))
