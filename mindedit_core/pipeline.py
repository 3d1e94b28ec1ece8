"""The path: picture and wish -> plan -> insight -> condition -> picture. The graph in ComfyUI says the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import STREAMS, Condition, Insight, PaintSettings, Plan, require_fit
from .regions import region_mask
from .tensors import to_rgb

STREAM_TENSORS = (*STREAMS, "text_mask", "negative_image_tokens")


@dataclass(frozen=True, eq=False)
class EditResult:
    """image: float[B, H, W, 3] in 0..1;  plans, insights: one a picture, and `plan`, `insight` those of the first."""

    image: Tensor
    plans: tuple[Plan, ...]
    insights: tuple[Insight, ...]

    @property
    def plan(self) -> Plan:
        return self.plans[0]

    @property
    def insight(self) -> Insight:
        return self.insights[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user has to be told about the plans and insights, each once."""
        said = [part.note for part in (*self.plans, *self.insights) if part.note]
        return tuple(dict.fromkeys(said))


def edit(
    system: Any,
    image: Tensor,
    instruction: str | Sequence[str],
    settings: PaintSettings | None = None,
    *,
    own_mask: bool = False,
    design: Mapping[str, Any] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> EditResult:
    """Edit each picture as its instruction says.

    system: of `load_system`, or anything with mllm, designer, bridge and painter
    own_mask: paint where the plan's regions say, in place of a mask of yours; everywhere if it names none
    image: float[B, H, W, 1 | 3 | 4] in 0..1;  instruction: one for all pictures, or one each
    settings: None takes the system's own;  design: options of the designer: max_new_tokens, temperature, on_token, ...
    on_plan: each plan as soon as it is there
    Raises Misfit before anything slow runs, ValueError for what cannot be an instruction, Interrupted if asked to stop.
    """
    require_fit(system.mllm, system.bridge, system.painter)
    image = to_rgb(image)
    settings = settings or _defaults(system, image[..., 0] if own_mask else None)
    options = {"should_stop": should_stop, **(design or {})}
    plans, insights = [], []
    for picture, wish in zip(image.split(1), _one_each(instruction, len(image)), strict=True):
        plans.append(system.designer.design(picture, wish, **options))
        if on_plan is not None:
            on_plan(plans[-1])
        insights.append(system.mllm.encode(picture, plans[-1]))
    settings = settings.but(mask=own_masks(plans, image)) if own_mask else settings
    condition = join_conditions([system.bridge(insight) for insight in insights])
    callbacks = {"on_step": on_step, "should_stop": should_stop, "on_note": on_note}
    return EditResult(
        system.painter.paint(image, plans, condition, settings, **callbacks), tuple(plans), tuple(insights)
    )


def _defaults(system: Any, mask: Tensor | None) -> PaintSettings:
    return system.settings_for(mask) if hasattr(system, "settings_for") else PaintSettings(mask=mask)


def own_masks(plans: Sequence[Plan], image: Tensor) -> Tensor:
    """float[B, H, W]: where each plan's regions say that its edit takes place; 1 everywhere if it names none."""
    drawn = [region_mask(plan.regions, *image.shape[1:3]) for plan in plans]
    return torch.stack([mask if mask.any() else torch.ones_like(mask) for mask in drawn]).to(image.device)


def _one_each(instruction: str | Sequence[str], batch: int) -> list[str]:
    if isinstance(instruction, str):
        return [instruction] * batch
    if len(instruction) != batch:
        raise ValueError(f"instructions must be one, or one for each of the {batch} pictures, got {len(instruction)}")
    return list(instruction)


def join_conditions(conditions: Sequence[Condition]) -> Condition:
    """One condition for a batch; text tokens under a mask may be of unequal length.

    Raises ValueError unless every picture has the same streams, else of the same length.
    """
    if len({condition.streams for condition in conditions}) != 1:
        raise ValueError(
            "pictures of one batch need the same streams, got "
            f"{' and '.join(str(sorted(condition.streams)) for condition in conditions)}; edit them one by one"
        )
    if all(condition.text_mask is not None for condition in conditions):
        length = max(condition.text_tokens.shape[1] for condition in conditions)
        conditions = [_padded(condition, length) for condition in conditions]
    return Condition(**{name: _joined(name, conditions) for name in STREAM_TENSORS})


def _padded(condition: Condition, length: int) -> Condition:
    """Masked text tokens filled up to `length` with zeros, which the mask leaves out."""
    missing = length - condition.text_tokens.shape[1]
    tokens, mask = F.pad(condition.text_tokens, (0, 0, 0, missing)), F.pad(condition.text_mask, (0, missing))
    return replace(condition, text_tokens=tokens, text_mask=mask)


def _joined(name: str, conditions: Sequence[Condition]) -> Tensor | None:
    tensors = [getattr(condition, name) for condition in conditions]
    if any(tensor is None for tensor in tensors):
        return None
    if len({tensor.shape[1:] for tensor in tensors}) != 1:
        raise ValueError(
            f"{name} of one batch must be of one shape, got {[tuple(t.shape) for t in tensors]}; edit one by one"
        )
    return torch.cat(tensors)
