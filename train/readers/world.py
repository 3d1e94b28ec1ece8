"""The procedural world as records: an endless dataset, no file. Number n is the same for ever.

    python -m train.check_data --reader world --set count=100

Numbers below 2**30 are for training, those up to 2**31 for recipes to validate on, the rest for evaluation.
"""

from __future__ import annotations

from mindedit_core.scenes import VERSION, Sample, sample
from train.records import EditRecord


class World:
    """Samples first, first + 1, ... as records.

    count: how many;  programs: share of instructions with 2 to 4 steps, spread evenly over the numbers
    """

    def __init__(self, count: int = 1000, first: int = 0, programs: float = 0.0):
        if count < 1 or first < 0 or not 0 <= programs <= 1:
            raise ValueError(f"count >= 1, first >= 0, programs in 0..1; got {count}, {first}, {programs}")
        self.count, self.first, self.programs = count, first, programs
        self.ids = [world_id(number, self.steps(number)) for number in range(first, first + count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> EditRecord:
        if not 0 <= row < self.count:
            raise IndexError(f"row must be in 0..{self.count - 1}, got {row}")
        number = self.first + row
        return world_record(number, self.steps(number))

    def steps(self, number: int) -> int:
        """1, or 2 to 4 where floor(number * programs) grows."""
        grows = int((number + 1) * self.programs) > int(number * self.programs)
        return 2 + number % 3 if grows else 1


def world_id(number: int, steps: int = 1) -> str:
    return f"world{VERSION}-{number}" + (f"-{steps}" if steps > 1 else "")


def world_record(number: int, steps: int = 1) -> EditRecord:
    """Sample `number` of the world with all that is known of it: T_opt, regions, steps, both captions."""
    return to_record(world_id(number, steps), sample(number, steps=steps))


def to_record(id: str, item: Sample) -> EditRecord:
    return EditRecord(
        id,
        item.instruction,
        item.source_image,
        item.target_image,
        item.mask.astype(bool),
        source_caption=item.source_caption,
        target_caption=item.target_caption,
        optimized=item.optimized,
        regions=item.regions,
        steps=item.steps,
        kind=item.operation,
    )
