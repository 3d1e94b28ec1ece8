"""What is on this machine: packages, the mini, a ComfyUI and its models; what is missing, and where it goes."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .bridges.ip_adapter_layouts import describe_file, said_embedding
from .checkpoint import PICKLE_SUFFIXES, is_pickle, read_metadata, weight_files
from .contracts import GLOBAL
from .dim.published import holds_an_mllm
from .kinds import detect
from .model_files import MINI_FILES, MINI_FOLDER, TOKENIZER

OK, MISSING, OPTIONAL = "ok", "MISSING", "--"
ROOT = Path(__file__).resolve().parents[1]
HOST_PACKAGES = ("torch", "numpy", "pillow", "tqdm")
FLOORS = {"diffusers": "0.35", "einops": "0.6", "safetensors": "0.4.2", "transformers": "4.57"}  # requirements.txt
QWEN = "qwen2_5_vl"
MLLMS = {  # `model_type` in config.json -> its name, and what is fetched
    "llava_onevision": ("LLaVA-OneVision", "a folder of llava-hf/*-ov-hf"),
    QWEN: ("Qwen2.5-VL", "a folder of Qwen/Qwen2.5-VL-*-Instruct"),
}
PAINTERS = ("dim_published", "dim", "sana")


@dataclass(frozen=True)
class Line:
    """One finding. state: OK, MISSING (something will not work) or OPTIONAL (not there, not needed for the mini)."""

    state: str
    what: str
    detail: str

    def __str__(self) -> str:
        return f"  {self.state:8}{self.what:26}{self.detail}"


def packages() -> Iterator[Line]:
    """Python and every package that the core needs, with its version."""
    yield Line(OK, "python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for name in (*HOST_PACKAGES, *FLOORS):
        yield _package(name, FLOORS.get(name))


def _package(name: str, least: str | None) -> Line:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Line(MISSING, name, f"pip install '{name}{'>=' + least if least else ''}'")
    if least and _numbers(version) < _numbers(least):
        return Line(MISSING, name, f"{version} is too old: pip install '{name}>={least}'")
    return Line(OK, name, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def mini(folder: Path = MINI_FOLDER, files: Sequence[str] = MINI_FILES) -> Iterator[Line]:
    """Every file of a mini: its size, recipe and score as its own metadata says."""
    for name in files:
        path = folder / name
        if not path.is_file():
            yield Line(MISSING, name, f"goes into {folder}; `git checkout` it, or train it with the recipes in train/")
        else:
            yield _described(path)


def _described(path: Path) -> Line:
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    if path.name == TOKENIZER:
        return Line(OK, path.name, size)
    try:
        said = read_metadata(path)
    except ValueError as error:
        return Line(MISSING, path.name, str(error))
    facts = [f"{key} {said[key]}" for key in ("recipe", "steps", "score") if key in said]
    return Line(OK, path.name, ", ".join([size, *facts]))


# ComfyUI -------------------------------------------------------------------------------------------------------------


def find_comfyui() -> Path | None:
    """COMFYUI_PATH, else the ComfyUI in whose custom_nodes this repository stands, else ~/ComfyUI."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else [ROOT.parent.parent, Path.home() / "ComfyUI"]
    return next((place for place in places if (place / "main.py").is_file() and (place / "comfy").is_dir()), None)


def comfyui(place: Path | None) -> Iterator[Line]:
    """The host and the models of full size in its folders."""
    if place is None:
        yield Line(OPTIONAL, "ComfyUI", "not found; set COMFYUI_PATH if you have one")
        return
    yield Line(OK, "ComfyUI", f"{_version(place)} at {place}")
    yield _installed(place)
    models = place / "models"
    for model_type, (name, wanted) in MLLMS.items():
        yield from _listed(name, models / "LLM", _mllms(models, model_type), wanted)
    adapters = [
        f"{name}: {_said_head(models / 'mindedit' / name)}" for name in _files(models / "mindedit", "mind_edit")
    ]
    yield from _listed("MIND-Edit adapter", models / "mindedit", adapters, "made by train.mind_edit")
    yield from _ip_adapters(models / "ipadapter")
    found = _files(models / "checkpoints", "sd_checkpoint")
    yield from _listed("Stable Diffusion", models / "checkpoints", found, "an SD1.5 file")
    place, wanted = models / "diffusion_models", "model.safetensors of stdKonjac/DIM-4.6B-Edit"
    painters = [f"{name}: {kind}" for kind in PAINTERS for name in _files(place, kind)]
    yield from _listed("Draw-In-Mind or SANA", place, painters, wanted)
    wanted = "the folder of mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers, for a painter without one,"
    yield from _listed("DC-AE", models / "diffusers", _autoencoders(models / "diffusers"), wanted)


