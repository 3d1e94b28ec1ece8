"""What carrying the states saves: T_opt and v_insight from one generation, beside reading the plan a second time.

    python -m train.bench.reading --system mini      # or the folder of a system

Prints seconds (median over pictures, in turns within one run) and their ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import torch

from mindedit_core import load_system
from mindedit_core.scenes import EVALUATION_SEEDS, sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="mini")
    parser.add_argument("--pictures", type=int, default=8)
    options = parser.parse_args()
    system = load_system(options.system)
    carried, reread = [], []
    for number in range(options.pictures + 1):
        item = sample(EVALUATION_SEEDS + number)
        image = torch.from_numpy(item.source_image.copy())[None].float() / 255
        started = time.perf_counter()
        plan = system.designer.design(image, item.instruction)
        designed = time.perf_counter()
        system.mllm.encode(image, plan)
        encoded = time.perf_counter()
        system.mllm.encode(image, dataclasses.replace(plan, states=None))
        carried.append(encoded - started)
        reread.append(designed - started + time.perf_counter() - encoded)
    one, two = statistics.median(carried[1:]), statistics.median(reread[1:])  # the first warms up
    print(f"one reading  {one:.3f} s\nread again   {two:.3f} s   {two / one:.2f} x")


if __name__ == "__main__":
    main()
