"""LLaVA-OneVision in MIND-Edit (arXiv 2505.19149, Figure 1): one reading of a picture gives T_opt and v_insight.

The text comes from the frozen text head, the insight from the VisionHead on the states of layer m that the same
generation passed through. Without a trained head the model works zero-shot and says that the insight is off.
B batch, L tokens, A answer tokens, D width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import ANSWER, STATES, CapturedStates, Insight, Plan
from ..prompts import format_answer, parse_optimized
from ..tensors import image_key
from . import lora
from .adapter_files import read_adapter
from .hf_vlm import (
    GumbelNoise,
    TokenStream,
    answer_lengths,
    answer_span,
    give_plain_states,
    interruptible,
    language_model,
    own_generation_config,
    record_states,
)
from .hf_weights import fingerprint
from .llava_inputs import LlavaInputs
from .llava_loading import load_folder

MAX_NEW_TOKENS = 256  # a program of four steps with its regions takes the mini about 200
NO_HEAD = (
    "no VisionHead is loaded, so the insight is off and the text alone guides the painter; load an adapter file from "
    "models/mindedit to turn it on"
)
NO_NEGATIVE = (
    "the adapter file holds no CLIP states of a zero image, so the unconditional branch takes zeros in their place and "
    "guidance is a little off"
)


@dataclass(frozen=True, eq=False)
class Generation:
    """One answer. token_ids: as written, the end token included; states: float[1, L, D] of layer m, `answer_span`."""

    text: str
    token_ids: tuple[int, ...]
    states: CapturedStates


@dataclass(frozen=True, eq=False)
class AnswerPass:
    """Teacher-forced answers, from the last prompt token on; column j of the logits predicts column j of the targets.

    logits: float[B, A, V];  targets: int[B, A], IGNORED behind the end token;  states: float[B, A, D] of layer m
    mask: bool[B, A], the states that the VisionHead pools
    """

    logits: Tensor
    targets: Tensor
    states: Tensor
    mask: Tensor


class LlavaOnevision(LlavaInputs):
    """model, tokenizer, inputs: as LlavaInputs says

    adapter: an `mind_edit.safetensors` (path or Adapter), merged into the model
    mllm_id: names these weights, None: computed from them;  stored_dtype: of the weights' file, see lora.merge
    states_device: where captured states are kept, None: where they came to be
    """

    span = ANSWER

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        adapter: lora.Adapter | str | Path | None = None,
        mllm_id: str | None = None,
        stored_dtype: torch.dtype | None = None,
        note: str = "",
        **inputs: Any,
    ):
        give_plain_states(model.model.vision_tower)
        super().__init__(model, tokenizer, **inputs)
        own_generation_config(model, self.end_ids, self.pad_id)
        self.base_id = mllm_id or f"llava_onevision:{fingerprint(model)}"
        self.stored_dtype, self.note = stored_dtype, note
        self.adapter: lora.Adapter | None = None
        self.strength = 1.0  # of the adapter's LoRA
        self.head: nn.Module | None = None
        self.states_device: torch.device | None = None
        self._originals: dict[str, Tensor] = {}
        if adapter is not None:
            self.attach(adapter)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        dtype: torch.dtype | None = None,
        adapter: lora.Adapter | str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> LlavaOnevision:
        """From a Hugging Face folder or the mini's files; see `llava_loading.load_folder` for dtype and errors."""
        loaded = load_folder(path, dtype, device)
        options.setdefault("template", loaded.template)
        options.setdefault("mllm_id", f"{loaded.name}:{fingerprint(loaded.model)}")
        return cls(
            loaded.model,
            loaded.tokenizer,
            image_processor=loaded.image_processor,
            chat_template=loaded.chat_template,
            adapter=adapter,
            stored_dtype=loaded.stored_dtype,
            note=loaded.note,
            **options,
        )

    # What it is ------------------------------------------------------------------------------------------------------

    @property
    def hidden_size(self) -> int:
        return self.config.text_config.hidden_size

    @property
    def num_layers(self) -> int:
        return len(language_model(self.model).layers)

    @property
    def layer(self) -> int:
        """m, an index of `hidden_states`: the adapter's, or three quarters of the depth (0.5B: 18 of 24)."""
        trained = self.adapter.layer if self.adapter else None
        return max(1, 3 * self.num_layers // 4) if trained is None else trained

    @property
    def mllm_id(self) -> str:
        if self.adapter is None:
            return self.base_id
        strength = "" if self.strength == 1.0 else f"*{self.strength:g}"
        return f"{self.base_id}+{self.adapter.name}:{self.adapter.digest}{strength}"

    @property
    def template(self) -> str:
        return self.adapter.config.get("prompt", self.base_template) if self.adapter else self.base_template

    @property
    def clip_space(self) -> str | None:
        """Of the image embeddings that `encode` gives, None without a trained head."""
        return self.adapter.clip_space if self.head is not None else None

    @property
    def reads_wish_alone(self) -> bool:
        """Whether the adapter was trained to foresee without writing T_opt (the ablation `variant=insight`)."""
        return self.adapter is not None and self.adapter.config.get("variant") == "insight"

    @property
    def embed_form(self) -> str | None:
        """GLOBAL or STATES: which IP-Adapters take what `encode` gives; None without a trained head."""
        return self.head.embed_form if self.head is not None else None

    @property
    def embed_dim(self) -> int | None:
        return self.head.embed_dim if self.head is not None else None

    # The adapter -----------------------------------------------------------------------------------------------------

    def attach(self, adapter: lora.Adapter | str | Path, merge: bool = True, strength: float = 1.0) -> None:
        """Use an adapter's LoRA and VisionHead. merge=False: a host adds the LoRA by its own patches.

        strength: of the LoRA; the VisionHead reads what comes of it.
        Raises Misfit, and changes nothing, if the adapter was made for another MLLM.
        """
        adapter = adapter if isinstance(adapter, lora.Adapter) else read_adapter(adapter)
        lora.require_match(adapter, self.model, self.hidden_size, self.num_layers)
        self.detach()
        if merge:
            self._originals = lora.merge(self.model, adapter.pairs, self.stored_dtype, strength)
        self.adapter, self.strength = adapter, strength
        self.head = adapter.head.to(self._place()[0]) if adapter.head is not None else None

    def detach(self) -> None:
        """Take the adapter off again; the weights are bit for bit what they were."""
        lora.unmerge(self.model, self._originals)
        self._originals, self.adapter, self.head, self.strength = {}, None, None, 1.0

    def sharing(self, adapter: lora.Adapter | str | Path, strength: float = 1.0) -> LlavaOnevision:
        """Another view of the same weights, with another adapter; for a host that adds the LoRA by its own patches.

        Nothing is copied, and `self` stays as it is. Raises Misfit; ValueError if a LoRA is merged into the weights.
        """
        if self._originals:
            raise ValueError(
                f"the LoRA of {self.adapter.name} is merged into these weights, another one would come on top; "
                "`detach` it first"
            )
        view = copy(self)
        view.attach(adapter, merge=False, strength=strength)
        return view

    # Reading and writing ---------------------------------------------------------------------------------------------

    def answer_pass(self, batch: Mapping[str, Any], layer: int | None = None) -> AnswerPass:
        """One forward pass over a `training_batch`, with gradients if the caller's are on; keeps the answers only."""
        start = batch["answer_start"]
        columns = batch["input_ids"].shape[1] - 1 - start  # the last column is an end token, which is never fed
        inputs = {name: batch[name][:, :-1] for name in ("attention_mask", "position_ids")} | self._embedded(batch)
        with record_states(self.model, layer or self.layer, keep=columns) as states:
            logits = self.model(**inputs, use_cache=False, logits_to_keep=columns).logits
        return AnswerPass(logits, batch["labels"][:, start + 1 :], states[0], batch["pool_mask"][:, start:-1])

    def decode(self, ids: Tensor) -> str:
        """int[L] -> text, up to the first end token."""
        return self._text(ids[: int(answer_lengths(ids[None], self.end_ids)[0])])

    def generate(
        self,
        image: Tensor,
        instruction: str | Sequence[str],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        on_token: Callable[[list[str]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Generation]:
        """One answer a picture, with the states it came from: one prefill, one generation.

        temperature: 0 is greedy; above it, tokens are drawn with `generator`
        on_token: called after every token with all answers so far;  should_stop: asked before every decoder block
        Raises Interrupted, ValueError.
        """
        inputs = self.prepare(image, instruction)
        prompt = inputs["input_ids"].shape[1]
        with ExitStack() as stack:
            stack.enter_context(interruptible(self.model, should_stop))
            states = stack.enter_context(record_states(self.model, self.layer))
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                logits_processor=_noise(temperature, generator),
                streamer=self._stream(on_token),
            )
        return self._generations(image, tokens[:, prompt:], torch.cat(states, dim=1))

    def encode(self, image: Tensor, plan: Plan) -> Insight:
        """The insight of a plan: from the states it carries; for another picture or MLLM by reading its text again."""
        states = plan.states
        belongs = states is not None and states.belongs_to(image_key(image), self.mllm_id)
        if not belongs or states.layer != self.layer or self.reads_wish_alone:
            states = self._read(image, plan)
        if self.head is None:
            return Insight(states.hidden, states.mask, note=NO_HEAD)
        with torch.no_grad():
            device = self._place()[0]
            head_states = states.hidden.to(device, self._head_dtype())
            image_embeds = self.head(head_states, states.mask.to(device))
        return self._insight(states, image_embeds)

    # Inside ----------------------------------------------------------------------------------------------------------

    def _insight(self, states: CapturedStates, image_embeds: Tensor) -> Insight:
        """The prediction and what stands for no picture at all: of states, those of a zero image, if the file says."""
        negative = self.adapter.negative_image_embeds
        if negative is not None:
            negative = negative.to(image_embeds).expand_as(image_embeds)
        return Insight(
            states.hidden,
            states.mask,
            image_embeds=image_embeds,
            clip_space=self.clip_space,
            note=NO_NEGATIVE if negative is None and self.embed_form == STATES else "",
            negative_image_embeds=negative,
        )

    @torch.no_grad()
    def _read(self, image: Tensor, plan: Plan) -> CapturedStates:
        answer = "" if self.reads_wish_alone else _answer_of(plan)
        batch = self.training_batch(image, plan.raw, [answer] * len(image))
        output = self.answer_pass(batch)
        return self._captured(output.states, output.mask, image)

    def _generations(self, image: Tensor, answers: Tensor, hidden: Tensor) -> list[Generation]:
        lengths = answer_lengths(answers, self.end_ids)
        mask = answer_span(lengths, answers.shape[1])
        rows = zip(image.split(1), answers, lengths.tolist(), hidden.split(1), mask.split(1), strict=True)
        return [self._generation(picture, ids[:n], h[:, :n], m[:, :n]) for picture, ids, n, h, m in rows]

    def _generation(self, picture: Tensor, ids: Tensor, hidden: Tensor, mask: Tensor) -> Generation:
        return Generation(self._text(ids), tuple(ids.tolist()), self._captured(hidden, mask, picture))

    def _captured(self, hidden: Tensor, mask: Tensor, image: Tensor) -> CapturedStates:
        hidden, mask = hidden.to(self.states_device or hidden.device), mask.to(self.states_device or mask.device)
        return CapturedStates(hidden, mask, self.layer, image_key(image), self.mllm_id)

    def _text(self, ids: Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _stream(self, on_token: Callable[[list[str]], None] | None) -> TokenStream | None:
        if on_token is None:
            return None
        columns: list[Tensor] = []

        def on_tokens(tokens: Tensor) -> None:
            columns.append(tokens)
            on_token([self._text(row) for row in torch.stack(columns, dim=1)])

        return TokenStream(on_tokens)

    def _head_dtype(self) -> torch.dtype:
        return self.dtype or torch.float32  # alone, a head stays in fp32; a host casts its weights to what comes in


# Helpers of the class ------------------------------------------------------------------------------------------------


def _noise(temperature: float, generator: torch.Generator | None) -> list[GumbelNoise]:
    if temperature <= 0.0:
        return []
    if generator is None:
        raise ValueError("temperature above 0 needs a torch.Generator, so that a seed gives the same text again")
    return [GumbelNoise(temperature, generator)]


def _answer_of(plan: Plan) -> str:
    """What the MLLM wrote, if that is what the plan says; else what it would have written for the plan's text."""
    answer = (plan.sections or {}).get("answer")
    if answer is not None and parse_optimized(answer, plan.raw, lambda _: 0).text.startswith(plan.text):
        return answer
    return format_answer(plan.text, plan.regions, plan.steps)
