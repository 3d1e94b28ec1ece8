"""What a Qwen2.5-VL is fed: the dialogue around a picture and a text, and where each token stands.

L tokens, of which the user's turn is what a painter reads: from behind `<|im_start|>user` and its newline to the next
`<|im_end|>`, the picture's block and the text (Draw-In-Mind, arXiv 2509.01986, as published).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..contracts import Misfit
from .hf_vlm import without_specials
from .llava_chat import read_chat
from .llava_images import to_pixels
from .qwen_images import LEAST_TOKENS, MOST_TOKENS, Seen, bounded_size, see, smart_size, unit
from .qwen_mini import CHAT

START, END, PICTURE = "<|im_start|>", "<|im_end|>", "<|image_pad|>"
SIDE = 1024  # pixels: pictures are stretched to a square of this, rounded to whole tokens, as published


class Prefix(NamedTuple):
    """Tokens before the text. ids: int[P];  turn: where the user's turn begins;  picture: where its tokens do

    grid: (h, w) tokens of the picture, None without one
    """

    ids: list[int]
    turn: int
    picture: int
    grid: tuple[int, int] | None

    @property
    def seen(self) -> int:
        """How many tokens the picture takes."""
        return 0 if self.grid is None else self.grid[0] * self.grid[1]

    @property
    def next_position(self) -> int:
        """Where the text's first token stands: a picture takes as many steps as its longer side has tokens."""
        return len(self.ids) - self.seen + max(self.grid or (0,))


class QwenInputs:
    """model: Qwen2_5_VLForConditionalGeneration;  tokenizer: its own

    side: pixels to which a picture is stretched, both ways;  chat_template: None takes the tokenizer's own
    device, dtype: where and in what inputs are made, None: those of the weights (a host that moves weights sets them)
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, side: int = SIDE, chat_template: str | None = None):
        self.model, self.tokenizer, self.config, self.side = model, tokenizer, model.config, side
        if tokenizer.convert_ids_to_tokens(self.config.image_token_id) != PICTURE:
            raise Misfit(
                f"a Qwen2.5-VL tokenizer has {PICTURE} at id {self.config.image_token_id}, this one has not; "
                "fetch the model's own tokenizer into its folder"
            )
        self.template = chat_template or tokenizer.chat_template or CHAT
        self.chat = read_chat(tokenizer, PICTURE, self.template)
        self.device: torch.device | None = None
        self.dtype: torch.dtype | None = None

    def place(self) -> tuple[torch.device, torch.dtype]:
        weight = self.model.get_input_embeddings().weight
        return self.device or weight.device, self.dtype or weight.dtype

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def plain(self, text: str) -> str:
        """The user's text without special tokens: it cannot end its own turn."""
        return without_specials(text, list(self.tokenizer.get_added_vocab()))

    # Pictures ---------------------------------------------------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        """Height and width at which the painter's MLLM sees every picture, as Draw-In-Mind publishes it."""
        return smart_size(self.side, self.side, unit(self.config))

    def own_size(self, image: Tensor) -> tuple[int, int]:
        """Height and width at which Qwen's own image processor shows float[B, H, W, C]: aspect kept, size bounded."""
        factor = unit(self.config)
        return bounded_size(*image.shape[1:3], factor, LEAST_TOKENS * factor**2, MOST_TOKENS * factor**2)

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Tokens of a picture, (h, w)."""
        return tuple(edge // unit(self.config) for edge in size or self.size())

    def see(self, image: Tensor | np.ndarray, size: tuple[int, int] | None = None) -> Seen:
        """Pictures float[B, H, W, C] in 0..1 or uint8, stretched to `size`."""
        return see(to_pixels(image), size or self.size(), self.config)

    # Dialogue ---------------------------------------------------------------------------------------------------------

    def prefix(self, size: tuple[int, int] | None) -> Prefix:
        """What stands before the user's text: system sentence, start of the turn, the block of a picture of this size.

        size: None for a turn without a picture
        """
        if size is None:
            ids = self.ids(self._text_only()[0])
            return Prefix(ids, len(ids), len(ids), None)
        ids = self.ids(self.chat.before)
        place = ids.index(self.config.image_token_id)
        height, width = self.grid(size)
        whole = ids[:place] + [self.config.image_token_id] * (height * width) + ids[place + 1 :]
        return Prefix(whole, self._turn_start(ids), place, (height, width))

    def text_ids(self, text: str, with_picture: bool = True) -> list[int]:
        """The user's text in the turn, its end token not included."""
        text = self.plain(text)
        if with_picture:
            return self.ids(text)
        start = self._text_only()[0]  # tokenised with what stands before it: no special token parts them
        return self.ids(start + text)[len(self.ids(start)) :]

    def after_ids(self) -> list[int]:
        """From the end of the turn to where an answer begins."""
        return self.ids(self.chat.after)

    def _turn_start(self, ids: Sequence[int]) -> int:
        start = self.tokenizer.convert_tokens_to_ids(START)
        return len(ids) - list(ids)[::-1].index(start) + 2  # the role and a newline follow

    def _text_only(self) -> tuple[str, str]:
        mark = "\u241e"
        said = [{"role": "user", "content": [{"type": "text", "text": mark}]}]
        rendered = self.tokenizer.apply_chat_template(
            said, chat_template=self.template, add_generation_prompt=True, tokenize=False
        )
        before, _, after = rendered.partition(mark)
        return before, after
