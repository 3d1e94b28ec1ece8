"""Draw-In-Mind at full size, random weights in bf16: Qwen2.5-VL-3B's folder and a published model.safetensors.

python full_size_dim.py COMFYUI MODELS      MODELS/LLM and MODELS/diffusion_models, 11 GB, written tensor by tensor
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # this pack

from mindedit_core.backbones.qwen_mini import CHAT
from mindedit_core.dim.files import NULL, TRANSFORMER, metadata_of
from mindedit_core.painters.sana_files import DC_AE
from mindedit_core.streamed import Streamed, save_streamed

QWEN, PAINTER, VAE = "Qwen2.5-VL-3B-Instruct", "dim_edit.safetensors", "dc-ae-f32c32-sana-1.1-diffusers"
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
SPECIALS += ["<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"]
SPECIALS += ["<|video_pad|>"]
TEXT = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "max_position_embeddings": 128000, "tie_word_embeddings": True, "eos_token_id": 151645,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}  # fmt: skip
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
          "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}  # fmt: skip
SANA = {"in_channels": 64, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
        "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
        "caption_channels": 2304, "sample_size": 32, "qk_norm": "rms_norm_across_heads"}  # fmt: skip
TOKENS, TOKEN_DIM, HIDDEN = 8192, 2304, 2048


def qwen_config() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=True)


def streamed(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, Streamed]]:
    """Random bf16 tensors of a model without memory: norms 1, biases 0, matrices that keep the variance."""
    for number, (key, tensor) in enumerate(model.state_dict().items()):
        if key != "lm_head.weight":
            yield prefix + key, Streamed(torch.bfloat16, tuple(tensor.shape), drawn(key, tuple(tensor.shape), number))


def drawn(key: str, shape: tuple[int, ...], seed: int):
    def make() -> torch.Tensor:
        if len(shape) == 1:
            return (torch.zeros if key.endswith("bias") else torch.ones)(shape, dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(seed)
        fan = torch.Size(shape[1:]).numel()
        return (torch.randn(shape, generator=generator) * fan**-0.5).to(torch.bfloat16)

    return make


def write_qwen(comfyui: Path, models: Path) -> Path:
    """models/LLM/Qwen2.5-VL-3B-Instruct: 3.75 billion parameters in one file."""
    folder = models / "LLM" / QWEN
    config = qwen_config()
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    save_streamed(folder / "model.safetensors", dict(streamed(model)), {})
    config.save_pretrained(folder)
    found = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
    tokenizer = Qwen2Tokenizer(str(found / "vocab.json"), str(found / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    tokenizer.chat_template, tokenizer.eos_token, tokenizer.pad_token = CHAT, "<|im_end|>", "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    return folder


def write_painter(models: Path) -> Path:
    """A painter in models/diffusion_models, as `mindedit convert dim` writes it, and a DC-AE in models/diffusers."""
    with torch.device("meta"):
        sana = SanaTransformer2DModel(**SANA)
    tensors = dict(streamed(sana, TRANSFORMER))
    for name, shape in (("0", (TOKEN_DIM, HIDDEN)), ("2", (TOKEN_DIM, TOKEN_DIM))):
        for key, size in (("weight", shape), ("bias", shape[:1])):
            tensors[f"projector.{name}.{key}"] = Streamed(torch.bfloat16, size, drawn(key, size, 7))
    tensors[NULL] = Streamed(torch.bfloat16, (TOKENS, TOKEN_DIM), drawn("null", (TOKENS, TOKEN_DIM), 8))
    metadata = metadata_of({"transformer": SANA, "hidden_size": HIDDEN, "flow_shift": 3.0})
    path = save_streamed(models / "diffusion_models" / PAINTER, tensors, metadata)
    torch.manual_seed(9)
    AutoencoderDC.from_config(DC_AE).to(torch.bfloat16).save_pretrained(models / "diffusers" / VAE)
    return path


if __name__ == "__main__":
    write_qwen(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write(json.dumps({"painter": str(write_painter(Path(sys.argv[2])))}) + "\n")
