"""Edit Sampler: the host's own encoding, sampling and decoding in one node, with the source kept outside the mask."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..mindedit_core.painters.framing import FRAMINGS
from .errors import blame
from .schema import node_schema

NODE_ID = "MindEditEditSampler"


class EditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..mindedit_core.hosts.comfy_sampler import samplers

        sampler_names, schedulers = samplers()
        return node_schema(
            NODE_ID,
            description="Paints the edit. Equal to VAE Encode (or InpaintModelConditioning, or for InstructPix2Pix and "
            "CosXL-edit their conditioning with a DualCFGGuider), KSampler and VAE Decode, but takes any picture size "
            "and puts the source back outside the mask, to the pixel.",
            search_aliases=["inpaint", "img2img", "MIND-Edit", "ksampler", "instructpix2pix", "cosxl", "sdxl", "sana"],
            inputs=[
                io.Model.Input("model", tooltip="From IP-Adapter Bridge, or any MODEL."),
                io.Conditioning.Input("positive", tooltip="What the result shows."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.Image.Input("image", tooltip="The picture to be edited, of any size; a batch works."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is repainted, black is kept. Without a mask the whole picture is repainted.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the noise; the same seed gives the same picture.",
                ),
                io.Int.Input(
                    "steps", default=25, min=1, max=1000, tooltip="Sampling steps: more is slower; 20 or 25 is usual."
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely the text is followed; 1 ignores the negative and is twice as fast.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=sampler_names,
                    default="euler",
                    tooltip="As in KSampler. dpm_solver_flow, with the scheduler flow and 30 steps, is Draw-In-Mind's, "
                    "for SANA.",
                ),
                io.Combo.Input(
                    "scheduler", options=schedulers, default="simple", tooltip="As in KSampler; flow is SANA's."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="KSampler's denoise: 1 paints anew, less keeps more of the source, 0 returns the source.",
                ),
                io.Boolean.Input(
                    "composite",
                    default=True,
                    label_on="source kept outside the mask",
                    label_off="as decoded",
                    tooltip="Put the source back outside the mask, to the pixel. Off shows what was decoded as it is.",
                ),
                io.Float.Input(
                    "image_guidance_scale",
                    optional=True,
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely the source is followed by a MODEL that sees it (InstructPix2Pix, CosXL-edit); "
                    "1 is off and a third faster. Other MODELs do not use it.",
                ),
                io.Combo.Input(
                    "framing",
                    options=list(FRAMINGS),
                    default=FRAMINGS[0],
                    optional=True,
                    advanced=True,
                    tooltip="How a SANA, which paints one resolution, sees the picture. bins: the whole picture, "
                    "stretched a little; pad: its edges repeated to a square; crop: its centre alone, as Draw-In-Mind "
                    "publishes, and the square comes back. Other MODELs take any size.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The edited picture, of the source's size."),
                io.Latent.Output("latent", display_name="latent", tooltip="What was decoded, before compositing."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, positive: Any, negative: Any, vae: Any, image: Any, **settings: Any) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_sampler import edit_sample, require_text, require_vae
        from ..mindedit_core.hosts.comfy_ui import say

        with blame(NODE_ID, "vae"):
            require_vae(model, vae)
        with blame(NODE_ID, "positive and negative"):
            require_text(model, positive, negative)
        with blame(NODE_ID, "image and mask"):
            edited = edit_sample(model, positive, negative, vae, image, **settings)
        if not edited.notes:
            return io.NodeOutput(edited.image, edited.latent)
        said = "\n".join(edited.notes)
        say(cls.hidden.unique_id, said)
        return io.NodeOutput(edited.image, edited.latent, ui=ui.PreviewText(said))
