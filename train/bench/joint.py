"""What the joint recipe needs at full size: LLaVA-OneVision-0.5B and CLIP ViT-H by their shapes, random weights.

    python -m train.bench.joint --steps 3 --batch-size 1

Prints seconds a step, samples a second and peak memory, on an accelerator if there is one. Pictures are 384 pixels wide
(one tile beside the base view, 1,485 image tokens); every sample is encoded anew, as in a first epoch without a cache.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.backbones.mini_tokenizer import END, IMAGE, PAD
from train import checkpoints
from train.clip_target import ClipTarget, image_processor_class
from train.examples import Endless, batches
from train.loop import device, total
from train.mind_edit import PRESETS, Student
from train.records import EditRecord
from train.words import tokenizer

SIDE = 384
CLIP = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"}
TEXT = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 152000, "tie_word_embeddings": True}
VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
          "image_size": SIDE, "patch_size": 14, "vision_use_head": False}


def llava() -> LlavaOnevision:
    """The shapes of llava-onevision-qwen2-0.5b-ov-hf, spoken to in the mini's words."""
    words = tokenizer()
    ids = {name: words.convert_tokens_to_ids(token) for name, token in (("pad", PAD), ("eos", END), ("image", IMAGE))}
    text = Qwen2Config(**TEXT, pad_token_id=ids["pad"], eos_token_id=ids["eos"])
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION), text_config=text, image_token_id=ids["image"],
        image_token_index=ids["image"], image_grid_pinpoints=[[SIDE, SIDE]], tie_word_embeddings=True)
    with torch.device(device()):
        model = LlavaOnevisionForConditionalGeneration(config).to(torch.bfloat16).eval()
    return LlavaOnevision(model, words, template="mini", mllm_id="random-0.5b")


def clip() -> ClipTarget:
    with torch.device(device()):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP)).to(torch.bfloat16)
    processor = image_processor_class()(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    return ClipTarget(model, "random-vit-h", processor=processor)


def large(record: EditRecord) -> EditRecord:
    """A record of the world at full size."""
    source, target = (np.asarray(Image.fromarray(picture).resize((SIDE, SIDE))) for picture in
                      (record.source, record.target))
    return replace(record, source=source, target=target, mask=None)


def peak() -> float:
    """GB."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = replace(PRESETS["llava-0.5b"], cache=None, batch_size=options.batch_size)
    student = Student(llava(), clip(), config).to(device())
    print(f"{sum(p.numel() for p in student.parameters()) / 1e6:.0f} M parameters, "
          f"{sum(p.numel() for p in checkpoints.trained(student).values()) / 1e6:.1f} M of them trained; "
          f"{peak():.1f} GB with all weights in memory, on {device()}")
    world = Endless(0, options.batch_size, 0)
    batch_of = batches(lambda number: [large(record) for record in world.rows(number)], student.encoder.find)
    optimizer = torch.optim.AdamW(checkpoints.trained(student).values(), config.learning_rate)
    taken = [step(student, optimizer, batch_of(number)) for number in range(options.steps + 1)][1:]
    seconds = sum(taken) / len(taken)
    print(f"{seconds:.1f} s a step, {options.batch_size / seconds:.2f} samples/s, {peak():.1f} GB at the peak")


def step(student: Student, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    started = time.perf_counter()
    with torch.autocast(device().type, torch.bfloat16):
        loss = total(student(batch))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
