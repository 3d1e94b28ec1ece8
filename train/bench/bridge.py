"""What the IP-Adapter costs a step: our bridge beside diffusers' own and the bare UNet, in turns within one run.

    python -m train.bench.bridge                       # SD1.5's layout, a quarter of its width, 32x32 latents

Prints seconds per UNet call (median over rounds) and ratios to the bare UNet. Ours projects the image tokens' keys and
values once a run; diffusers projects them at every call.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from diffusers import UNet2DConditionModel

from mindedit_core.bridges.ip_adapter import IPAdapter

WIDTHS = (80, 160, 320, 320)


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    sizes = {"block_out_channels": WIDTHS, "norm_num_groups": 16}
    return UNet2DConditionModel(**sizes, cross_attention_dim=768, attention_head_dim=8)


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    plain, theirs = unet().eval(), unet().eval()
    adapter = IPAdapter.for_unet(plain, embed_dim=1024).eval()
    nested = {part: {key.removeprefix(f"{part}."): value for key, value in adapter.state_dict().items()
                     if key.startswith(part)} for part in ("image_proj", "ip_adapter")}
    theirs._load_ip_adapter_weights([nested])
    latents, text, embeds = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 768), torch.randn(2, 1024)
    added = {"image_embeds": [embeds[:, None]]}
    taken: dict[str, list[float]] = {"bare UNet": [], "ours": [], "diffusers": []}
    with_ours = unet().eval()
    with adapter.attached(with_ours, image_tokens=adapter.project(embeds)):
        for _ in range(rounds + 1):
            taken["bare UNet"].append(seconds(lambda: plain(latents, 500, text)))
            taken["ours"].append(seconds(lambda: with_ours(latents, 500, text)))
            taken["diffusers"].append(seconds(lambda: theirs(latents, 500, text, added_cond_kwargs=added)))
    bare = statistics.median(taken["bare UNet"][1:])  # the first round warms up
    for name, values in taken.items():
        print(f"{name:10} {statistics.median(values[1:]):.3f} s   {statistics.median(values[1:]) / bare:.3f} x bare")


if __name__ == "__main__":
    main()
