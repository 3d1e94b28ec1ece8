"""Flow Sampler: Draw-In-Mind's solver and noise levels, for the host's SamplerCustom and SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .errors import blame
from .schema import node_schema

NODE_ID = "MindEditFlowSampler"


class FlowSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            NODE_ID,
            description="DPM-Solver++ for flow models, with the noise levels that SANA and Draw-In-Mind publish: the "
            "numbers of diffusers' scheduler from the host's own sampling.",
            search_aliases=["SANA sampler", "DPM-Solver flow", "Draw-In-Mind", "sigmas"],
            inputs=[
                io.Model.Input("model", tooltip="From Painter Loader: its shift is used."),
                io.Int.Input("steps", default=30, min=1, max=1000, tooltip="30 as published."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="KSampler's denoise: below 1 sampling starts from the latent under some noise.",
                ),
            ],
            outputs=[
                io.Sampler.Output("sampler", display_name="sampler", tooltip="For SamplerCustom(Advanced)."),
                io.Sigmas.Output("sigmas", display_name="sigmas", tooltip="For SamplerCustom(Advanced)."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, strength: float) -> io.NodeOutput:
        from ..mindedit_core.hosts.comfy_flow import flow_sampler, flow_sigmas

        with blame(NODE_ID, "model"):
            return io.NodeOutput(flow_sampler(), flow_sigmas(model, steps, strength))
