"""What every Hugging Face vision-language model shares: states of one layer, sampling from a seed, streaming, stopping.

B batch, L tokens, A answer tokens, D width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from ..contracts import Interrupted

LANGUAGE_MODELS = ("model.language_model", "language_model.model", "language_model", "model")
IGNORED = -100  # a label that the loss skips


# Tokens --------------------------------------------------------------------------------------------------------------


def answer_span(lengths: Tensor, columns: int) -> Tensor:
    """Which states the VisionHead pools, in training exactly as in inference: bool[B, columns].

    Column 0 is the last prompt token, which decides the first answer token. lengths: int[B], answer tokens with the
    one that ended it, which is never fed and has no state: the states are those of the last prompt token and of all
    answer tokens but the last.

    >>> answer_span(torch.tensor([1, 3]), 4).int().tolist()
    [[1, 0, 0, 0], [1, 1, 1, 0]]
    """
    return torch.arange(columns, device=lengths.device) < rearrange(lengths, "b -> b 1")


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that start at 0 at the first real token, as `generate` counts them: int[B, L]."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def pad(rows: Sequence[Sequence[int]], value: int, side: str) -> Tensor:
    """int[B, L]: rows of unequal length, filled up with `value` on the left or on the right."""
    length = max(len(row) for row in rows)
    fill = [[value] * (length - len(row)) for row in rows]
    padded = [[*f, *row] if side == "left" else [*row, *f] for f, row in zip(fill, rows, strict=True)]
    return torch.tensor(padded, dtype=torch.long)


def without_specials(text: str, specials: Sequence[str]) -> str:
    """User text that cannot pose as part of the dialogue: special tokens in it become spaces."""
    for token in specials:
        text = text.replace(token, " ")
    return text


def answer_lengths(answers: Tensor, end_ids: Sequence[int]) -> Tensor:
    """int[B]: tokens up to the first end token, that one included; all of them where none was written."""
    ended = torch.isin(answers, torch.tensor(list(end_ids), device=answers.device))
    first = torch.where(ended.any(-1), ended.int().argmax(-1) + 1, answers.shape[-1])
    return first.long()


# States --------------------------------------------------------------------------------------------------------------


def give_plain_states(tower: nn.Module) -> nn.Module:
    """A SigLIP tower whose last hidden state is that of its last layer, before the final norm, as LLaVA-OneVision is
    trained on it; returns the tower.

    transformers 4.56 and 4.57 put the state after the norm in its place. Nothing else of that norm is used.
    """
    norm = getattr(getattr(tower, "vision_model", tower), "post_layernorm", None)
    if norm is not None:
        norm.forward = unchanged
    return tower


def unchanged(hidden_states: Tensor) -> Tensor:
    return hidden_states


def language_model(model: nn.Module) -> nn.Module:
    """The decoder inside: the module with `layers` and `norm`. Its path differs between models and versions."""
    for path in LANGUAGE_MODELS:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        if hasattr(module, "layers") and hasattr(module, "norm"):
            return module
    raise ValueError(f"{type(model).__name__} has no language model at {', '.join(LANGUAGE_MODELS)}")


def layer_module(model: nn.Module, layer: int) -> nn.Module:
    """The module whose output is `hidden_states[layer]`: block `layer`, or the final norm for the last index."""
    decoder = language_model(model)
    if not 1 <= layer <= len(decoder.layers):
        raise ValueError(f"layer must be in 1..{len(decoder.layers)}, got {layer}")
    # transformers' last entry of hidden_states is taken after the final norm
    return decoder.norm if layer == len(decoder.layers) else decoder.layers[layer - 1]


@contextmanager
def record_states(model: nn.Module, layer: int, keep: int = 1) -> Iterator[list[Tensor]]:
    """A list that receives float[B, <=keep, D], the last `keep` states of `layer`, at every forward pass of the model.

    Nothing else is held: a prompt of 7,000 picture tokens leaves one state.
    """
    states: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        hidden_states = output[0] if isinstance(output, tuple) else output
        kept = hidden_states[:, -keep:]
        states.append(kept if kept.shape[1] == hidden_states.shape[1] else kept.clone())  # a slice would hold it all

    handle = layer_module(model, layer).register_forward_hook(hook)
    try:
        yield states
    finally:
        handle.remove()


# Generation ----------------------------------------------------------------------------------------------------------


class GumbelNoise(LogitsProcessor):
    """Makes greedy search a sampler: argmax(logits + T * Gumbel noise) is a draw from softmax(logits / T).

    `generate` takes no torch.Generator; this is fed from one. A generator of the CPU gives the same text on any device.
    """

    def __init__(self, temperature: float, generator: torch.Generator):
        self.temperature, self.generator = temperature, generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty(scores.shape, device=self.generator.device).exponential_(generator=self.generator)
        return scores - self.temperature * noise.log().to(scores)  # -log of an exponential variable is Gumbel


class TokenStream(BaseStreamer):
    """Hands every new token to `on_tokens` (int[B] on the CPU) as soon as it is chosen."""

    def __init__(self, on_tokens: Callable[[Tensor], None]):
        self.on_tokens = on_tokens
        self.is_prompt = True  # generate sends the prompt first

    def put(self, value: Tensor) -> None:
        if not self.is_prompt:
            self.on_tokens(value.reshape(-1))
        self.is_prompt = False

    def end(self) -> None:
        pass


@contextmanager
def interruptible(model: nn.Module, should_stop: Callable[[], bool] | None) -> Iterator[None]:
    """Inside, the model raises Interrupted before the next decoder block once `should_stop()` is true."""
    if should_stop is None:
        yield
        return

    def check(_module: nn.Module, _inputs: tuple) -> None:
        if should_stop():
            raise Interrupted("the MLLM was interrupted while it read the picture or wrote; run again")

    handles = [block.register_forward_pre_hook(check) for block in language_model(model).layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def own_generation_config(model: nn.Module, end_ids: Sequence[int], pad_id: int) -> None:
    """Only the end and the pad token: what a folder says of sampling or repetition never enters unasked."""
    model.generation_config = GenerationConfig(eos_token_id=list(end_ids), pad_token_id=pad_id)
