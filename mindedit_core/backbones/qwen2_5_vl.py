"""Qwen2.5-VL in Draw-In-Mind (arXiv 2509.01986): it writes the blueprint, and the painter paints from its states.

One picture is read once: `read` keeps keys and values of all that stands before the user's text, `write` answers a
question about it, `turn` gives the states of the user's turn with another text. `encode` does the latter alone.
B batch, L tokens of the turn, D width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import DynamicCache

from ..contracts import TURN, CapturedStates, Insight, Plan
from ..prompts import optimizer_prompt
from ..tensors import image_key
from .hf_vlm import GumbelNoise, interruptible
from .hf_weights import fingerprint
from .qwen_inputs import Prefix, QwenInputs
from .qwen_loading import load_folder
from .qwen_positions import turn_positions

MAX_NEW_TOKENS = 1024  # a blueprint of a photograph takes 350 to 450
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, eq=False)
class Reading:
    """One picture, read. cache: of all layers, up to the user's text;  states: float[1, T, D] of the turn so far"""

    prefix: Prefix
    cache: DynamicCache
    states: Tensor
    image_key: str


class Answer(NamedTuple):
    """What was written about one picture. states: None, they are of the turn, not of the answer

    whole: False if it was cut off at the most tokens that were allowed
    """

    text: str
    states: None = None
    whole: bool = True


