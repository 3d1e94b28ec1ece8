"""Insight Embedding: v_insight, the CLIP embedding of the result as the MLLM foresees it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .errors import blame
from .schema import node_schema
from .sockets import EMBEDS, INSIGHT, MLLM, PLAN

NODE_ID = "MindEditInsightEmbedding"


class InsightEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="Predicts, from what the language model thought while it wrote, how the result will look: a "
            "CLIP image embedding, or CLIP's states, as the adapter file says. Costs nothing when MLLM and picture are "
            "those of Instruction Optimizer.",
            search_aliases=["visual insight", "v_insight", "MIND-Edit", "image embeds"],
            inputs=[
                io.Custom(MLLM).Input(
                    "mllm",
                    tooltip="From MLLM Loader or MindEdit Mini Loader, with an adapter. A Qwen2.5-VL needs none: a "
                    "SANA from Painter Loader reads its states, and there is no embedding.",
                ),
                io.Image.Input("image", tooltip="The picture to be edited, the same as at Instruction Optimizer."),
                io.Custom(PLAN).Input("plan", tooltip="From Instruction Optimizer."),
            ],
            outputs=[
                io.Custom(INSIGHT).Output("insight", display_name="insight", tooltip="For IP-Adapter Bridge."),
                io.Custom(EMBEDS).Output(
                    "positive_embeds",
                    display_name="pos_embed",
                    tooltip="The same embedding for the IPAdapter_plus pack (IPAdapter Embeds, pos_embed).",
                ),
                io.Custom(EMBEDS).Output(
                    "negative_embeds",
                    display_name="neg_embed",
                    tooltip="Its counterpart for the unconditional branch: zeros, or the states of a zero image for "
                    "plus and full-face adapters (IPAdapter Embeds, neg_embed).",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, mllm: Any, image: Any, plan: Any) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_mllm import embeds
        from ..mindedit_core.hosts.comfy_ui import blocked, say

        with blame(NODE_ID, "mllm, image and plan"):
            insight = mllm.encode(image, plan)
        if insight.image_embeds is None:
            said = insight.note or "there is no CLIP embedding: the insight is off"
            say(cls.hidden.unique_id, said)
            return io.NodeOutput(insight, blocked(said), blocked(said), ui=ui.PreviewText(said))
        said = insight.note or f"insight: {' x '.join(map(str, insight.image_embeds.shape))}, {insight.clip_space}"
        say(cls.hidden.unique_id, said)
        return io.NodeOutput(insight, *embeds(insight), ui=ui.PreviewText(said))
