"""First stage of the mini's MLLM: its SigLIP tower learns to see, slot by slot.

    python -m train.tower                            # about 12 minutes on one core of a small CPU
    expected: 98 % of unseen slots right

A published SigLIP comes pre-trained on a billion captioned pictures; ours reads the scene graph through heads that are
thrown away afterwards. The tower's patches (6x6) are averaged per slot (2x2) for those heads.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mindedit_core.backbones.hf_vlm import give_plain_states
from mindedit_core.backbones.mini_config import mini_config
from train.config import Training, read_config
from train.data import scenes, slot_labels
from train.loop import Losses, Scores, fit, on_device
from train.slots import SlotReader, reading_accuracy, reading_losses
from train.stages import seeded
from train.tiles import tiles
from train.words import tokenizer

PRESETS = {"mini": Training(steps=3500, learning_rate=1.5e-3, batch_size=64, ema=0.998)}


class Tower(nn.Module):
    """SigLIP and the heads that teach it."""

    def __init__(self):
        super().__init__()
        from transformers import SiglipVisionModel

        config = mini_config(tokenizer()).vision_config
        self.siglip = give_plain_states(SiglipVisionModel(config))
        self.reader = SlotReader(config.hidden_size)

    def forward(self, batch: dict) -> Losses:
        return reading_losses(self.read(batch["pixel_values"]), batch["labels"])

    def read(self, pixel_values: Tensor) -> dict[str, Tensor]:
        states = self.siglip(pixel_values, output_hidden_states=True).hidden_states[-1]
        grid = rearrange(states, "b (h w) d -> b h w d", h=6)
        slots = reduce(grid, "b (h 2) (w 2) d -> b (h w) d", "mean")
        return self.reader(slots, states.mean(1))


def batches(config: Training):
    def batch_of(number: int) -> dict:
        batch = scenes(config.seed + 1, number, config.batch_size)
        return {"pixel_values": tiles(batch), "labels": slot_labels(batch)}
    return batch_of


@torch.no_grad()
def validate(tower: Tower) -> Scores:
    batch = scenes(2**20, 0, 256)
    return reading_accuracy(tower.read(on_device(tiles(batch))), on_device(slot_labels(batch)))


def main() -> None:
    config = read_config(PRESETS, __doc__)
    if config.warm:
        raise SystemExit("train.tower ships no file of its own to go on from; train.mllm trains the tower on")
    seeded(config)
    tower, folder = Tower(), config.runs / "tower"
    run = fit("train.tower", folder, tower, config, batches(config), lambda: validate(tower))
    if run.accelerator.is_main_process:
        torch.save(tower.siglip.state_dict(), folder / "siglip.pt")


if __name__ == "__main__":
    main()
