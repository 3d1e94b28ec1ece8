"""A folder shaped as llava-onevision-qwen2-0.5b-ov-hf and a MIND-Edit adapter for it, both of random weights.

python full_size_mllm.py COMFYUI MODELS        MODELS/LLM and MODELS/mindedit, 2 GB in bf16; run by the host's Python
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # this pack

from mindedit_core.backbones.adapter_files import save_adapter
from mindedit_core.backbones.lora import LoraPair
from mindedit_core.backbones.vision_head import VisionHead

LLAVA, HEAD = "llava-onevision-qwen2-0.5b-ov-hf", "random.safetensors"
HIDDEN, LAYERS, LAYER, CLIP_DIM = 896, 24, 18, 1024  # insights are read at LAYER, in ViT-H's space
SPECIALS = {"bos_token_id": 151643, "eos_token_id": 151645}
IMAGES = {"image_token_index": 151646, "image_token_id": 151646, "video_token_index": 151647, "video_token_id": 151647}


def vision() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )


def text() -> Qwen2Config:
    return Qwen2Config(
        hidden_size=HIDDEN,
        intermediate_size=4864,
        num_hidden_layers=LAYERS,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=152000,
        tie_word_embeddings=True,
        **SPECIALS,
    )


def config() -> LlavaOnevisionConfig:
    sides = [384 * count for count in range(1, 7)]
    return LlavaOnevisionConfig(
        vision_config=vision(),
        text_config=text(),
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[list(pair) for pair in product(sides, sides)],
        tie_word_embeddings=True,
        **IMAGES,
    )


def qwen_tokenizer(comfyui: Path) -> Qwen2Tokenizer:
    """The vocabulary that the host brings for its Qwen encoders, with LLaVA-OneVision's special tokens."""
    found = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
    tokenizer = Qwen2Tokenizer(str(found / "vocab.json"), str(found / "merges.txt"))
    specials = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", *specials]) == [151643, 151644, 151645, 151646, 151647]
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def write_llava(comfyui: Path, models: Path) -> Path:
    """models/LLM/llava-onevision-qwen2-0.5b-ov-hf: 0.9 billion parameters in bf16, in several shards."""
    folder = models / "LLM" / LLAVA
    torch.manual_seed(2)
    model = LlavaOnevisionForConditionalGeneration(config()).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="700MB")
    qwen_tokenizer(comfyui).save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def write_head(models: Path) -> str:
    """models/mindedit/random.safetensors: a LoRA on q_proj and v_proj, and a VisionHead into ViT-H's space."""
    generator = torch.Generator().manual_seed(3)

    def pair(rows: int) -> LoraPair:
        down, up = (torch.randn(shape, generator=generator) for shape in ((8, HIDDEN), (rows, 8)))
        return LoraPair(0.02 * down, 0.02 * up, 8.0)

    layers = [f"model.language_model.layers.{layer}.self_attn" for layer in range(LAYERS)]
    pairs = {f"{layer}.{name}": pair(rows) for layer in layers for name, rows in (("q_proj", HIDDEN), ("v_proj", 128))}
    settings = {"mllm": "random", "hidden_size": HIDDEN, "num_layers": LAYERS, "layer": LAYER, "prompt": "mind_edit"}
    settings |= {"clip_space": {"name": "vit-h", "dim": CLIP_DIM}, "rank": 8, "alpha": 8.0}
    save_adapter(models / "mindedit" / HEAD, pairs, VisionHead(HIDDEN, CLIP_DIM), settings)
    return HEAD


if __name__ == "__main__":
    write_llava(Path(sys.argv[1]), Path(sys.argv[2]))
    write_head(Path(sys.argv[2]))
