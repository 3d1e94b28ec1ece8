"""First stage of the mini's MLLM: its SigLIP tower learns to see, slot by slot.

    python -m train.tower --steps 3500               # about 12 minutes on one core of a small CPU
    expected: 98 % of unseen slots right

A published SigLIP comes pre-trained on a billion captioned pictures; ours reads the scene graph through heads that are
thrown away afterwards. The tower's patches (6x6) are averaged per slot (2x2) for those heads.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mindedit_core.backbones.mini_config import mini_config
from train.common import Losses, Run, Schedule, arguments, fit, on_device, schedule_of
from train.data import scenes, slot_labels
from train.slots import SlotReader, reading_accuracy, reading_losses
from train.tiles import tiles
from train.words import tokenizer


class Tower(nn.Module):
    """SigLIP and the heads that teach it."""

    def __init__(self):
        super().__init__()
        from transformers import SiglipVisionModel

        config = mini_config(tokenizer()).vision_config
        self.siglip = SiglipVisionModel(config)
        self.reader = SlotReader(config.hidden_size)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        states = self.siglip(pixel_values, output_hidden_states=True).hidden_states[-1]
        grid = rearrange(states, "b (h w) d -> b h w d", h=6)
        slots = reduce(grid, "b (h 2) (w 2) d -> b (h w) d", "mean")
        return self.reader(slots, states.mean(1))


def batches(schedule: Schedule):
    def batch_of(step: int) -> dict:
        batch = scenes(schedule.seed + 1, step, schedule.batch_size)
        return {"pixel_values": tiles(batch), "labels": slot_labels(batch)}
    return batch_of


@torch.no_grad()
def validate(tower: Tower) -> dict[str, float]:
    batch = scenes(2**20, 0, 256)
    return reading_accuracy(tower(on_device(tiles(batch))), on_device(slot_labels(batch)))


def main() -> None:
    options = arguments(__doc__, Schedule(steps=3500, learning_rate=1.5e-3, batch_size=64, ema=0.998))
    if options.warm:
        raise SystemExit("train.tower ships no file of its own to go on from; train.mllm --warm trains the tower on")
    schedule = schedule_of(options)
    torch.manual_seed(schedule.seed)
    tower = Tower()
    run = Run(options.runs / "tower", tower, schedule)

    def losses(batch: dict) -> Losses:
        return reading_losses(tower(batch["pixel_values"]), batch["labels"])

    tower = fit(run, batches(schedule), losses, validate)
    torch.save(tower.siglip.state_dict(), options.runs / "tower" / "siglip.pt")
    print(validate(tower))


if __name__ == "__main__":
    main()
