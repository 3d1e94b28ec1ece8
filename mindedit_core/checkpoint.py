"""Weights that describe themselves: safetensors with config and provenance in the header.

The header holds a JSON object under `mindedit`: format, component, class, config, recipe, seed, steps, data, score,
commit.
Nothing here reads a pickle. What a file holds is told by `kinds`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

METADATA_KEY = "mindedit"
FORMAT = 1
INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")  # to search a folder by; what a file is, its content says
USUAL_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # of transformers and diffusers


class CheckpointError(ValueError):
    """A weights file that is missing, damaged or of another kind: what was found, what is needed, where it goes."""


# Writing -------------------------------------------------------------------------------------------------------------


def save_checkpoint(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], dtype: torch.dtype | None = None
) -> Path:
    """Write tensors and metadata so that the file is either the old one or the complete new one, never a part.

    Tensors that share memory (tied weights) are written once; `load_strict` knows them by the module's own ties.
    dtype: floating tensors are stored in it. Raises ValueError if a number would become infinite.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {key: _stored(key, tensor, dtype) for key, tensor in _without_ties(tensors).items()}
    header = {METADATA_KEY: json.dumps({"format": FORMAT, **metadata}, sort_keys=True)}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(stored, part, metadata=header)
        part.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _without_ties(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple] = set()
    kept = {}
    for key, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            kept[key] = tensor
        seen.add(place)
    return kept


def _stored(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is None or not tensor.is_floating_point():
        return tensor.clone(memory_format=torch.contiguous_format)
    cast = tensor.to(dtype, copy=True).contiguous()
    if torch.isinf(cast).any() and not torch.isinf(tensor).any():
        raise ValueError(
            f"{key} has values up to {tensor.abs().max():.3g}, which {dtype} cannot hold; keep it in float32"
        )
    return cast


# Reading -------------------------------------------------------------------------------------------------------------


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The JSON under `mindedit` in the header; {} for a file of somebody else's."""
    with _opened(Path(path)) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path} has unreadable metadata under {METADATA_KEY!r} ({error}); write it again or fetch a fresh copy"
        ) from error


def load_tensors(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """All tensors whose key starts with `prefix`, the prefix removed.

    path: one .safetensors file, or a folder in the published layouts (one file, or shards with an index).
    """
    found: dict[str, Tensor] = {}
    for file_path in weight_files(path):
        with _opened(file_path) as file:
            found.update({key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)})
    return found


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor, from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file_path in weight_files(path):
        with _opened(file_path) as file:
            shapes.update({key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})
    return shapes


def weight_files(path: str | Path) -> list[Path]:
    """The safetensors files that `path` (a file, or a folder of shards) stands for, every one of them present.

    Raises CheckpointError naming the missing file or the missing shards.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(
            f"no weights at {path}: neither file nor folder; put a .safetensors file or a model folder there"
        )
    if indices := sorted(path.glob(f"*{INDEX_SUFFIX}")):
        return _shards(path, indices[0])
    variants = sorted(path.glob("*.safetensors.index.*.json"))  # diffusers' name: ...safetensors.index.fp16.json
    return _shards(path, variants[0]) if variants and not _usual(path) else _single_file(path)


def _usual(folder: Path) -> list[Path]:
    return [folder / name for name in USUAL_NAMES if (folder / name).is_file()]


def variant_of(folder: str | Path) -> str | None:
    """The variant "fp16" where `weight_files` finds model.fp16.safetensors or its shards, else None."""
    name = weight_files(folder)[0].name.removesuffix(".safetensors")
    found = re.fullmatch(r"[^.]+?(?:-\d+-of-\d+)?\.(\w+?)(?:-\d+-of-\d+)?", name)
    return found and found[1]


def _single_file(folder: Path) -> list[Path]:
    files, usual = sorted(folder.glob("*.safetensors")), _usual(folder)  # beside variants such as *.fp16.safetensors
    if len(files) == 1 or len(usual) == 1:
        return usual or files
    if not files and (pickles := sorted(entry for entry in folder.glob("*.bin") if is_pickle(entry))):
        raise CheckpointError(pickle_refused(pickles[0]))
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise CheckpointError(
        f"{folder} must hold one .safetensors file, or shards with their *{INDEX_SUFFIX}; found {found}. "
        "Fetch the missing file into that folder (a .bin is converted by `mindedit convert`)"
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a weight index ({error!r}); fetch it again") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} shards named in {index.name}, first: {missing[0]}; "
            "fetch them into that folder"
        )
    return [folder / name for name in names]


@contextmanager
def _opened(path: Path):
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}; put it there")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        if is_pickle(path):
            raise CheckpointError(pickle_refused(path)) from None
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a complete safetensors file: {error}; "
            "it is truncated or of another format, fetch it again"
        ) from error


def is_pickle(path: Path) -> bool:
    """True for what `torch.save` writes (a zip archive, or a bare pickle before 1.6), by its first bytes.

    A safetensors file may begin with the same two bytes, a part of its header's length, but has a brace at byte 8.
    What cannot be opened is none.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    bare = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return (start[:2] == b"PK" or bare) and start[8:] != b"{"


def pickle_refused(path: Path, kind: str = "") -> str:
    """What to say of a pickle, with the command that makes it a safetensors file. kind: as `mindedit convert` takes."""
    out = path.with_suffix(".safetensors")
    out = path.with_name(f"{path.stem}-converted.safetensors") if out == path else out
    words = ["mindedit", "convert", *([kind] if kind else []), _quoted(path), _quoted(out)]
    return (
        f"{path} is a pickle, which can run code when it is read, so only safetensors files are read here; turn it "
        f"into one with `{' '.join(words)}` (or `python -m mindedit_core convert ...` in this pack's folder)"
    )


def _quoted(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], name: str, *, assign: bool = False) -> nn.Module:
    """Put `tensors` into `module`, every key and every shape accounted for; values are cast to the module's dtype.

    assign: the tensors themselves become the parameters, in their own dtype; the module may be on the meta device.
    Keys that the module ties to a loaded one may be absent; any other difference raises CheckpointError with `name`.
    """
    own = module.state_dict(keep_vars=True)
    missing = [key for key in own if key not in tensors and not _is_tied(key, own, tensors)]
    unexpected = [key for key in tensors if key not in own]
    if missing or unexpected:
        raise CheckpointError(_difference(name, missing, unexpected, len(own)))
    if wrong := [key for key, tensor in tensors.items() if tensor.shape != own[key].shape]:
        key = wrong[0]
        raise CheckpointError(
            f"checkpoint {name} has {len(wrong)} tensors of another size, first: {key} is {tuple(tensors[key].shape)}, "
            f"needed {tuple(own[key].shape)}; it belongs to a model of another configuration"
        )
    module.load_state_dict(dict(tensors), strict=False, assign=assign)
    return module


def _is_tied(key: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    return any(own[other] is own[key] for other in tensors if other in own)


def _difference(name: str, missing: list[str], unexpected: list[str], total: int) -> str:
    parts = []
    if missing:
        parts.append(f"lacks {len(missing)} of {total} keys, first: {missing[0]}")
    if unexpected:
        parts.append(f"has {len(unexpected)} keys too many, first: {unexpected[0]}")
    return f"checkpoint {name} {' and '.join(parts)}; was it made for another model, or by an older version?"
