"""MIND-Edit (arXiv 2505.19149): LoRA and VisionHead, trained jointly; everything else is frozen.

    python -m train.mind_edit                                    # the mini: about an hour on one core of a small CPU
    python -m train.mind_edit --set variant=text                 # an ablation: text, insight, or independent (both)
    python -m train.mind_edit --set head=states --set out=states.safetensors   # for plus and full-face IP-Adapters
    accelerate launch -m train.mind_edit --config llava-0.5b --set data=human_edit \
        --set data_options=path=HumanEdit/data,split=train --set t_opt=runs/t_opt/human_edit

Loss (the paper prints none; ours): cross entropy of T_opt through the frozen text head, every sample weighing the same
(by tokens, programs of many steps drown the single edits), plus `losses.insight_loss` between v_insight and the CLIP
embedding of the target picture. The VisionHead pools the states of layer m from the last prompt token to the last
token fed; the variant `insight` reads the wish alone, since it writes nothing.
The mini's own (`--set seed=2`): T_opt exact for 95 % of unseen single edits, cosine of v_insight 0.97; all in README.
What `llava-0.5b` needs is printed by train.bench.joint. No score of it is known: nobody has trained it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindedit_core.backbones.adapter_files import read_adapter, save_adapter
from mindedit_core.backbones.hf_vlm import IGNORED, language_model
from mindedit_core.backbones.hf_weights import fingerprint
from mindedit_core.backbones.llava_onevision import AnswerPass, LlavaOnevision
from mindedit_core.backbones.lora import Adapter
from mindedit_core.backbones.states_head import StatesHead
from mindedit_core.backbones.vision_head import VisionHead
from mindedit_core.contracts import GLOBAL
from mindedit_core.losses import insight_loss
from train.clip_target import ClipTarget, Sort, clip_target
from train.config import Training, read_config
from train.encoding import Encoder, Part
from train.examples import answer, batches, source
from train.loop import Losses, device, fit
from train.lora import add_lora, pairs_of, take_pairs
from train.mind_edit_scores import mini_system, painted, validate
from train.records import EditRecord
from train.stages import provenance, run_folder, save_beside, seeded, steps_before, use_plain_attention

MINI = "mini"
CALIBRATED = 64  # training pictures whose states say where a head of states begins


@dataclass(frozen=True, kw_only=True)
class MindEdit(Training):
    """mllm, clip: "mini" (those of the weights folder), or a published folder;  clip_space: None: the folder's name
    head: what the VisionHead predicts: one embedding, for base IP-Adapters, or the states that plus and full-face take
    layer: m, whose states the VisionHead reads;  head_width: None: twice the embedding, 512 for states
    rank, alpha: of the LoRA
    variant: joint, text or insight alone, or independent: the last two, one after the other
    data: a reader of train.readers, data_options its key=value;  t_opt: what train.build_t_opt wrote, None: the data's
    programs: share of multi-step wishes in the endless world;  held_out: records to validate on
    cache: folder for what frozen models say of the data, None: encode it again every time
    together: answers of like length that are read in one pass, so that few are padded to the longest; None: the batch
    out: the adapter file, None: mind_edit.safetensors in `weights`
    """

    mllm: str = MINI
    clip: str = MINI
    clip_space: str | None = None
    head: Sort = "global"
    layer: int = 5
    head_width: int | None = 512
    rank: int = 20
    alpha: float = 20.0
    variant: Literal["joint", "text", "insight", "independent"] = "joint"
    insight_weight: float = 1.0
    data: str = "world"
    data_options: tuple[str, ...] = ()
    t_opt: Path | None = None
    programs: float = 0.25
    held_out: int = 140
    cache: Path | None = None
    mllm_dtype: Literal["float32", "bfloat16"] = "float32"
    max_side: int | None = None
    together: int | None = None
    out: Path | None = None


PRESETS = {
    "mini": MindEdit(steps=2200, learning_rate=2e-3, batch_size=16, ema=0.998, programs=0.35, together=4),
    "llava-0.5b": MindEdit(mllm="models/LLM/llava-onevision-qwen2-0.5b-ov-hf", clip="models/clip_vision/CLIP-ViT-H-14",
                           clip_space="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", layer=18, head_width=None, rank=32,
                           alpha=64.0, steps=6000, learning_rate=2e-4, batch_size=8, accumulate=2, workers=4,
                           data="human_edit", mllm_dtype="bfloat16", max_side=384, checkpoint_activations=True,
                           cache=Path("runs/encoded"), out=Path("models/mindedit/mind_edit.safetensors")),
}


class Student(nn.Module):
    """The frozen MLLM with LoRA on its language model, and the VisionHead; the variant says which of them learn."""

    def __init__(self, mllm: LlavaOnevision, target: ClipTarget, config: MindEdit):
        super().__init__()
        self.config, self.mllm, self.target = config, mllm, target
        self.model = mllm.model.requires_grad_(False)
        decoder = language_model(self.model)
        if config.mllm == MINI:
            use_plain_attention(decoder)
        # what lies above layer m has no say in the insight
        add_lora(decoder, config.rank, config.alpha, range(config.layer if not self.writes else len(decoder.layers)))
        self.head = new_head(self.model.config.text_config.hidden_size, target, config.head_width)
        self.head.requires_grad_(self.foresees)
        if config.checkpoint_activations:
            recompute = getattr(self.model, "activation_checkpointing_enable", None)  # its name in transformers 5
            (recompute or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.encoder = Encoder(parts_of(mllm, target, config), config.cache)
        mllm.adapter, mllm.head = Adapter("in training", self.made_for, {}), self.head  # it writes as it will be used

    @property
    def made_for(self) -> dict[str, Any]:
        """What an adapter file says of the MLLM and the CLIP space that it was trained for."""
        config, text = self.config, self.model.config.text_config
        return {"mllm": MINI if config.mllm == MINI else self.mllm.base_id, "hidden_size": text.hidden_size,
                "num_layers": text.num_hidden_layers, "layer": config.layer, "variant": config.variant,
                "clip_space": {"name": self.target.space, "dim": self.target.dim},
                "prompt": self.mllm.base_template, "rank": config.rank, "alpha": config.alpha}

    @property
    def writes(self) -> bool:
        return self.config.variant != "insight"

    @property
    def foresees(self) -> bool:
        return self.config.variant != "text"

    def go_on_from(self, adapter: Adapter) -> None:
        take_pairs(self.model, adapter.pairs)
        if self.foresees:
            self.head.load_state_dict(adapter.head.state_dict())

    def forward(self, batch: dict) -> Losses:
        samples = sorted(self.samples(batch), key=lambda sample: len(sample["prompt"]) + len(sample["answer"]))
        size = self.config.together or len(samples)
        passes = [self.answers(samples[first:first + size]) for first in range(0, len(samples), size)]
        named = {}
        if self.writes:
            named["text"] = torch.cat([text_losses(out.logits, out.targets) for out in passes]).mean()
        if self.foresees:
            predicted = torch.cat([self.head(out.states, out.mask) for out in passes]).float()
            named["insight"] = self.config.insight_weight * foresight_loss(self.head, predicted, targets_of(samples))
        return named

    def read(self, batch: dict) -> tuple[AnswerPass, Tensor | None]:
        """The teacher-forced answers of a batch in one pass, and the embeddings of its targets if it foresees."""
        samples = self.samples(batch)
        return self.answers(samples), targets_of(samples) if self.foresees else None

    def samples(self, batch: dict) -> list[dict[str, Tensor]]:
        """What the frozen parts say of every record."""
        with torch.autocast(device().type, enabled=False):
            return [self.encoder.fill(*pair) for pair in zip(batch["records"], batch["found"], strict=True)]

    def answers(self, samples: Sequence[dict[str, Tensor]]) -> AnswerPass:
        prompts, answers = ([sample[name].tolist() for sample in samples] for name in ("prompt", "answer"))
        inputs = self.mllm.token_batch(prompts, answers, [sample["features"] for sample in samples])
        return self.mllm.answer_pass(inputs, layer=self.config.layer)

    def calibrate(self, rows: Callable[[int], list[EditRecord]]) -> None:
        """Before a head of states is trained: mean and spread of the first training pictures' states."""
        batches = (rows(number) for number in range(-(-CALIBRATED // self.config.batch_size)))
        found = [self.encoder.fill(record, self.encoder.find(record))["target"] for some in batches for record in some]
        self.head.calibrate(torch.stack(found).float().to(self.head.mean.device))


def targets_of(samples: Sequence[dict[str, Tensor]]) -> Tensor:
    """What is to be foreseen: float[B, dim], or float[B, tokens, dim] of a head of states."""
    return torch.stack([sample["target"] for sample in samples]).float().to(device())


def new_head(hidden_size: int, target: ClipTarget, width: int | None) -> nn.Module:
    if target.sort == "states":
        return StatesHead(hidden_size, target.dim, target.tokens, width or 512)
    return VisionHead(hidden_size, target.dim, width=width)


def foresight_loss(head: nn.Module, predicted: Tensor, wanted: Tensor) -> Tensor:
    """Of an embedding, `insight_loss`; of states the mean squared error in the head's units: 1 for the mean picture."""
    if head.embed_form == GLOBAL:
        return insight_loss(predicted, wanted)
    return F.mse_loss(head.standardised(predicted), head.standardised(wanted))


def parts_of(mllm: LlavaOnevision, target: ClipTarget, config: MindEdit) -> list[Part]:
    """What is frozen: the picture as the language model gets it, the tokens, the target as CLIP sees it."""
    size = mllm.model.get_input_embeddings().weight.dtype
    words = "" if config.variant == "insight" else None

    def picture(record: EditRecord) -> dict[str, Tensor]:
        return {"features": mllm.picture_features(record.source[None])}

    def tokens(record: EditRecord) -> dict[str, Tensor]:
        said = answer(record) if words is None else words
        prompt, written = mllm.tokens(record.instruction, said, mllm.image_tokens(record.source[None]))
        return {"prompt": torch.tensor(prompt), "answer": torch.tensor(written)}

    def embedding(record: EditRecord) -> dict[str, Tensor]:
        return {"target": target(record.target[None])[0]}

    inner = mllm.model.model
    seeing = f"{fingerprint(inner.vision_tower)} {fingerprint(inner.multi_modal_projector)} {mllm.max_side} {size}"
    reading = f"{mllm.base_id} {len(mllm.tokenizer)} {mllm.base_template} {mllm.max_side}"
    seen = [Part("picture", seeing, lambda record: pixels(record.source), picture),
            Part("tokens", f"{reading} {config.variant == 'insight'}", texts, tokens)]
    if config.variant == "text":  # it foresees nothing
        return seen
    return [*seen, Part("target", target.settings, lambda record: pixels(record.target), embedding)]


def pixels(image) -> list[bytes]:
    return [str(image.shape).encode(), image.tobytes()]


def texts(record: EditRecord) -> list[bytes]:
    """What the tokens are made from; the picture's size decides how many are its own."""
    return [record.instruction.encode(), answer(record).encode(), str(record.source.shape).encode()]


def text_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-> float[B]: each answer's mean cross entropy.  logits: float[B, L, V];  targets: int[B, L], -100 is padding"""
    each = F.cross_entropy(logits.float().movedim(-1, 1), targets, ignore_index=IGNORED, reduction="none")
    return each.sum(1) / (targets != IGNORED).sum(1)


# The recipe ----------------------------------------------------------------------------------------------------------


def load_mllm(config: MindEdit) -> LlavaOnevision:
    if config.mllm != MINI:
        dtype = getattr(torch, config.mllm_dtype)
        return LlavaOnevision.from_folder(config.mllm, dtype, device=device(), max_side=config.max_side)
    return LlavaOnevision.from_folder(config.weights, torch.float32, device=device(), mllm_id=MINI)


def train_one(config: MindEdit) -> None:
    """One variant, to its file."""
    seeded(config)
    target = clip_target(config.clip, config, config.clip_space, config.head).to(device())
    student = Student(load_mllm(config), target, config)
    out = config.out or config.weights / "mind_edit.safetensors"
    if config.warm:
        student.go_on_from(read_adapter(out))
    before, data = steps_before(config, out), source(config)
    folder = run_folder(config, out)
    if config.head == "states" and student.foresees and not config.warm:
        student.calibrate(data.rows)
    system = mini_system(student, config) if config.mllm == MINI else None
    run = fit("train.mind_edit", folder, student, config, batches(data.rows, student.encoder.find),
              lambda: validate(student, data.held_out) | painted(system, data.held_out))
    if run.accelerator.is_main_process:
        said = provenance(config, "train.mind_edit", before + run.step, run.scores, config.data)
        head = student.head if student.foresees else None
        said["negative_image_embeds"] = target.zero_image() if student.foresees else None
        save_adapter(out, pairs_of(student.model), head, student.made_for, torch.float16, **said)
        save_beside(config, "train.mind_edit", out)


def main() -> None:
    config = read_config(PRESETS, __doc__)
    out = config.out or config.weights / "mind_edit.safetensors"
    if config.variant != "independent":
        return train_one(config)
    for variant in ("text", "insight"):
        train_one(replace(config, variant=variant, out=out.with_stem(f"{out.stem}-{variant}")))


if __name__ == "__main__":
    main()
