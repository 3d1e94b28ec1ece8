"""MindEdit Mini Loader: every part of the built-in mini, each as the host's own type."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..mindedit_core.hosts import comfy_folders
from .errors import blame
from .schema import node_schema
from .sockets import IPADAPTER, MLLM

NODE_ID = "MindEditMiniLoader"


class MiniLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="Loads the small models that come with MindEdit: nothing to download, a CPU needs seconds. "
            "They know the drawn 128x128 scenes of Sample Scene, not photographs.",
            search_aliases=["MindEdit demo", "built-in model", "MIND-Edit"],
            inputs=[
                io.Combo.Input(
                    "painter",
                    options=["inpaint", "img2img"],
                    default="inpaint",
                    tooltip="inpaint repaints a mask and sees what surrounds it; img2img repaints the whole picture "
                    "without a mask, as in the paper.",
                )
            ],
            outputs=[
                io.Custom(MLLM).Output(
                    "mllm", display_name="mllm", tooltip="Reads picture and wish, with its trained insight head."
                ),
                io.Model.Output(
                    "model", display_name="model", tooltip="The painter: the host's own UNet with the mini's weights."
                ),
                io.Clip.Output("clip", display_name="clip", tooltip="The painter's text encoder."),
                io.Vae.Output("vae", display_name="vae", tooltip="Picture 128x128 to latent 16x8x8 and back."),
                io.Custom(IPADAPTER).Output(
                    "ipadapter", display_name="ipadapter", tooltip="The mini's IP-Adapter, for IP-Adapter Bridge."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        return comfy_folders.fingerprint("mini", comfy_folders.MINI)

    @classmethod
    def execute(cls, painter: str) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_mini import load_mini

        with blame(NODE_ID, "painter"):
            return io.NodeOutput(*load_mini(painter))
