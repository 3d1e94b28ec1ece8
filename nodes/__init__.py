"""The doors of ComfyUI: eight nodes, and the entrypoint that hands them over."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class MindEditExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from ..mindedit_core.hosts.comfy_folders import register
        from .edit_sampler import EditSampler
        from .insight_embedding import InsightEmbedding
        from .instruction_optimizer import InstructionOptimizer
        from .ip_adapter_bridge import IPAdapterBridge
        from .mini_loader import MiniLoader
        from .mllm_adapter import MLLMAdapter
        from .mllm_loader import MLLMLoader
        from .sample_scene import SampleScene

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
        ]


async def comfy_entrypoint() -> MindEditExtension:
    """Called by the host once, after it has imported the pack."""
    return MindEditExtension()