def _version(place: Path) -> str:
    path = place / "comfyui_version.py"
    found = re.search(r'"([\d.]+)"', path.read_text(encoding="utf-8")) if path.is_file() else None
    return found.group(1) if found else "of unknown version"


def _installed(place: Path) -> Line:
    nodes = place / "custom_nodes"
    links = [entry for entry in nodes.iterdir() if entry.resolve() == ROOT] if nodes.is_dir() else []
    if links:
        return Line(OK, "MindEdit in ComfyUI", str(links[0]))
    return Line(OPTIONAL, "MindEdit in ComfyUI", f"not there; clone or link this repository into {nodes}")


def _listed(what: str, folder: Path, found: list[str], wanted: str) -> Iterator[Line]:
    yield from (Line(OK, what, f"{folder.name}/{name}") for name in found)
    if not found:
        yield Line(OPTIONAL, what, f"none; {wanted} goes into {folder}")


def _mllms(models: Path, model_type: str) -> list[str]:
    folder = models / "LLM"
    found = (path for path, said in _configs(folder) if said.get("model_type") == model_type)
    painters = models / "diffusion_models"
    files = _files(painters, PAINTERS[0]) if model_type == QWEN else []
    copies = [name for name in files if holds_an_mllm(painters / name)]
    return [f"{path.relative_to(folder)}{_weights(path, copies)}" for path in found]


def _autoencoders(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path, said in _configs(folder)
            if said.get("_class_name") == "AutoencoderDC"]


def _configs(folder: Path) -> Iterator[tuple[Path, dict]]:
    """Every folder below `folder` that has a config.json, and what that says."""
    for config in sorted(folder.glob("**/config.json")):
        with suppress(ValueError, OSError):
            if isinstance(said := json.loads(config.read_text(encoding="utf-8")), dict):
                yield config.parent, said


def _weights(folder: Path, copies: Sequence[str]) -> str:
    """What is to be said of a folder's weights; one without any is read from a published painter's copy."""
    if copies and not any(folder.glob("*.safetensors")):
        return f" (no weights of its own: those inside diffusion_models/{copies[0]} are read)"
    try:
        weight_files(folder)
    except ValueError as error:
        return f" (unusable: {error})"
    return ""


def _files(folder: Path, kind: str) -> list[str]:
    """Files of one of `kinds.KINDS` below `folder`, by their names there."""
    found = []
    for path in sorted(folder.glob("**/*.safetensors")):
        with suppress(ValueError):
            if detect(path) == kind:
                found.append(path.relative_to(folder).as_posix())
    return found


def _said_head(path: Path) -> str:
    """What the VisionHead of an adapter file predicts, in the words that are used of IP-Adapters."""
    config = read_metadata(path).get("config", {})
    if not (head := config.get("vision_head")):
        return "no VisionHead, text only"
    predicted = said_embedding(head.get("form", GLOBAL), head.get("embed_dim", 0))
    return f"predicts {predicted}, CLIP space {config.get('clip_space', {}).get('name', 'unnamed')}"


def _ip_adapters(folder: Path) -> Iterator[Line]:
    """Every IP-Adapter with its layout, those that cannot be used, and pickles with the command that converts them."""
    files = sorted(folder.glob("**/*.safetensors")) + pickles_in(folder)
    for path in files:
        usable, said = describe_file(path)
        yield Line(OK if usable else OPTIONAL, "IP-Adapter", f"{path.relative_to(folder.parent).as_posix()}: {said}")
    if not files:
        wanted = "a file of h94/IP-Adapter, such as ip-adapter_sd15.safetensors,"
        yield Line(OPTIONAL, "IP-Adapter", f"none; {wanted} goes into {folder}")


def pickles_in(folder: Path) -> list[Path]:
    """Files below `folder` that `mindedit convert` is for."""
    return sorted(path for path in folder.glob("**/*") if path.suffix in PICKLE_SUFFIXES and is_pickle(path))
