"""What MLLM Loader and MLLM Adapter have in common: how strong the LoRA is, and the MLLM that comes out."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import MLLM


def lora_strength(**more: Any) -> io.Float.Input:
    return io.Float.Input(
        "lora_strength",
        default=1.0,
        min=-2.0,
        max=2.0,
        step=0.05,
        round=0.001,
        tooltip="Of the adapter's LoRA; 1 is as it was trained, 0 leaves the language model as it was.",
        **more,
    )


def mllm_output() -> io.Output:
    told = "For Instruction Optimizer and Insight Embedding."
    return io.Custom(MLLM).Output("mllm", display_name="mllm", tooltip=told)
