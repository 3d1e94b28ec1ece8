"""Painter Loader: Draw-In-Mind's SANA -> MODEL, CLIP and VAE of the host's own types."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..mindedit_core.hosts import comfy_dtype
from .errors import blame
from .schema import node_schema

NODE_ID = "MindEditPainterLoader"


class PainterLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..mindedit_core.hosts.comfy_painters import LICENCES, OWN, found_pickles, list_autoencoders, list_painters

        painters = list_painters()
        return node_schema(
            NODE_ID,
            description="Loads a painter that reads the language model's own states: SANA as Draw-In-Mind trained it, "
            f"for edits or for text-to-image. Any sampler paints with it. {LICENCES}",
            search_aliases=["SANA", "Draw-In-Mind", "DIM", "DC-AE", "diffusion model loader"],
            inputs=[
                io.Combo.Input(
                    "painter",
                    options=painters,
                    default=next(iter(painters), None),
                    tooltip="The built-in dim-mini (drawn scenes of 128x128), or from models/diffusion_models: "
                    "model.safetensors of stdKonjac/DIM-4.6B-Edit or -T2I, each in a folder of its own there, or what "
                    "`mindedit convert dim` made of it; or, for text-to-image, a SANA1.5 folder from models/diffusers, "
                    "or a file of `mindedit convert sana`. "
                    + "".join((LICENCES, *(f"\n{found}" for found in found_pickles()))),
                ),
                io.Combo.Input(
                    "vae",
                    options=list_autoencoders(),
                    default=OWN,
                    tooltip="The autoencoder inside the painter's file or folder, or a DC-AE from models/diffusers or "
                    "models/vae (mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers). dim-mini has one of its own.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=[choice for choice in comfy_dtype.CHOICES if choice != comfy_dtype.FP8],
                    default=comfy_dtype.AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="What the painter computes in; as in MLLM Loader. dim-mini is always computed in fp32.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    display_name="model",
                    tooltip="For IP-Adapter Bridge and any sampler. For text-to-image the size is that of the latent, "
                    "of 32 pixels a cell: VAE Encode an Empty Image of the size you want. Empty Latent Image counts 8 "
                    "pixels a cell; the node says what to type there.",
                ),
                io.Clip.Output(
                    "clip",
                    display_name="clip",
                    tooltip="For IP-Adapter Bridge. Draw-In-Mind's painters have no text encoder, they read the "
                    "language model's states; a SANA's is for CLIP Text Encode, from its folder or, for a SANA alone, "
                    "from another SANA's folder under models/diffusers (text_encoder and tokenizer).",
                ),
                io.Vae.Output("vae", display_name="vae", tooltip="Picture to latent and back."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, painter: str | None = None, vae: str | None = None) -> bool | str:
        from ..mindedit_core.hosts.comfy_painters import problem

        return problem(painter, vae) or True

    @classmethod
    def fingerprint_inputs(cls, painter: str | None = None, vae: str | None = None, **_: Any) -> str:
        from ..mindedit_core.hosts.comfy_painters import fingerprint

        return fingerprint(painter, vae)

    @classmethod
    def execute(cls, painter: str, vae: str, dtype: str = comfy_dtype.AUTO) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_painters import describe, load_painter
        from ..mindedit_core.hosts.comfy_ui import say

        with blame(NODE_ID, "painter, vae and dtype"):
            loaded = load_painter(painter, vae, dtype)
        say(cls.hidden.unique_id, describe(loaded.model))
        return io.NodeOutput(*loaded)
