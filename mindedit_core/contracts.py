"""What the parts of MindEdit know of each other, and nothing else: frozen dataclasses, four protocols, one check.

    plan -> insight -> condition -> picture, as in `pipeline.edit`:
    T_raw       plan.raw                        what the user typed
    T_opt       plan.text                       MIND-Edit (arXiv 2505.19149): the precise, comma-separated description
    blueprint   plan.text, plan.sections        Draw-In-Mind (2509.01986)
    F_v states  insight.hidden, insight.mask    MLLM states of layer m, last prompt token .. last token fed
    v_insight   insight.image_embeds                       MIND-Edit: a CLIP image embedding
    h, f_src    insight.hidden, insight.vision  InsightEdit (2411.17323): [MM] states, source patches
    f_txt       condition.text_tokens           replaces the painter's own text encoding
    f_img       condition.image_tokens          decoupled cross-attention, weight lambda = settings.insight_scale
    v_txt       condition.spatial               added after conv_in

Axes: B batch, L MLLM tokens, P image patches, D MLLM width, T image-embedding tokens, N image tokens,
C latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

STREAMS = ("text_tokens", "image_tokens", "spatial")
REGION_KINDS = ("box", "background", "keep")
GLOBAL, STATES = "global", "states"  # forms of an image embedding: float[B, Dc], and float[B, T, Dh]
ANSWER, TURN = "answer", "turn"  # which of its states an MLLM gives: of what it wrote, or of the user's turn
MAX_COORDINATE = 1000.0  # boxes are written in thousandths of the picture's width and height


class Misfit(ValueError):
    """Two parts that cannot work together; the message says which, why, and what to use instead."""


class Interrupted(RuntimeError):
    """Raised by a part whose `should_stop` said yes; nothing is half-written and the next run works."""


@dataclass(frozen=True)
class Region:
    """Where an edit takes place: a `box` = (x0, y0, x1, y1) in 0..1000 of width and height, or the whole background.

    kind `keep`: a box that stays as it is, of a thing in front of a background that changes
    """

    kind: str
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in REGION_KINDS:
            raise ValueError(f"region kind must be one of {', '.join(REGION_KINDS)}, got {self.kind!r}")
        if (self.kind == "background") != (self.box is None):
            raise ValueError(
                f"a region has a box unless its kind is 'background', got {self.kind!r} with box {self.box}"
            )
        if self.box is not None:
            _check_box(self.box)


def _check_box(box: tuple[float, ...]) -> None:
    ordered = len(box) == 4 and 0 <= box[0] < box[2] <= MAX_COORDINATE and 0 <= box[1] < box[3] <= MAX_COORDINATE
    if not ordered:
        raise ValueError(f"box must be x0 < x1 and y0 < y1 in 0..{MAX_COORDINATE:g}, got {box}")


@dataclass(frozen=True, eq=False)
class CapturedStates:
    """MLLM states captured during the one generation that wrote T_opt, so that `encode` need not run the MLLM again.

    hidden: float[B, L, D] states of layer `layer`;  mask: bool[B, L] from the last prompt token to the last token fed
    image_key: `tensors.image_key` of the picture that was read, "" without one;  mllm_id: who read it
    turn: of states of the user's turn (Draw-In-Mind), the text in it
    """

    hidden: Tensor
    mask: Tensor
    layer: int
    image_key: str
    mllm_id: str
    turn: str = ""

    def belongs_to(self, image_key: str, mllm_id: str) -> bool:
        return self.image_key == image_key and self.mllm_id == mllm_id


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be painted. `raw` is the user's wish, `text` what the painter obeys, the rest what the designer found.

    note: what the user has to be told, e.g. that a malformed answer fell back to the raw instruction; "" if nothing.
    """

    raw: str
    text: str
    designer: str = "verbatim"
    sections: Mapping[str, str] | None = None
    steps: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    source_caption: str | None = None
    target_caption: str | None = None
    states: CapturedStates | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Insight:
    """What the MLLM foresees of the result.

    hidden: float[B, L, D], mask: bool[B, L]   states, or None when only an embedding is known
    vision: float[B, P, Dv]                    source-image patches
    image_embeds: float[B, Dc] or float[B, T, Dh], in the CLIP space named `clip_space`; None: no trained head
    note: what the user has to be told; "" if nothing
    negative_image_embeds: as image_embeds, for the unconditional branch: the states of a zero image; None: zeros
    """

    hidden: Tensor | None
    mask: Tensor | None
    vision: Tensor | None = None
    image_embeds: Tensor | None = None
    clip_space: str | None = None
    note: str = ""
    negative_image_embeds: Tensor | None = None

    @property
    def embed_form(self) -> str | None:
        """GLOBAL, one vector a picture, or STATES, a vector a patch; None without an embedding of these shapes."""
        return None if self.image_embeds is None else {2: GLOBAL, 3: STATES}.get(self.image_embeds.ndim)


@dataclass(frozen=True, eq=False)
class Condition:
    """What the painter is given besides the picture: up to three streams, each optional.

    text_tokens: float[B, Lt, Dt] with text_mask: bool[B, Lt]; None: the painter encodes `plan.text` itself
    image_tokens: float[B, N, Di], negative_image_tokens the same shape: those of the unconditional branch
    spatial: float[B, C, h, w], added after conv_in
    """

    text_tokens: Tensor | None = None
    text_mask: Tensor | None = None
    image_tokens: Tensor | None = None
    negative_image_tokens: Tensor | None = None
    spatial: Tensor | None = None

    @property
    def streams(self) -> frozenset[str]:
        """Names of the streams that are there."""
        return frozenset(name for name in STREAMS if getattr(self, name) is not None)


