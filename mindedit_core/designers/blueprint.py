"""Draw-In-Mind's designer on this machine (arXiv 2509.01986): an MLLM looks at the picture and writes the blueprint.

If it is the MLLM from whose states the painter paints, both come of one reading of the picture: the plan carries the
states of the turn [picture, blueprint], and `mllm.encode` runs nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..blueprint import blueprint_prompt
from ..blueprint_parser import parse_blueprint
from ..contracts import CapturedStates, Interrupted, Misfit, Plan
from ..prompts import check_instruction

NEEDED = ("read", "write", "turn")
CUT = "the blueprint was cut off at the most tokens that an answer may have; raise max_new_tokens to have it whole"


class BlueprintDesigner:
    """mllm: a Qwen25VL;  template: of `blueprint.PROMPTS`

    share_prefix: the designer sees the picture as the painter's states need it; False shows it in its own aspect, as
        published, and it is read again for the states

    encoder: the MLLM whose states are read, None: the same; the states of another's weights are not captured
    """

    def __init__(self, mllm: Any, template: str = "dim", share_prefix: bool = True, encoder: Any = None):
        if lacking := [name for name in NEEDED if not callable(getattr(mllm, name, None))]:
            raise Misfit(
                f"a {type(mllm).__name__} cannot design blueprints, it has no {' and no '.join(lacking)}: use a "
                "Qwen2.5-VL (backbone 'qwen2_5_vl'), or designer 'endpoint' with any model that a server offers"
            )
        blueprint_prompt("?", template)  # an unknown one is said now
        self.mllm, self.template = mllm, template
        self.shares = share_prefix
        self.captures = share_prefix and (encoder is None or encoder.mllm_id == mllm.mllm_id)

    @property
    def identity(self) -> str:
        """All that shapes its answers beside picture, wish and options; for `CachedDesigner`."""
        return repr((self.mllm.mllm_id, self.template, self.shares))

    def design(self, image: Tensor, instruction: str, **options: Any) -> Plan:
        """The plan for one picture, float[1, H, W, C] in 0..1; options are those of `Qwen25VL.write`.

        An answer without a blueprint, or cut off, is used as far as it goes, and the plan's note says so.
        Raises ValueError for an instruction or a batch that cannot be designed, Interrupted.
        """
        raw, should_stop = check_instruction(instruction), options.get("should_stop")
        if len(image) != 1:
            raise ValueError(f"a plan is about one picture, got {len(image)}; design and paint one by one")
        reading = self.mllm.read(image, should_stop, keep_aspect=not self.shares)
        answer = self.mllm.write(reading, blueprint_prompt(raw, self.template), **options)
        parsed = parse_blueprint(answer.text, raw)
        if should_stop is not None and should_stop():
            raise Interrupted("stopped after the blueprint was written; run again")
        states: CapturedStates | None = self.mllm.turn(reading, parsed.text) if self.captures else None
        note = "; ".join(filter(None, (parsed.note, "" if answer.whole else CUT)))
        return Plan(raw, parsed.text, "blueprint", sections=parsed.sections, states=states, note=note)
