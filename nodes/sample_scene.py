"""Sample Scene: a drawn picture with a wish for it, from the world on which the mini was trained."""

from __future__ import annotations

from comfy_api.latest import io, ui

from .errors import blame
from .schema import node_schema

NODE_ID = "MindEditSampleScene"


class SampleScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..mindedit_core.hosts.comfy_scene import operations

        return node_schema(
            NODE_ID,
            description="Draws a scene of 1 to 5 things and a vague wish for it, to try the mini on. The wish has "
            "exactly one right answer.",
            search_aliases=["MindEdit example", "demo picture", "toy scene"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=2**31,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Which scene. The mini was trained on seeds below 2147483648 and has seen none above.",
                ),
                io.Combo.Input(
                    "operation", options=operations(), default="any", tooltip="What the wish asks for; 'any' draws one."
                ),
                io.Int.Input(
                    "edits",
                    default=1,
                    min=1,
                    max=4,
                    tooltip="How many things the wish asks for at once; from 2 on the operations are drawn.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The picture, 128x128."),
                io.Mask.Output(
                    "mask", display_name="mask", tooltip="Where it has to change: the slots that the edit touches."
                ),
                io.String.Output(
                    "instruction", display_name="instruction", tooltip="The wish, for Instruction Optimizer."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, seed: int, operation: str, edits: int) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_scene import sample_scene
        from ..mindedit_core.hosts.comfy_ui import say

        with blame(NODE_ID, "seed, operation and edits"):
            image, mask, instruction = sample_scene(seed, operation=operation, edits=edits)
        say(cls.hidden.unique_id, instruction)
        return io.NodeOutput(image, mask, instruction, ui=ui.PreviewText(instruction))
