"""A Hugging Face model's weights from their files into a model: mapped, not copied, whatever version wrote their keys.

The model is built without memory of its own, and takes the tensors as they lie in the files. So an MLLM in the dtype it
is stored in costs its weights once, and only those pages that were read; another dtype is cast tensor by tensor.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig

from ..checkpoint import CheckpointError, load_tensors, weight_files
from ..hf_configs import config_from, with_rope

log = logging.getLogger(__name__)

TEXT_HEAD = "lm_head.weight"
COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")  # in old files; the model makes them itself


TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LARGE = 1 << 20  # numbers of a parameter


class Family(NamedTuple):
    """One kind of model. model_type: in its config.json;  config, model: transformers' classes

    own_keys(tensors, model): any published layout of keys in that of this version of transformers
    where: how its folders are recognised, for the error message
    """

    model_type: str
    config: type
    model: type
    own_keys: Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]]
    where: str


def load_weights(
    folder: Path, dtype: torch.dtype, family: Family, weights: Path | None = None, prefix: str = ""
) -> nn.Module:
    """The model of a Hugging Face folder, every weight from its files. CheckpointError for one that is not there.

    weights: another file that holds them, under keys with this prefix; the folder then needs none
    """
    model = empty_model(with_rope(family.config.from_pretrained(folder, local_files_only=True)), family.model)
    tensors = family.own_keys(load_tensors(weights or folder, prefix), model)
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


def build_model(config: Mapping[str, Any], family: Family) -> nn.Module:
    """A model of these sizes, its weights yet to be loaded; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        model = family.model(config_from(family.config, config))
    return model.eval().requires_grad_(False)


def empty_model(config: Any, model_class: type) -> nn.Module:
    """A model whose parameters have shapes and no memory; what it computes for itself (rotary frequencies) is there."""
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = model_class(config)
        for name, module in list(model.named_modules()):
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                _with_buffers(model, name, _twin(module))
    return model


def _twin(module: nn.Module) -> nn.Module:
    """The same module in memory. transformers 4 makes the rotary embedding of a vision tower from its width alone."""
    return type(module)(module.config if hasattr(module, "config") else 2 * len(module.inv_freq))


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
    in_text = getattr(config.text_config, "tie_word_embeddings", False)  # transformers 5 leaves it out of some
    return config.tie_word_embeddings or (in_text and TEXT_HEAD not in keys)


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


# Of a folder ---------------------------------------------------------------------------------------------------------


def compute_dtype(stored: torch.dtype, asked: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and what to tell the user about it."""
    if asked is not None:
        return asked, ""
    if stored == torch.float16 and device.type == "cpu":
        return torch.float32, "the weights are stored in float16 and computed in float32 on the CPU"
    return stored, ""



def fingerprint(model: nn.Module) -> str:
    """12 hexadecimal digits that change with any weight matrix: a few numbers of every parameter, hashed.

    Of a large one they lie in five places, since each costs a read where weights are mapped from a file.
    """
    digest = hashlib.sha256()
    named = {name.replace(".vision_model.", "."): parameter for name, parameter in model.named_parameters()}
    for name, parameter in sorted(named.items()):  # the same name and order in every version of transformers
        flat = parameter.detach().flatten()
        places = 16 if flat.numel() < LARGE else 4
        few = flat[:: max(1, flat.numel() // places)][: places + 1].float().cpu()
        digest.update(name.encode() + few.numpy().tobytes())
    return digest.hexdigest()[:12]


def require_model_type(folder: Path, family: Family) -> None:
    """Raise CheckpointError unless `folder`/config.json is of this family."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not JSON ({error}); fetch it again") from error
    if found != family.model_type:
        raise CheckpointError(
            f"{folder} holds a model of type {found!r}, needed is {family.model_type!r} {family.where}"
        )



def stored_dtype(path: str | Path) -> torch.dtype:
    """The dtype of most floating numbers in a file or folder, from the headers alone."""
    count: Counter[torch.dtype] = Counter()
    for file_path in weight_files(path):
        with safe_open(file_path, framework="pt") as file:
            for key in file.keys():
                part = file.get_slice(key)
                if part.get_dtype() in DTYPES:
                    count[DTYPES[part.get_dtype()]] += torch.Size(part.get_shape()).numel()
    return count.most_common(1)[0][0] if count else torch.float32



def load_tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder. Raises CheckpointError if it is missing or cannot be read."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{folder} has no tokenizer; fetch tokenizer.json and tokenizer_config.json into it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has a tokenizer that cannot be read ({error}); fetch tokenizer.json, tokenizer_config.json again"
        ) from error
