"""Painters and autoencoders of Draw-In-Mind under ComfyUI: what lies where, and from a combo's value to MODEL and VAE.

    models/diffusion_models/*.safetensors   a painter: published (with everything in it) or converted
    models/diffusers/<folder>               a SANA1.5 for text-to-image, with its text encoder, as published
    models/vae/*.safetensors                DC-AE in one file;  models/diffusers/<folder>   DC-AE as published
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import folder_paths
import torch

from ..backbones.hf_weights import stored_dtype
from ..bridges.mlp import MLPProjector
from ..checkpoint import CheckpointError, load_tensors, read_metadata, read_shapes
from ..dim.files import DimParts, read_dim
from ..dim.published import embedded_vae
from ..kinds import is_dc_ae, kind_of
from ..model_files import load_model, load_published
from ..painters.flow import FlowSchedule
from ..painters.sana_files import load_dc_ae, load_sana
from .comfy_dc_ae import DcAeVAE
from .comfy_dtype import AUTO, Precision, precision
from .comfy_folders import DIM_MINI, WEIGHTS, dim_folder, has_dim_mini, mini_folder
from .comfy_managed import stored_in
from .comfy_sana import StatesInsteadOfText, painter_of, sana_model

SANA, DC_AE_CLASS = "SanaTransformer2DModel", "AutoencoderDC"
OWN = "the painter's own"  # autoencoder: in its file, or built in
PAINTERS = ("dim_published", "dim", "sana")
LICENCES = (
    "Licences are the owners': DIM-4.6B is CC BY-NC 4.0, Qwen2.5-VL-3B Qwen Research, SANA1.5 and its DC-AE NVIDIA's."
)


def list_painters() -> list[str]:
    """The built-in dim-mini, painters of Draw-In-Mind under models/diffusion_models, SANAs under models/diffusers."""
    built_in = [DIM_MINI] if has_dim_mini() else []
    return [*built_in, *_of_kinds("diffusion_models", *PAINTERS), *sorted(_folders_of("transformer", SANA))]


def list_autoencoders() -> list[str]:
    """The painter's own, then DC-AE files under models/vae and folders under models/diffusers."""
    return [OWN, *_of_kinds("vae", DC_AE_CLASS), *sorted(_folders_of("vae", DC_AE_CLASS))]


def problem(painter: str | None = None, vae: str | None = None) -> str | None:
    """Why one of these choices stands for nothing here; None if all is well, or if it comes through a link."""
    if painter is not None and painter not in list_painters():
        return _missing(painter, "model.safetensors of stdKonjac/DIM-4.6B-Edit", "diffusion_models")
    if vae is not None and vae not in list_autoencoders():
        return _missing(vae, "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers as a folder", "diffusers")
    return None


def fingerprint(painter: str | None, vae: str | None) -> str:
    """Size and time of what these choices stand for: a node reruns when a file changed."""
    if painter == DIM_MINI:
        files = sorted(dim_folder().glob("*.safetensors"))
    else:
        names = [("diffusion_models", painter), ("vae", vae)]
        found = [folder_paths.get_full_path(key, name) for key, name in names if name is not None]
        files = [Path(path) for path in found if path is not None]
        folders = [_folders_of("transformer", SANA).get(painter), _folders_of("vae", DC_AE_CLASS).get(vae)]
        files += [file for folder in folders if folder for file in sorted(folder.glob("*.safetensors"))]
    return "|".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


def describe(model: Any) -> str:
    """What the user should know before a wait: `1.6 B parameters, edits, paints 1024x1024`."""
    count = sum(parameter.numel() for parameter in model.model.diffusion_model.parameters())
    does = "edits" if model.model.reads_source else "text-to-image"
    base = painter_of(model).base
    return f"{count / 1e9:.2g} B parameters, {does}, paints {base}x{base} or as many pixels"


class Loaded(NamedTuple):
    """In the order of Painter Loader's outputs. clip: a text encoder, or what says that there is none"""

    model: Any
    clip: Any
    vae: Any


def load_painter(painter: str, vae: str = OWN, dtype: str = AUTO) -> Loaded:
    """The painter of two combo values, kept in its stored dtype and computed as `comfy_dtype.precision` says.

    Raises FileNotFoundError, CheckpointError and Misfit (ValueErrors) that say what was found and what to do.
    """
    if (said := problem(painter, vae)) is not None:
        raise FileNotFoundError(said)
    if painter == DIM_MINI:
        return _mini()
    if (folder := _folders_of("transformer", SANA).get(painter)) is not None:
        return _plain_sana(folder.parent, vae, dtype)
    path = Path(folder_paths.get_full_path_or_raise("diffusion_models", painter))
    chosen = precision(dtype, stored_dtype(path), mm.get_torch_device())
    hosted = DcAeVAE(_autoencoder(path, vae), _vae_dtype(chosen))
    found = _alone(path, chosen.kept) if _kind(path) == "sana" else _of_dim(path, chosen.kept)
    return Loaded(sana_model(found, hosted, chosen.compute), StatesInsteadOfText(), hosted)