class Qwen25VL(QwenInputs):
    """model, tokenizer, side, chat_template: as QwenInputs says;  mllm_id: names these weights

    states_device: where captured states are kept, None: where they came to be
    """

    span = TURN
    embed_form = clip_space = embed_dim = None  # no CLIP embedding comes from it

    def __init__(self, model: nn.Module, tokenizer: Any, *, mllm_id: str | None = None, note: str = "", **inputs: Any):
        super().__init__(model, tokenizer, **inputs)
        self.mllm_id = mllm_id or f"qwen2_5_vl:{fingerprint(model)}"
        self.note = note
        self.states_device: torch.device | None = None
        self.end_ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        dtype: torch.dtype | None = None,
        *,
        device: str | torch.device = "cpu",
        embedded: str | Path | None = None,
        **options: Any,
    ) -> Qwen25VL:
        """From a Hugging Face folder or dim-mini's files; see `qwen_loading.load_folder` for the rest and errors."""
        loaded = load_folder(path, dtype, device, embedded)
        options.setdefault("mllm_id", f"{loaded.name}:{fingerprint(loaded.model)}")
        options.setdefault("side", loaded.side)
        return cls(loaded.model, loaded.tokenizer, chat_template=loaded.chat_template, note=loaded.note, **options)

    @property
    def hidden_size(self) -> int:
        return self.config.text_config.hidden_size

    @property
    def num_layers(self) -> int:
        return self.config.text_config.num_hidden_layers

    # One picture ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(
        self, image: Tensor | None, should_stop: ShouldStop | None = None, *, keep_aspect: bool = False
    ) -> Reading:
        """Everything before the user's text, once. image: float[1, H, W, C] in 0..1, or None for text alone

        keep_aspect: the picture as Qwen's own processor shows it, for questions; a painter's states need the square
        """
        size = None if image is None else self.own_size(image) if keep_aspect else self.size()
        prefix, cache = self.prefix(size), DynamicCache()
        device, _ = self.place()
        embeds = self.model.get_input_embeddings()(torch.tensor([prefix.ids], device=device))
        with interruptible(self.model, should_stop):
            if image is not None:
                is_picture = torch.tensor(prefix.ids, device=device) == self.config.image_token_id
                features = self.image_features(image, size).to(embeds)
                embeds = embeds.masked_scatter(rearrange(is_picture, "p -> 1 p 1"), features)
            after = len(prefix.ids) - prefix.picture - prefix.seen
            states = self._forward(embeds, turn_positions(prefix.picture, prefix.grid, after).to(device), cache)
        return Reading(prefix, cache, states[:, prefix.turn :], "" if image is None else image_key(image))

    @torch.no_grad()
    def turn(self, reading: Reading, text: str) -> CapturedStates:
        """States of the user's turn with this text, the picture's block first; the reading serves again afterwards."""
        row = self.text_ids(text, reading.prefix.grid is not None)
        with rewound(reading):
            states = self._run(reading, row) if row else reading.states[:, :0]
        hidden = torch.cat([reading.states, states], dim=1)
        hidden = hidden.to(self.states_device or hidden.device)
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return CapturedStates(hidden, mask, self.num_layers, reading.image_key, self.mllm_id, text)

    @torch.no_grad()
    def write(
        self,
        reading: Reading,
        text: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        on_token: Callable[[list[str]], None] | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Answer:
        """The answer to a question about the picture; the reading serves again afterwards.

        temperature: 0 is greedy; above it, tokens are drawn with `generator`
        on_token: called after every token with [the answer so far];  should_stop: asked before every decoder block
        """
        if temperature > 0.0 and generator is None:
            raise ValueError("temperature above 0 needs a torch.Generator, so that a seed gives the same text again")
        noise = GumbelNoise(temperature, generator) if temperature > 0.0 else None
        row = self.text_ids(text, reading.prefix.grid is not None) + self.after_ids()
        written, ended = [], False
        with interruptible(self.model, should_stop), rewound(reading):
            while len(written) < max_new_tokens:
                scores = self.model.lm_head(self._run(reading, row)[:, -1]).float()
                token = int((noise(None, scores) if noise else scores).argmax())
                if ended := token in self.end_ids:
                    break
                written.append(token)
                row = [token]
                if on_token is not None:
                    on_token([self.decode(written)])
        return Answer(self.decode(written), whole=ended)

    def generate(
        self, image: Tensor, instruction: str | Sequence[str], *, template: str = "mind_edit", **options: Any
    ) -> list[Answer]:
        """A description (MIND-Edit's T_opt) for every picture of float[B, H, W, C], one after the other: for painters
        that read text. template: of `prompts.TEMPLATES`;  options: of `write`
        """
        wishes = [instruction] * len(image) if isinstance(instruction, str) else instruction
        asked = [optimizer_prompt(wish, template) for wish in wishes]
        return [
            self.write(self.read(picture, options.get("should_stop")), text, **options)
            for picture, text in zip(image.split(1), asked, strict=True)
        ]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    # The path ---------------------------------------------------------------------------------------------------------

    def encode(self, image: Tensor | None, plan: Plan) -> Insight:
        """The states of the user's turn [picture, plan.text]: those that the plan carries, if they are of this turn.

        image: float[1, H, W, C] in 0..1; None: text alone, for a text-to-image painter
        """
        states, key = plan.states, "" if image is None else image_key(image)
        if states is None or not states.belongs_to(key, self.mllm_id) or states.turn != plan.text:
            states = self.turn(self.read(image), plan.text)
        return Insight(states.hidden, states.mask)

    # Inside -----------------------------------------------------------------------------------------------------------

    def image_features(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """float[N, D]: what takes the places of one picture's tokens, seen at this size."""
        seen, (device, dtype) = self.see(image, size), self.place()
        # not by the model's own get_image_features, which casts the pixels to the dtype the weights are stored in
        output = self.model.model.visual(seen.pixel_values.to(device, dtype), grid_thw=seen.grid.to(device))
        return getattr(output, "pooler_output", output)  # transformers 4 returns the tokens alone

    def _run(self, reading: Reading, row: list[int]) -> Tensor:
        """States float[1, len(row), D] of tokens that follow what the cache holds, which then holds them too."""
        first = reading.prefix.next_position + reading.cache.get_seq_length() - len(reading.prefix.ids)
        device, _ = self.place()
        embeds = self.model.get_input_embeddings()(torch.tensor([row], device=device))
        return self._forward(embeds, torch.arange(first, first + len(row), device=device).expand(3, -1), reading.cache)

    def _forward(self, embeds: Tensor, places: Tensor, cache: DynamicCache) -> Tensor:
        """Last states, after the final norm. embeds: float[1, L, D];  places: int[3, L]"""
        output = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=rearrange(places, "c l -> c 1 l"), past_key_values=cache, use_cache=True
        )
        return output.last_hidden_state


@contextmanager
def rewound(reading: Reading) -> Iterator[None]:
    """Afterwards the cache holds what it held before the user's text, whatever happened."""
    try:
        yield
    finally:
        if more := reading.cache.get_seq_length() - len(reading.prefix.ids):
            reading.cache.crop(-more)
