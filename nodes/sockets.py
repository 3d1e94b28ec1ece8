"""Names that saved workflows depend on: socket types, node ids, and each node's inputs and outputs in order.

Host-free, so that workflow files are checked without a ComfyUI. Append only: a widget's position is its name in a
saved workflow. `tests/golden/node_ids.json` holds the published list.
"""

from __future__ import annotations

from typing import NamedTuple

MLLM = "MINDEDIT_MLLM"
PLAN = "MINDEDIT_PLAN"
INSIGHT = "MINDEDIT_INSIGHT"
EMBEDS = "EMBEDS"  # IPAdapter_plus: float[B, Dc]
IPADAPTER = "IPADAPTER"  # IPAdapter_plus: {"image_proj": {...}, "ip_adapter": {...}}

CATEGORY = "MindEdit"


class Sockets(NamedTuple):
    """What a node is called and what goes in and out, in order: required inputs, then optional ones."""

    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


NODES = {
    "MindEditMLLMLoader": Sockets("MLLM Loader", ("model", "adapter", "dtype", "lora_strength"), ("mllm",)),
    "MindEditMLLMAdapter": Sockets("MLLM Adapter", ("mllm", "adapter", "lora_strength"), ("mllm",)),
    "MindEditInstructionOptimizer": Sockets(
        "Instruction Optimizer",
        (
            *("mllm", "image", "instruction", "seed", "max_new_tokens", "temperature"),
            *("designer", "share_prefix"),
        ),
        ("text", "plan", "mask"),
    ),
    "MindEditInsightEmbedding": Sockets(
        "Insight Embedding", ("mllm", "image", "plan"), ("insight", "positive_embeds", "negative_embeds")
    ),
    "MindEditIPAdapterBridge": Sockets(
        "IP-Adapter Bridge",
        ("model", "clip", "insight", "plan", "negative_text", "insight_scale", "start", "end", "adapter", "ipadapter"),
        ("model", "positive", "negative"),
    ),
    "MindEditEditSampler": Sockets(
        "Edit Sampler",
        (
            *("model", "positive", "negative", "vae", "image"),
            *("seed", "steps", "cfg", "sampler_name", "scheduler", "strength", "composite", "mask"),
            *("image_guidance_scale", "framing"),
        ),
        ("image", "latent"),
    ),
    "MindEditMiniLoader": Sockets("MindEdit Mini Loader", ("painter",), ("mllm", "model", "clip", "vae", "ipadapter")),
    "MindEditSampleScene": Sockets("Sample Scene", ("seed", "operation", "edits"), ("image", "mask", "instruction")),
    "MindEditPainterLoader": Sockets("Painter Loader", ("painter", "vae", "dtype"), ("model", "clip", "vae")),
    "MindEditPainterLoRA": Sockets("Painter LoRA", ("model", "lora", "strength"), ("model",)),
    "MindEditFlowSampler": Sockets("Flow Sampler", ("model", "steps", "strength"), ("sampler", "sigmas")),
    "MindEditEndpointDesigner": Sockets("Endpoint Designer", ("base_url", "model", "timeout"), ("designer",)),
    "MindEditTextInsight": Sockets("Text Insight", ("mllm", "text"), ("insight", "plan")),
}
