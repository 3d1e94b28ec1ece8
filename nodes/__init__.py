"""The doors of ComfyUI: the nodes, and the entrypoint that hands them over."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class MindEditExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from ..mindedit_core.hosts.comfy_folders import register
        from .edit_sampler import EditSampler
        from .endpoint_designer import EndpointDesigner
        from .flow_sampler import FlowSampler
        from .insight_embedding import InsightEmbedding
        from .instruction_optimizer import InstructionOptimizer
        from .ip_adapter_bridge import IPAdapterBridge
        from .mini_loader import MiniLoader
        from .mllm_adapter import MLLMAdapter
        from .mllm_loader import MLLMLoader
        from .painter_loader import PainterLoader
        from .painter_lora import PainterLoRA
        from .sample_scene import SampleScene
        from .text_insight import TextInsight

        register()
        return [
            MLLMLoader,
            InstructionOptimizer,
            InsightEmbedding,
            IPAdapterBridge,
            EditSampler,
            MiniLoader,
            SampleScene,
            MLLMAdapter,
            PainterLoader,
            PainterLoRA,
            FlowSampler,
            EndpointDesigner,
            TextInsight,
        ]


async def comfy_entrypoint() -> MindEditExtension:
    """Called by the host once, after it has imported the pack."""
    return MindEditExtension()