def _alone(path: Path, dtype: torch.dtype) -> DimParts:
    """A SANA without projector, as `mindedit convert sana` writes it."""
    config = read_metadata(path).get("config")
    if config is None:
        raise CheckpointError(f"{path} does not say its sizes; use the whole diffusers folder, in models/diffusers")
    return DimParts(None, load_sana(config, load_tensors(path), str(path), dtype), None, FlowSchedule())


def _of_dim(path: Path, dtype: torch.dtype | None) -> DimParts:
    """Projector, SANA and null tokens. dtype: None keeps the stored one"""
    file, name = read_dim(path), str(path)
    projector = MLPProjector.from_tensors(file.projector, len(file.null_tokens), name, dtype)
    transformer = load_sana(file.config["transformer"], file.transformer, name, dtype)
    return DimParts(projector, transformer, file.null_tokens, FlowSchedule(file.config["flow_shift"]))


def _plain_sana(folder: Path, vae: str, dtype: str) -> Loaded:
    """Text-to-image of a diffusers folder: its transformer, autoencoder and text encoder."""
    from .comfy_sana_text import load_text

    chosen = precision(dtype, stored_dtype(folder / "transformer"), mm.get_torch_device())
    transformer = stored_in(load_published(SANA, folder / "transformer"), chosen.kept)
    own = load_published(DC_AE_CLASS, folder / "vae") if vae == OWN else _autoencoder(folder, vae)
    hosted = DcAeVAE(own, _vae_dtype(chosen))
    parts = DimParts(None, transformer, None, FlowSchedule())
    return Loaded(sana_model(parts, hosted, chosen.compute), load_text(folder, dtype), hosted)


def _mini() -> Loaded:
    """In fp16, computed in fp32: it is small, and a picture is the same on every device."""
    own = dim_folder() / "autoencoder.safetensors"
    path = own if own.is_file() else mini_folder() / own.name
    vae = DcAeVAE(stored_in(load_model(path), torch.float16), torch.float32)
    model = sana_model(_of_dim(dim_folder() / "dim.safetensors", None), vae, torch.float32)
    return Loaded(model, StatesInsteadOfText(), vae)


def _vae_dtype(chosen: Precision) -> torch.dtype:
    """bf16 where the painter computes in half precision; the autoencoder's numbers are too large for fp16."""
    return torch.float32 if chosen.compute == torch.float32 else torch.bfloat16


def _autoencoder(path: Path, choice: str) -> Any:
    """diffusers' AutoencoderDC: of a folder, of a file, or of the painter's own."""
    if choice in (folders := _folders_of("vae", DC_AE_CLASS)):
        return load_published(DC_AE_CLASS, folders[choice])
    if choice != OWN:
        file = Path(folder_paths.get_full_path_or_raise("vae", choice))
        return load_dc_ae(load_tensors(file), str(file))
    if kind_of(read_shapes(path)) == "dim_published":
        return load_dc_ae(embedded_vae(path), str(path))
    raise CheckpointError(
        f"{path.name} is a painter without an autoencoder; fetch mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers "
        "into models/diffusers and choose it as vae"
    )


# What lies where -----------------------------------------------------------------------------------------------------


def _of_kinds(key: str, *kinds: str) -> list[str]:
    """Files of these kinds under a folder key, told by their headers."""
    names = [name for name in folder_paths.get_filename_list(key) if name.lower().endswith(WEIGHTS)]
    places = {name: folder_paths.get_full_path(key, name) for name in names}
    return [name for name, path in places.items() if path is not None and _kind(Path(path)) in kinds]


def _kind(path: Path) -> str | None:
    try:
        stat = path.stat()
        return _kind_once(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=1024)
def _kind_once(path: Path, _size: int, _time: int) -> str | None:
    shapes = read_shapes(path)
    return DC_AE_CLASS if is_dc_ae(shapes) else kind_of(shapes)


def _folders_of(part: str, class_name: str) -> dict[str, Path]:
    """Folders of this class under models/diffusers, bare or as the `part` of a pipeline, by their names there."""
    found = {}
    for root in map(Path, folder_paths.get_folder_paths("diffusers")):
        for config in sorted([*root.glob("*/config.json"), *root.glob(f"*/{part}/config.json")]):
            if _class_name(config) == class_name:
                found[config.parent.relative_to(root).as_posix()] = config.parent
    return found


def _class_name(config: Path) -> str | None:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return None


def _missing(choice: str, what: str, key: str) -> str:
    places = " or ".join(folder_paths.get_folder_paths(key))
    return f"{choice!r} is not there; put {what} under {places}, press R to refresh, and choose it again"
