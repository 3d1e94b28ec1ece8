"""What a LLaVA-OneVision is fed: prompts with places for the picture's tokens, pictures, and answers to learn from.

B batch, L tokens, D width, T tile pixels, N image tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..prompts import optimizer_prompt
from . import llava_images
from .hf_vlm import IGNORED, answer_span, pad, position_ids, without_specials
from .llava_chat import read_chat


class LlavaInputs:
    """model: LlavaOnevisionForConditionalGeneration;  tokenizer: its own, with an image token and a chat template.

    template: of `prompts.TEMPLATES`
    max_side: pictures are shrunk so that their longer side has at most this many pixels; None: full resolution, up to
    7,000 tokens; the tile size (384) gives one tile beside the base view, about 1,500 tokens.
    device, dtype: where and in what inputs are made, None: those of the weights (a host that moves weights sets them)
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        image_processor: Any = None,
        chat_template: str | None = None,
        template: str = "mind_edit",
        max_side: int | None = None,
    ):
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.image_processor = image_processor or llava_images.image_processor_for(model.config)
        self.image_token = tokenizer.convert_ids_to_tokens(self.config.image_token_id)
        self.chat = read_chat(tokenizer, self.image_token, chat_template)
        self.end_ids = _end_ids(model, tokenizer)
        self.base_template, self.max_side = template, max_side
        self.device: torch.device | None = None
        self.dtype: torch.dtype | None = None

    @property
    def template(self) -> str:
        return self.base_template

    @property
    def pad_id(self) -> int:
        known = self.tokenizer.pad_token_id
        return known if known is not None else self.end_ids[0]

    def _place(self) -> tuple[torch.device, torch.dtype]:
        weight = self.model.get_input_embeddings().weight
        return self.device or weight.device, self.dtype or weight.dtype

    # Prompts and answers ----------------------------------------------------------------------------------------------

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

    # Pictures ---------------------------------------------------------------------------------------------------------

    def image_tokens(self, image: Tensor | np.ndarray) -> int:
        """How many tokens one picture of any size takes, [1, H, W, 3]."""
        if self._is_one_tile(image.shape[1:3]):
            return self._image_tokens([self._tile_size()])[0]
        return self._image_tokens([picture.shape[:2] for picture in self._pixels(image)])[0]

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

    def _embedded(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the model is called with: input_ids and views, or embeddings with the image features in their places."""
        ids = batch["input_ids"][:, :-1]
        if "image_sizes" in batch:
            return {"input_ids": ids, "pixel_values": batch["pixel_values"], "image_sizes": batch["image_sizes"]}
        features = batch["image_features"] if "image_features" in batch else self.image_features(batch["pixel_values"])
        embeds = self.model.get_input_embeddings()(ids)
        places = (ids == self.config.image_token_id).unsqueeze(-1)
        return {"inputs_embeds": embeds.masked_scatter(places, features.to(embeds))}


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