@dataclass(frozen=True, eq=False)
class PaintSettings:
    """How to paint.

    steps: sampler steps, 1 or more;  guidance_scale: text, 1 is off
    image_guidance_scale: for painters that see the source beside the noise (InstructPix2Pix, CosXL-edit), 1 is off
    insight_scale: lambda, weight of the image tokens, 0 is off;  start, end: fraction of the steps in which they act
    strength: host `denoise` in 0..1, 0 returns the source;  seed: of the fp32 CPU noise
    mask: float[B, H, W] in 0..1, 1 = may change; None: the whole picture;  negative: the text to stay away from
    composite: put the source back outside the mask, pixel-exact
    framing: how a painter of one resolution sees a picture of another (`painters.framing`): bins, pad, or crop
    """

    steps: int = 25
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5
    insight_scale: float = 1.0
    strength: float = 1.0
    seed: int = 0
    start: float = 0.0
    end: float = 1.0
    mask: Tensor | None = None
    negative: str = ""
    composite: bool = True
    framing: str = "bins"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength must be in 0..1, got {self.strength}")
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ValueError(f"start and end must satisfy 0 <= start <= end <= 1, got {self.start} and {self.end}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2**64-1, got {self.seed}")

    def but(self, **changes: Any) -> PaintSettings:
        """The same settings with some changed; an unknown name lists the known ones."""
        known = [field.name for field in fields(self)]
        if unknown := sorted(set(changes) - set(known)):
            raise ValueError(f"unknown paint setting {', '.join(unknown)}; have {', '.join(known)}")
        return replace(self, **changes)


@runtime_checkable
class MLLM(Protocol):
    """Reads picture and text. May also have `span`, ANSWER or TURN: which states it gives; and `embed_form`,
    `clip_space`, `embed_dim`: what its head gives, or None.
    """

    mllm_id: str
    hidden_size: int

    def encode(self, image: Tensor, plan: Plan) -> Insight: ...
    def generate(self, image: Tensor, instruction: str, **options: Any) -> list[Any]: ...


@runtime_checkable
class Designer(Protocol):
    """Writes the plan: image float[B, H, W, 3] in 0..1 and the user's wish -> Plan."""

    def design(self, image: Tensor, instruction: str, **options: Any) -> Plan: ...


@runtime_checkable
class Bridge(Protocol):
    """Insight -> Condition. May also have `span`, `hidden_size` (of the states that it reads), `embed_form`,
    `clip_space`, `embed_dim` (of the embedding that it reads) and `token_dim` (of what it emits).
    """

    emits: frozenset[str]

    def __call__(self, insight: Insight) -> Condition: ...


@runtime_checkable
class Painter(Protocol):
    """Paints float[B, H, W, 3] in 0..1. May also have `token_dim`: the width of image tokens it takes."""

    accepts: frozenset[str]

    def paint(
        self, image: Tensor, plan: Plan, condition: Condition, settings: PaintSettings, **callbacks: Any
    ) -> Tensor: ...


OTHER_FORM = (
    "a base IP-Adapter reads the global embedding, a plus or full-face one the penultimate states: change the "
    "IP-Adapter, or load an adapter file whose VisionHead predicts the other form"
)
OTHER_SPACE = (
    "load an adapter file trained for the same CLIP image space, or an IP-Adapter that reads it (global embedding: "
    "ViT-H 1024, ViT-bigG 1280; penultimate states: ViT-H 1280)"
)


OTHER_STATES = (
    "a projector reads the states of the MLLM that it was trained with: Draw-In-Mind's those of Qwen2.5-VL-3B; load "
    "that one"
)


def require_fit(mllm: Any, bridge: Any, painter: Any) -> None:
    """Raise Misfit, before anything slow runs, if these three cannot work together.

    Compared: streams always; span and width of the states, form, CLIP space and width of the image embedding, and the
    token width, where both sides say theirs.
    """
    if homeless := sorted(set(bridge.emits) - set(painter.accepts)):
        raise Misfit(
            f"{_name(painter)} has no place for {', '.join(homeless)} from {_name(bridge)}; it accepts "
            f"{', '.join(sorted(painter.accepts)) or 'no stream'}: choose another bridge or another painter"
        )
    _require_equal("span", mllm, bridge, OTHER_STATES)
    _require_equal("hidden_size", mllm, bridge, OTHER_STATES)
    _require_equal("embed_form", mllm, bridge, OTHER_FORM)
    _require_equal("clip_space", mllm, bridge, OTHER_SPACE)
    _require_equal("embed_dim", mllm, bridge, OTHER_SPACE)
    _require_equal("token_dim", bridge, painter, "use an IP-Adapter made for this base model (SD1.5: 768, SDXL: 2048)")


def _require_equal(attribute: str, giver: Any, taker: Any, remedy: str) -> None:
    given, taken = getattr(giver, attribute, None), getattr(taker, attribute, None)
    if given is not None and taken is not None and given != taken:
        raise Misfit(f"{_name(giver)} gives {attribute} {given!r}, {_name(taker)} takes {taken!r}; {remedy}")


def _name(part: Any) -> str:
    return type(part).__name__
