"""What Draw-In-Mind saves here against its published code: padding, a second MLLM, a second reading of the picture.

    python -m train.bench.dim                        # shapes of full size, random weights, few of the blocks

Each pair is measured side by side in one run, in turns, and the ratio is what counts: a step of SANA with the text's
own length and with 8,192 padded tokens under a mask (the outputs are compared); an MLLM that designs and is read from
one prefill of the picture, and two that read it once each. Bytes are those of the whole models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mindedit_core.backbones.qwen2_5_vl import Qwen25VL
from mindedit_core.backbones.qwen_mini import END, IMAGE, VIDEO, VISION_END, VISION_START
from mindedit_core.blueprint import blueprint_prompt
from train.loop import device
from train.words import qwen_tokenizer

PADDED, BLUEPRINT = 8192, 400  # tokens: of the published code; of a blueprint, as its GPT-4o writes them
SANA = {"in_channels": 64, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32,
        "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
        "caption_channels": 2304, "sample_size": 32, "qk_norm": "rms_norm_across_heads"}
TEXT = {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2,
        "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
VISION = {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
WORDS = 151936  # of the published vocabulary
LAYERS, DEPTH, BLOCKS = 36, 32, 20  # of the language model, its vision tower, and SANA


def sana(blocks: int) -> nn.Module:
    with torch.device(device()):
        model = SanaTransformer2DModel(**SANA, num_layers=blocks)
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def qwen(layers: int, depth: int, words: int) -> nn.Module:
    """Qwen2.5-VL-3B's shapes, spoken to in the mini's words."""
    token = qwen_tokenizer().convert_tokens_to_ids
    vision = {**VISION, "depth": depth, "fullatt_block_indexes": [depth - 1]}
    special = {"image_token_id": token(IMAGE), "video_token_id": token(VIDEO),
               "vision_start_token_id": token(VISION_START), "vision_end_token_id": token(VISION_END)}
    text = {**TEXT, "num_hidden_layers": layers, "vocab_size": words, "bos_token_id": None, "eos_token_id": token(END)}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special)
    return Qwen2_5_VLForConditionalGeneration(config)


def size(model: nn.Module) -> int:
    """Bytes in bfloat16, ties once."""
    return 2 * sum(parameter.numel() for parameter in model.parameters())


def whole_sizes() -> tuple[int, int]:
    """Bytes of MLLM and SANA at full depth, counted without memory."""
    with torch.device("meta"):
        return size(qwen(LAYERS, DEPTH, WORDS)), size(SanaTransformer2DModel(**SANA, num_layers=BLOCKS))


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    found = work()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def side_by_side(
    one: Callable[[], Tensor], other: Callable[[], Tensor], rounds: int
) -> tuple[float, float, Tensor, Tensor]:
    """The best time of each, taken in turns, and what they gave."""
    both = [(timed(one), timed(other)) for _ in range(rounds)]
    first, second = (min(pair[side][0] for pair in both) for side in (0, 1))
    return first, second, both[0][0][1], both[0][1][1]


@torch.no_grad()
def padding(blocks: int, rounds: int) -> None:
    """A step with guidance: two rows, 32 x 32 latents."""
    model, length = sana(blocks), 37 * 37 + 2 + BLUEPRINT
    x = torch.randn(2, 64, 32, 32, device=device(), dtype=torch.bfloat16)
    tokens = torch.randn(2, length, 2304, device=device(), dtype=torch.bfloat16)
    padded = torch.cat([tokens, torch.zeros(2, PADDED - length, 2304).to(tokens)], 1)
    mask = (torch.arange(PADDED, device=device()) < length).expand(2, -1).to(tokens)
    timestep = torch.tensor([500, 500], device=device())
    short, long, ours, theirs = side_by_side(
        lambda: model(x, tokens, timestep).sample,
        lambda: model(x, padded, timestep, encoder_attention_mask=mask).sample, rounds)
    gap = (ours - theirs).float().abs().mean() / theirs.float().abs().mean()
    print(f"SANA, {blocks} of {BLOCKS} blocks, one guided step: {length} tokens {short:.2f} s, {PADDED} padded "
          f"{long:.2f} s, {long / short:.1f} times as long; outputs differ by {gap:.1%} (bfloat16)")


@torch.no_grad()
def readings(layers: int, depth: int, rounds: int) -> None:
    """What is prefilled before the first word of a blueprint, and for the painter's states."""
    model = qwen(layers, depth, len(qwen_tokenizer())).to(device(), torch.bfloat16).eval().requires_grad_(False)
    mllm = Qwen25VL(model, qwen_tokenizer(), mllm_id="bench")
    picture = torch.rand(1, 1024, 1024, 3)
    asked, blueprint = blueprint_prompt("make the cat blue"), "a small red cat at the top left " * (BLUEPRINT // 8)

    def once() -> Tensor:
        reading = mllm.read(picture)
        mllm.write(reading, asked, max_new_tokens=1)
        return mllm.turn(reading, blueprint).hidden

    def twice() -> Tensor:
        mllm.write(mllm.read(picture), asked, max_new_tokens=1)
        return mllm.turn(mllm.read(picture), blueprint).hidden

    one, two, ours, theirs = side_by_side(once, twice, rounds)
    before, rest = len(mllm.read(picture).prefix.ids), len(mllm.text_ids(asked)) + len(mllm.text_ids(blueprint))
    gap = (ours - theirs).float().abs().max()
    print(f"Qwen2.5-VL-3B, {layers} of {LAYERS} layers: picture read once {one:.2f} s and {before + rest} tokens "
          f"prefilled, twice {two:.2f} s and {2 * before + rest} tokens, {two / one:.1f} times as long; "
          f"states differ by {gap:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1, help=f"of SANA, up to {BLOCKS}")
    parser.add_argument("--layers", type=int, default=2, help=f"of the language model, up to {LAYERS}")
    parser.add_argument("--depth", type=int, default=2, help=f"of the vision tower, up to {DEPTH}")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    mllm, painter = whole_sizes()
    print(f"weights in bfloat16: one MLLM {(mllm + painter) / 1e9:.1f} GB, two {(2 * mllm + painter) / 1e9:.1f} GB")
    padding(options.blocks, options.rounds)
    readings(options.layers, options.depth, options.rounds)


if __name__ == "__main__":
    main()
