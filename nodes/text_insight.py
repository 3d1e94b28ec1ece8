"""Text Insight: what the language model makes of a text alone, for text-to-image painters that read its states."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .errors import blame
from .schema import node_schema
from .sockets import INSIGHT, MLLM, PLAN

NODE_ID = "MindEditTextInsight"


class TextInsight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="Reads a text without a picture, for text-to-image with a painter of Draw-In-Mind (DIM-T2I).",
            search_aliases=["text to image", "T2I", "Draw-In-Mind", "SANA prompt"],
            inputs=[
                io.Custom(MLLM).Input("mllm", tooltip="From MLLM Loader: the one that the painter was trained with."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder="what the picture shows",
                    tooltip="The longer and more exact, the better: this painter learnt from captions of 150 words.",
                ),
            ],
            outputs=[
                io.Custom(INSIGHT).Output("insight", display_name="insight", tooltip="For IP-Adapter Bridge."),
                io.Custom(PLAN).Output("plan", display_name="plan", tooltip="For IP-Adapter Bridge."),
            ],
        )

    @classmethod
    def execute(cls, mllm: Any, text: str) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_qwen import text_insight

        with blame(NODE_ID, "mllm and text"):
            return io.NodeOutput(*text_insight(mllm, text))
