"""Where models lie under ComfyUI: folder keys, combo lists, and errors that say where a missing file goes.

    models/LLM/<folder>           MLLMs, one folder each as published (shared with other packs)
    models/mindedit/*.safetensors LoRA and VisionHead of MIND-Edit
    models/ipadapter/*.safetensors IP-Adapters (shared with IPAdapter_plus)
    models/diffusion_models        painters in one file: Draw-In-Mind, as published or converted
    models/diffusers, models/vae   DC-AE, as a folder or as a file

A combo value is untrusted: it is looked up in the list it came from, never joined to a path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import folder_paths

from ..checkpoint import PICKLE_SUFFIXES, is_pickle, pickle_refused
from ..model_files import DIM_FILES, DIM_FOLDER, MINI_FOLDER

MINI, DIM_MINI = "mini (built in)", "dim-mini (built in)"
MINI_VARIABLE = "MINDEDIT_MINI"  # names another folder in the mini's layout, e.g. one fresh from train/
DIM_VARIABLE = "MINDEDIT_DIM_MINI"  # the same for dim-mini
NO_ADAPTER = "none"
WEIGHTS = ".safetensors"
LLAVA, QWEN = MLLM_TYPES = ("llava_onevision", "qwen2_5_vl")  # `model_type` in config.json
MAX_DEPTH = 3  # folders below models/LLM that are looked into

WHAT = {  # folder key -> what a user should put there
    "LLM": "a LLaVA-OneVision or Qwen2.5-VL folder as published (config.json, tokenizer, *.safetensors)",
    "mindedit": "a MIND-Edit adapter (*.safetensors, made by train.mind_edit)",
    "ipadapter": "an IP-Adapter, e.g. ip-adapter_sd15.safetensors of h94/IP-Adapter",
}


def register() -> None:
    """Tell ComfyUI the three folder keys; paths from extra_model_paths.yaml or another pack are kept."""
    for key in WHAT:
        paths, extensions = folder_paths.folder_names_and_paths.get(key, ([], set()))
        default = os.path.join(folder_paths.models_dir, key)
        merged = [*paths, *([] if default in paths else [default])]
        folder_paths.folder_names_and_paths[key] = (merged, _extensions(key, set(extensions)))


def _extensions(key: str, known: set[str]) -> set[str]:
    """`LLM` holds folders and stays as other packs left it; for the others an empty set would list every file."""
    return known if key == "LLM" else known | {WEIGHTS}


def list_mllms() -> list[str]:
    """The built-in minis, then every folder under models/LLM whose config.json is of a known MLLM."""
    return [MINI, *([DIM_MINI] if has_dim_mini() else []), *sorted(_mllm_folders())]


def mllm_type(choice: str) -> str:
    """Which of MLLM_TYPES a value of `list_mllms` is."""
    built_in = {MINI: LLAVA, DIM_MINI: QWEN}
    return built_in.get(choice) or mllm_type_of(resolve_mllm(choice))


def list_adapters() -> list[str]:
    """Adapter files for the MLLM: none, the mini's own, then models/mindedit."""
    return [NO_ADAPTER, MINI, *_files("mindedit")]


def list_ip_adapters() -> list[str]:
    """IP-Adapters: the mini's own, then models/ipadapter."""
    return [MINI, *_files("ipadapter")]


def found_ip_adapters() -> list[str]:
    """Every file under models/ipadapter, and what it is: "x.safetensors: plus, SD1.5, reads 257x1280 of ViT-H".

    Never raises for what lies there: a node's schema is made with it. A link to nowhere is left out.
    """
    listed = {name: folder_paths.get_full_path("ipadapter", name) for name in _files("ipadapter")}
    found = {name: Path(path) for name, path in listed.items() if path is not None} | _pickles("ipadapter")
    return [f"{name}: {_described(path)[1]}" for name, path in found.items()]


def require_ip_adapter(choice: str) -> None:
    """Raise ValueError, by the file's header alone, if this value of `list_ip_adapters` cannot be used."""
    usable, said = (True, "") if choice == MINI else _described(resolve_ip_adapter(choice))
    if not usable:
        raise ValueError(said)


