"""Instruction Optimizer: T_raw -> T_opt. The text it writes runs over the node while it is written."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .errors import blame
from .schema import node_schema
from .sockets import MLLM, PLAN

NODE_ID = "MindEditInstructionOptimizer"
DESIGNERS = ("the model", "as typed")


class InstructionOptimizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="Rewrites a vague wish, looking at the picture, into the precise description that the painter "
            "obeys. The text appears on the node.",
            search_aliases=["prompt enhancer", "rewrite prompt", "MIND-Edit", "T_opt"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.MultiType.Input(
                    "mllm",
                    types=[io.Custom(MLLM), io.Clip],
                    tooltip="From MLLM Loader or MindEdit Mini Loader. A CLIP works too where the host lets it write "
                    "text (Qwen-VL and the like in newer ComfyUI); it gives no visual insight.",
                ),
                io.Image.Input("image", tooltip="The picture to be edited."),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default="make the odd one out match the others",
                    placeholder="what should change?",
                    tooltip="What you want, in plain words; it may be vague and point at things in the picture.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the wording. Without effect at temperature 0, where the likeliest words are taken.",
                ),
                io.Int.Input(
                    "max_new_tokens",
                    default=1024,
                    min=8,
                    max=4096,
                    advanced=True,
                    tooltip="The longest answer, in tokens. A blueprint of a photograph takes 350 to 450; a painter "
                    "with CLIP reads only the first 77.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip="0 takes the likeliest words, the same every time; higher is more varied and less exact.",
                ),
                io.Combo.Input(
                    "designer",
                    options=list(DESIGNERS),
                    default=DESIGNERS[0],
                    optional=True,
                    advanced=True,
                    tooltip="Who writes: the model at mllm (a LLaVA-OneVision writes a description, a Qwen2.5-VL or an "
                    "endpoint a blueprint), or you: then the text above goes to the painter as it is typed.",
                ),
                io.Boolean.Input(
                    "share_prefix",
                    default=True,
                    optional=True,
                    advanced=True,
                    label_on="picture read once",
                    label_off="read twice, as published",
                    tooltip="Qwen2.5-VL only: the designer sees the picture as the painter's states need it, so that "
                    "it is read once for both. Off shows it the picture's own aspect, as Draw-In-Mind publishes.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "text", display_name="text", tooltip="The precise description: a prompt for any editor."
                ),
                io.Custom(PLAN).Output(
                    "plan", display_name="plan", tooltip="For Insight Embedding and IP-Adapter Bridge."
                ),
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="Where the model says the edit takes place; empty if it does not say.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        mllm: Any,
        image: Any,
        instruction: str,
        seed: int,
        max_new_tokens: int,
        temperature: float,
        designer: str = DESIGNERS[0],
        share_prefix: bool = True,
    ) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_designers import as_typed
        from ..mindedit_core.hosts.comfy_mllm import region_masks
        from ..mindedit_core.hosts.comfy_text_clip import as_writer
        from ..mindedit_core.hosts.comfy_ui import say, stream_to
        from ..mindedit_core.prompts import check_instruction

        node_id = cls.hidden.unique_id
        with blame(NODE_ID, "instruction"):
            plan = as_typed(image, instruction) if designer == DESIGNERS[1] else None
            plan or check_instruction(instruction)
        with blame(NODE_ID, "mllm"):
            writer = as_writer(mllm) if plan is None else None
        with blame(NODE_ID, "image and instruction"):
            how = {} if share_prefix or not hasattr(writer, "template") else {"share_prefix": False}
            plan = plan or writer.design(
                image,
                instruction,
                seed=seed,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                on_token=stream_to(node_id),
                **how,
            )
        text = plan.text if isinstance(plan.text, str) else "\n".join(plan.text)
        shown = f"{text}\n\n({plan.note})" if plan.note else text
        say(node_id, shown)
        return io.NodeOutput(text, plan, region_masks(plan, *image.shape[1:3]), ui=ui.PreviewText(shown))
