"""LLaVA-OneVision in MIND-Edit (arXiv 2505.19149, Figure 1): one reading of a picture gives T_opt and v_insight.

The text comes from the frozen text head, the insight from the VisionHead on the states of layer m that the same
generation passed through. Without a trained head the model works zero-shot and says that the insight is off.
B batch, L tokens, A answer tokens, D width, V vocabulary, T tile pixels, N image tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..contracts import STATES, CapturedStates, Insight, Plan
from ..prompts import format_answer, optimizer_prompt, parse_optimized
from ..tensors import image_key
from . import llava_images, lora
from .hf_vlm import (
    IGNORED,
    GumbelNoise,
    TokenStream,
    answer_lengths,
    answer_span,
    give_plain_states,
    interruptible,
    language_model,
    own_generation_config,
    pad,
    position_ids,
    record_states,
    without_specials,
)
from .llava_chat import read_chat
from .llava_loading import fingerprint, load_folder

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


class LlavaOnevision:
    """model: LlavaOnevisionForConditionalGeneration;  tokenizer: its own, with an image token and a chat template.

    template: of `prompts.TEMPLATES`;  adapter: an `mind_edit.safetensors` (path or Adapter), merged into the model
    mllm_id: names these weights, None: computed from them;  stored_dtype: of the weights' file, see lora.merge
    max_side: pictures are shrunk so that their longer side has at most this many pixels; None: full resolution, up to
    7,000 tokens; the tile size (384) gives one tile beside the base view, about 1,500 tokens.

    device, dtype: where and in what inputs are made, None: those of the weights (a host that moves weights sets them)
    states_device: where captured states are kept, None: where they came to be
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        image_processor: Any = None,
        chat_template: str | None = None,
        template: str = "mind_edit",
        adapter: lora.Adapter | str | Path | None = None,
        mllm_id: str | None = None,
        max_side: int | None = None,
        stored_dtype: torch.dtype | None = None,
        note: str = "",
    ):
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        give_plain_states(model.model.vision_tower)
        self.image_processor = image_processor or llava_images.image_processor_for(model.config)
        self.image_token = tokenizer.convert_ids_to_tokens(self.config.image_token_id)
        self.chat = read_chat(tokenizer, self.image_token, chat_template)
        self.end_ids = _end_ids(model, tokenizer)
        own_generation_config(model, self.end_ids, self.pad_id)
        self.base_id = mllm_id or f"llava_onevision:{fingerprint(model)}"
        self.base_template, self.max_side, self.stored_dtype, self.note = template, max_side, stored_dtype, note
        self.adapter: lora.Adapter | None = None
        self.strength = 1.0  # of the adapter's LoRA
        self.head: nn.Module | None = None
        self.device: torch.device | None = None
        self.dtype: torch.dtype | None = None
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

    @property
    def pad_id(self) -> int:
        known = self.tokenizer.pad_token_id
        return known if known is not None else self.end_ids[0]

    # The adapter -----------------------------------------------------------------------------------------------------

    def attach(self, adapter: lora.Adapter | str | Path, merge: bool = True, strength: float = 1.0) -> None:
        """Use an adapter's LoRA and VisionHead. merge=False: a host adds the LoRA by its own patches.

        strength: of the LoRA; the VisionHead reads what comes of it.
        Raises Misfit, and changes nothing, if the adapter was made for another MLLM.
        """
        adapter = adapter if isinstance(adapter, lora.Adapter) else lora.read_adapter(adapter)
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

    # Reading ---------------------------------------------------------------------------------------------------------

    def prepare(self, image: Tensor, instruction: str | Sequence[str]) -> dict[str, Tensor]:
        """The model's inputs: input_ids and attention_mask int[B, L], padded on the left, pixel_values, image_sizes.

        image: float[B, H, W, 3] in 0..1;  instruction: one for all pictures, or one each
        """
        pixels = self._pixels(image)
        counts = self._image_tokens([picture.shape[:2] for picture in pixels])
        prompts = self._prompts(_one_each(instruction, len(pixels)), counts)
        device, dtype = self._place()
        inputs = _padded_left(prompts, self.pad_id) | llava_images.views(pixels, self.image_processor)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def training_batch(
        self,
        images: Tensor | np.ndarray | None,
        instructions: str | Sequence[str],
        answers: Sequence[str],
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
    ) -> dict[str, Any]:
        """Prompts as `prepare` makes them, each with its answer and an end token; all answers begin in one column.

        images: float[B, H, W, 3] in 0..1 or uint8[B, H, W, 3]; None where something computed before takes their place:
        pixel_values float[B, 3, T, T] of `single_view`, or image_features float[B, N, D] of `image_features`
        Returns input_ids, attention_mask, position_ids, labels int[B, L], pool_mask bool[B, L], answer_start (the
        column of the last prompt token) and the pictures in one of the three forms.
        """
        pictures = self._pictures(images, pixel_values, image_features)
        sizes = pictures.pop("sizes") or [self._tile_size()] * len(answers)
        prompts = self._prompts(_one_each(instructions, len(answers)), self._image_tokens(sizes))
        batch = self._answered(prompts, self._answer_ids(answers))
        device, dtype = self._place()
        batch |= {name: x.to(dtype) if x.is_floating_point() else x for name, x in pictures.items()}
        return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}

    def answer_pass(self, batch: Mapping[str, Any], layer: int | None = None) -> AnswerPass:
        """One forward pass over a `training_batch`, with gradients if the caller's are on; keeps the answers only."""
        start = batch["answer_start"]
        columns = batch["input_ids"].shape[1] - 1 - start  # the last column is an end token, which is never fed
        inputs = {name: batch[name][:, :-1] for name in ("attention_mask", "position_ids")} | self._embedded(batch)
        with record_states(self.model, layer or self.layer, keep=columns) as states:
            logits = self.model(**inputs, use_cache=False, logits_to_keep=columns).logits
        return AnswerPass(logits, batch["labels"][:, start + 1 :], states[0], batch["pool_mask"][:, start:-1])

    def tokens(self, instruction: str, answer: str, image_tokens: int) -> tuple[list[int], list[int]]:
        """Prompt with so many places for its picture, and answer with its end token: what `token_batch` takes."""
        return self._prompts([instruction], [image_tokens])[0], self._answer_ids([answer])[0]

    def token_batch(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]], image_features: Sequence[Tensor]
    ) -> dict[str, Any]:
        """As `training_batch`, from what was made before: `tokens`, and `picture_features` float[N_i, D] a picture."""
        device, dtype = self._place()
        pictures = {"image_features": torch.cat(list(image_features)).to(dtype)}
        batch = self._answered(list(prompts), list(answers)) | pictures
        return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}

    def image_tokens(self, image: Tensor | np.ndarray) -> int:
        """How many tokens one picture of any size takes, [1, H, W, 3]."""
        if self._is_one_tile(image.shape[1:3]):
            return self._image_tokens([self._tile_size()])[0]
        return self._image_tokens([picture.shape[:2] for picture in self._pixels(image)])[0]

    def decode(self, ids: Tensor) -> str:
        """int[L] -> text, up to the first end token."""
        return self._text(ids[: int(answer_lengths(ids[None], self.end_ids)[0])])

    def picture_features(self, image: Tensor | np.ndarray) -> Tensor:
        """float[N, D] of one picture of any size, [1, H, W, 3] in 0..1 or uint8: what takes its tokens' places."""
        pictures = self._pictures(image, None, None)
        device, dtype = self._place()
        pixel_values = pictures["pixel_values"].to(device, dtype)
        if pictures["sizes"] is None:
            return self.image_features(pixel_values)[0]
        output = self.model.model.get_image_features(pixel_values, pictures["image_sizes"].to(device))
        return getattr(output, "pooler_output", output)[0]

    def single_view(self, images: Tensor | np.ndarray) -> Tensor:
        """float[B, 3, T, T]: square pictures for a model with one tile; `training_batch` takes it as pixel_values."""
        return llava_images.single_view(llava_images.to_pixels(images), self.config)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """float[B, 3, T, T] of `single_view` -> float[B, N, D], equal to the model's own for base view and one tile.

        The vision tower sees each picture once, where the model's own code shows it twice.
        """
        batch = len(pixel_values)
        sizes = torch.tensor([self._tile_size()] * batch)
        one_view = rearrange(pixel_values, "b c h w -> b 1 c h w")
        # more than one picture in a sample: transformers makes no tiles then, and appends one newline
        output = self.model.model.get_image_features(one_view, sizes, batch_num_images=[2] * batch)
        base = torch.stack(list(getattr(output, "pooler_output", output)))[:, :-1]
        rows = rearrange(base, "b (r c) d -> b r c d", r=self._side())
        newline = self.model.model.image_newline.to(base)
        newlines = repeat(newline, "d -> b r 1 d", b=batch, r=self._side())
        tile = rearrange(torch.cat([rows, newlines], dim=2), "b r c d -> b (r c) d")
        return torch.cat([base, tile], dim=1)

    # Writing ---------------------------------------------------------------------------------------------------------

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

    def _place(self) -> tuple[torch.device, torch.dtype]:
        weight = self.model.get_input_embeddings().weight
        return self.device or weight.device, self.dtype or weight.dtype

    def _head_dtype(self) -> torch.dtype:
        return self.dtype or torch.float32  # alone, a head stays in fp32; a host casts its weights to what comes in

    def _pixels(self, image: Tensor | np.ndarray) -> list[np.ndarray]:
        pixels = (llava_images.thicken(picture) for picture in llava_images.to_pixels(image))
        return [llava_images.shrink(picture, self.max_side) for picture in pixels]

    def _side(self) -> int:
        return self.config.vision_config.image_size // self.config.vision_config.patch_size

    def _tile_size(self) -> tuple[int, int]:
        return (self.config.vision_config.image_size,) * 2

    def _is_one_tile(self, size: Sequence[int]) -> bool:
        """Whether a picture of this height and width is seen as a base view and one tile that equals it."""
        return llava_images.has_one_tile(self.config) and size[0] == size[1]

    def _image_tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """How many tokens each picture takes, by its height and width."""
        counts = {size: llava_images.image_tokens(size, self.config) for size in {tuple(size) for size in sizes}}
        return [counts[tuple(size)] for size in sizes]

    def _prompts(self, instructions: Sequence[str], counts: Sequence[int]) -> list[list[int]]:
        """Token ids with the image token repeated for every patch and newline of the picture."""
        specials = list(self.tokenizer.get_added_vocab())
        wishes = [optimizer_prompt(without_specials(text, specials), self.template) for text in instructions]
        rows = self.tokenizer([self.chat.prompt(wish) for wish in wishes], add_special_tokens=False).input_ids
        return [self._expanded(row, count) for row, count in zip(rows, counts, strict=True)]

    def _expanded(self, row: list[int], count: int) -> list[int]:
        place = row.index(self.config.image_token_id)
        return row[:place] + [self.config.image_token_id] * count + row[place + 1 :]

    def _answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        specials = list(self.tokenizer.get_added_vocab())
        texts = [without_specials(answer, specials) for answer in answers]
        return [[*row, self.end_ids[0]] for row in self.tokenizer(texts, add_special_tokens=False).input_ids]

    def _answered(self, prompts: list[list[int]], answers: list[list[int]]) -> dict[str, Any]:
        """Prompts padded on the left, answers on the right, so that all answers begin in one column."""
        left, right = _padded_left(prompts, self.pad_id), pad(answers, self.pad_id, "right")
        lengths = torch.tensor([len(answer) for answer in answers])
        written = answer_span(lengths, right.shape[1])
        start = left["input_ids"].shape[1] - 1
        mask = torch.cat([left["attention_mask"], written.long()], dim=1)
        pool_mask = torch.zeros_like(mask, dtype=torch.bool)
        pool_mask[:, start:] = answer_span(lengths, right.shape[1] + 1)
        nothing = torch.full_like(left["input_ids"], IGNORED)
        return {
            "input_ids": torch.cat([left["input_ids"], right], dim=1),
            "attention_mask": mask,
            "position_ids": position_ids(mask),
            "labels": torch.cat([nothing, right.masked_fill(~written, IGNORED)], dim=1),
            "pool_mask": pool_mask,
            "answer_start": start,
        }

    def _pictures(
        self, images: Tensor | np.ndarray | None, pixel_values: Tensor | None, image_features: Tensor | None
    ) -> dict[str, Any]:
        """The pictures in the cheapest form that was given or can be made, and their sizes (None: one square tile)."""
        if (images is not None) + (pixel_values is not None) + (image_features is not None) != 1:
            raise ValueError("training_batch takes exactly one of images, pixel_values and image_features")
        if image_features is not None:
            return {"image_features": image_features, "sizes": None}
        if pixel_values is not None:
            return {"pixel_values": pixel_values, "sizes": None}
        whole = llava_images.to_pixels(images)
        if self._is_one_tile(whole.shape[1:3]):
            return {"pixel_values": llava_images.single_view(whole, self.config), "sizes": None}
        pixels = self._pixels(images)
        return llava_images.views(pixels, self.image_processor) | {"sizes": [picture.shape[:2] for picture in pixels]}

    def _embedded(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the model is called with: input_ids and views, or embeddings with the image features in their places."""
        ids = batch["input_ids"][:, :-1]
        if "image_sizes" in batch:
            return {"input_ids": ids, "pixel_values": batch["pixel_values"], "image_sizes": batch["image_sizes"]}
        features = batch["image_features"] if "image_features" in batch else self.image_features(batch["pixel_values"])
        embeds = self.model.get_input_embeddings()(ids)
        places = (ids == self.config.image_token_id).unsqueeze(-1)
        return {"inputs_embeds": embeds.masked_scatter(places, features.to(embeds))}


# Helpers of the class ------------------------------------------------------------------------------------------------


def _padded_left(rows: list[list[int]], pad_id: int) -> dict[str, Tensor]:
    ones = [[1] * len(row) for row in rows]
    return {"input_ids": pad(rows, pad_id, "left"), "attention_mask": pad(ones, 0, "left")}


def _one_each(instruction: str | Sequence[str], batch: int) -> list[str]:
    instructions = [instruction] * batch if isinstance(instruction, str) else list(instruction)
    if len(instructions) != batch:
        raise ValueError(f"instructions must be one, or one for each of {batch} pictures, got {len(instructions)}")
    return instructions


def _end_ids(model: nn.Module, tokenizer: Any) -> list[int]:
    """Tokens that end an answer, as the model's files say; the first one ends the answers it is trained on."""
    settings = getattr(model, "generation_config", None)
    text = model.config.text_config
    for found in (getattr(settings, "eos_token_id", None), text.eos_token_id, tokenizer.eos_token_id):
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    raise ValueError(
        "neither model nor tokenizer names an end token; fetch generation_config.json into the model's folder"
    )


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