def _described(path: Path) -> tuple[bool, str]:
    try:
        stat = path.stat()
    except OSError as error:
        return False, str(error)
    return _described_once(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _described_once(path: Path, _size: int, _time: int) -> tuple[bool, str]:
    from ..bridges.ip_adapter_layouts import describe_file

    return describe_file(path)


def mini_folder() -> Path:
    """The folder of the built-in mini, or the one of the same layout that the environment names."""
    return Path(os.environ.get(MINI_VARIABLE) or MINI_FOLDER)


def dim_folder() -> Path:
    """The folder of the built-in dim-mini, or the one of the same layout that the environment names."""
    return Path(os.environ.get(DIM_VARIABLE) or DIM_FOLDER)


def has_dim_mini() -> bool:
    """Whether dim-mini's files are where they belong."""
    return all((dim_folder() / name).is_file() for name in DIM_FILES)


def resolve_mllm(choice: str) -> Path:
    """The folder that a value of `list_mllms` stands for."""
    built_in = {MINI: mini_folder, DIM_MINI: dim_folder}
    return built_in[choice]() if choice in built_in else _found(_mllm_folders(), choice, "LLM")


def resolve_adapter(choice: str) -> Path:
    """The file that a value of `list_adapters` (not NO_ADAPTER) stands for."""
    return mini_folder() / "mind_edit.safetensors" if choice == MINI else _file(choice, "mindedit")


def resolve_ip_adapter(choice: str) -> Path:
    """The file that a value of `list_ip_adapters` stands for."""
    return mini_folder() / "ip_adapter.safetensors" if choice == MINI else _file(choice, "ipadapter")


RESOLVE = {"mllm": resolve_mllm, "adapter": resolve_adapter, "ip_adapter": resolve_ip_adapter}


def problem(**choices: str | None) -> str | None:
    """Why one of these choices, named by their kind in RESOLVE, stands for nothing here; None if all is well.

    A choice of None comes through a link, and NO_ADAPTER needs no file.
    """
    try:
        for kind, choice in choices.items():
            if choice not in (None, NO_ADAPTER):
                RESOLVE[kind](choice)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def fingerprint(kind: str, choice: str) -> str:
    """Name, size and time of what a choice stands for: a node reruns when the file changed. "" if it is not there."""
    try:
        path = mini_folder() if kind == "mini" else RESOLVE[kind](choice)
        files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
        return "|".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _files(key: str) -> list[str]:
    return [name for name in folder_paths.get_filename_list(key) if name.lower().endswith(WEIGHTS)]


def _file(choice: str, key: str) -> Path:
    path = folder_paths.get_full_path(key, choice) if choice in _files(key) else None
    if path is None:
        raise FileNotFoundError(_missing(choice, key))
    return Path(path)


def _found(entries: dict[str, Path], choice: str, key: str) -> Path:
    if choice not in entries:
        raise FileNotFoundError(_missing(choice, key))
    return entries[choice]


def _pickles(key: str) -> dict[str, Path]:
    """Files that `mindedit convert` is for, by their names relative to the folder."""
    roots = (Path(root) for root in folder_paths.get_folder_paths(key))
    found = ((path.relative_to(root).as_posix(), path) for root in roots for path in sorted(root.glob("**/*")))
    return {name: path for name, path in found if path.suffix in PICKLE_SUFFIXES and is_pickle(path)}


def _missing(choice: str, key: str) -> str:
    if (path := _pickles(key).get(choice)) is not None:
        return pickle_refused(path, "ip-adapter" if key == "ipadapter" else "")
    places = " or ".join(folder_paths.get_folder_paths(key))
    return f"{choice!r} is not there; put {WHAT[key]} under {places}, press R to refresh, and choose it again"


def _mllm_folders() -> dict[str, Path]:
    roots = [Path(root) for root in folder_paths.get_folder_paths("LLM")]
    found: dict[str, Path] = {}
    for root in roots:
        for folder in _folders(root, MAX_DEPTH):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """Folders of known MLLMs below `root`; a model's own subfolders are not looked into."""
    if depth == 0 or not root.is_dir():
        return
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        config = folder / "config.json"
        if not config.is_file():
            yield from _folders(folder, depth - 1)
        elif mllm_type_of(folder) in MLLM_TYPES:
            yield folder


def mllm_type_of(folder: Path) -> str | None:
    """`model_type` of a published folder; None if it has no config that says one."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
