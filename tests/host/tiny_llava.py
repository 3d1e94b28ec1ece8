"""A tiny LLaVA-OneVision folder in the published layout, sharded, of random weights; and MIND-Edit adapters for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from mindedit_core.backbones.adapter_files import save_adapter
from mindedit_core.systems.tiny import tiny_mind_edit

CHAT = (
    "{% for m in messages %}<|user|>{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "<|assistant|>"
)


def write_llava(
    folder: Path, parts: dict[str, Any], dtype: torch.dtype = torch.bfloat16, shard: str = "60KB"
) -> Path:
    """parts: of `tiny_parts()`. The folder gets config, shards with their index, tokenizer and chat template."""
    model = copy.deepcopy(parts["mllm"]).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    parts["tokenizer"].save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def write_adapter(path: Path, parts: dict[str, Any], seed: int) -> Path:
    """A random LoRA and VisionHead for that folder; another seed is another adapter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = tiny_mind_edit(parts["mllm"])
    return save_adapter(path, adapter.pairs, adapter.head, {**adapter.config, "prompt": "mind_edit"})
