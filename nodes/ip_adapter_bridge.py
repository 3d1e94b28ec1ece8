"""IP-Adapter Bridge: plan and insight -> the host's own MODEL and CONDITIONING, ready for any sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..mindedit_core.hosts import comfy_folders
from .errors import blame
from .schema import node_schema
from .sockets import INSIGHT, IPADAPTER, PLAN

NODE_ID = "MindEditIPAdapterBridge"
SANA_READS = "this SANA reads {} states; negative text, λ, start, end and adapter have no effect on it"


class IPAdapterBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="Gives text and visual insight to the painter: the text as conditioning, the insight through a "
            "stock IP-Adapter on a clone of the model. The outputs fit any sampler. A SANA reads the insight's states, "
            "and of this node nothing else.",
            search_aliases=["ipadapter", "MIND-Edit", "decoupled attention"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Stable Diffusion checkpoint, or the mini: a clone of it is patched. Or a SANA from "
                    "Painter Loader, which reads the insight's states and needs nothing else here.",
                ),
                io.Clip.Input("clip", tooltip="Its text encoder, from Painter Loader too: a SANA ignores it."),
                io.Custom(INSIGHT).Input("insight", tooltip="From Insight Embedding."),
                io.Custom(PLAN).Input("plan", tooltip="From Instruction Optimizer: its text becomes the prompt."),
                io.String.Input(
                    "negative_text",
                    multiline=True,
                    default="",
                    placeholder="what to stay away from",
                    tooltip="What the picture should not show. Empty is fine. A SANA does not read it.",
                ),
                io.Float.Input(
                    "insight_scale",
                    display_name="λ insight scale",
                    default=1.0,
                    min=-1.0,
                    max=5.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Weight of the visual insight; 1 is the paper's, 0 is off and leaves the model as it was. "
                    "Without effect on a SANA.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="Where in the sampling the insight sets in, as a fraction; 0 is the first step. Without "
                    "effect on a SANA.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="Where in the sampling the insight ends, as a fraction; 1 is the last step. Without effect "
                    "on a SANA.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=comfy_folders.list_ip_adapters(),
                    default=comfy_folders.MINI,
                    tooltip="An IP-Adapter file from models/ipadapter made for this base model and for what the "
                    "insight is (one embedding: base; states: plus, full-face), or the mini's. A SANA takes none."
                    + "".join(f"\n{found}" for found in comfy_folders.found_ip_adapters()),
                ),
                io.Custom(IPADAPTER).Input(
                    "ipadapter",
                    optional=True,
                    tooltip="An adapter already loaded, from MindEdit Mini Loader or IPAdapter_plus; used instead "
                    "of the one chosen below.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The clone that sees the insight."),
                io.Conditioning.Output("positive", display_name="positive", tooltip="The optimised text."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="The negative text."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, adapter: str | None = None) -> bool | str:
        try:
            if adapter is not None:  # None: it comes through a link
                comfy_folders.require_ip_adapter(adapter)
        except (FileNotFoundError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None, **_: Any) -> str:
        return "" if adapter is None else comfy_folders.fingerprint("ip_adapter", adapter)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        insight: Any,
        plan: Any,
        negative_text: str,
        insight_scale: float,
        start: float,
        end: float,
        adapter: str,
        ipadapter: Any = None,
    ) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_sana import conditioning, painter_of
        from ..mindedit_core.hosts.comfy_ui import say

        if (painter := painter_of(model)) is not None:
            with blame(NODE_ID, "model and insight"):
                positive, negative = conditioning(painter, insight)
            said = SANA_READS.format(positive[0][0].shape[1])
            say(cls.hidden.unique_id, said)
            return io.NodeOutput(model, positive, negative, ui=ui.PreviewText(said))
        from ..mindedit_core.hosts.comfy_adapter import attach, load_adapter
        from ..mindedit_core.hosts.comfy_text import encode_prompt

        with blame(NODE_ID, f"adapter ({adapter})" if ipadapter is None else "ipadapter"):
            source = comfy_folders.resolve_ip_adapter(adapter) if ipadapter is None else ipadapter
            handle = load_adapter(source)
        with blame(NODE_ID, "model, insight, adapter, start and end"):
            patched = attach(model, handle, insight, scale=insight_scale, start=start, end=end)
        with blame(NODE_ID, "clip"):
            positive = encode_prompt(clip, plan.text)
            negative = encode_prompt(clip, negative_text, emphasis=True)
        if insight.image_embeds is not None:
            return io.NodeOutput(patched, positive, negative)
        said = f"text only: {insight.note or 'the insight holds no CLIP embedding'}"
        say(cls.hidden.unique_id, said)
        return io.NodeOutput(patched, positive, negative, ui=ui.PreviewText(said))
