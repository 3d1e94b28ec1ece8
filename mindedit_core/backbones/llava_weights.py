"""LLaVA-OneVision's weights from their files into a model: mapped, not copied, whatever version wrote their keys.

The model is built without memory of its own, and takes the tensors as they lie in the files. So an MLLM in the dtype it
is stored in costs its weights once, and only those pages that were read; another dtype is cast tensor by tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from ..checkpoint import CheckpointError, load_tensors
from .llava_keys import own_keys

log = logging.getLogger(__name__)

TEXT_HEAD = "lm_head.weight"
COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")  # in old files; the model makes them itself


def load_weights(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a Hugging Face folder, every weight from its files. CheckpointError for one that is not there."""
    model = empty_model(LlavaOnevisionConfig.from_pretrained(folder, local_files_only=True))
    tensors = own_keys(load_tensors(folder), model)
    _require_all(folder, tensors, model)
    own = model.state_dict().keys()
    if is_tied := _is_tied(model.config, tensors):
        tensors.pop(TEXT_HEAD, None)
    fitting = {key: tensor.to(dtype) for key, tensor in tensors.items() if key in own}
    model.load_state_dict(fitting, strict=False, assign=True)
    if is_tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval().requires_grad_(False)


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """A model of these sizes, its weights yet to be loaded; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_dict(dict(config)))
    return model.eval().requires_grad_(False)


def empty_model(config: LlavaOnevisionConfig) -> nn.Module:
    """A model whose parameters have shapes and no memory; what it computes for itself (rotary frequencies) is there."""
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = LlavaOnevisionForConditionalGeneration(config)
        for name, module in list(model.named_modules()):
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                _with_buffers(model, name, type(module)(module.config))
    return model


def _with_buffers(model: nn.Module, name: str, twin: nn.Module) -> None:
    """Put the buffers of `twin` into the module of that name, or `twin` in its place if it is nothing but buffers."""
    if not list(twin.parameters()):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, twin)
        return
    for key, buffer in twin.named_buffers(recurse=False):
        model.get_submodule(name).register_buffer(key, buffer, persistent=False)


def _is_tied(config: Any, keys: Iterable[str]) -> bool:
    """Whether the text head is the embedding; 0.5B may say so in text_config alone, which transformers 4 ignores."""
    return config.tie_word_embeddings or (config.text_config.tie_word_embeddings and TEXT_HEAD not in keys)


def _require_all(folder: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Every weight is there in its size. What is there beside them is logged: it may be from another configuration."""
    own = model.state_dict()
    free = {TEXT_HEAD} if _is_tied(model.config, tensors) else set()
    lacking = {key for key in own if key not in tensors and key not in free}
    lacking |= {key for key in own if key in tensors and tensors[key].shape != own[key].shape}
    if lacking:
        raise CheckpointError(
            f"{folder} lacks {len(lacking)} of the model's weights, or has them in another size, first: {min(lacking)}"
            "; fetch its .safetensors files and config.json again"
        )
    if strange := [key for key in tensors if key not in own and not key.endswith(COMPUTED)]:
        log.warning("%s: %d weights belong to nothing in the model, first: %s", folder, len(strange), min(strange))
