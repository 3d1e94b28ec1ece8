"""Painters and autoencoders of Draw-In-Mind under ComfyUI: what lies where, and from a combo's value to MODEL and VAE.

    models/diffusion_models/*.safetensors   a painter: published (with everything in it) or converted
    models/diffusers/<folder>               a SANA1.5 for text-to-image, with its text encoder, as published
    models/vae/*.safetensors                DC-AE in one file;  models/diffusers/<folder>   DC-AE as published

A SANA's transformer alone takes text encoder and autoencoder from such a folder of another.
"""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import folder_paths
import torch

from ..backbones.hf_weights import stored_dtype
from ..bridges.mlp import MLPProjector
from ..checkpoint import (
    PICKLE_SUFFIXES,
    CheckpointError,
    is_pickle,
    load_tensors,
    pickle_refused,
    read_metadata,
    read_shapes,
)
from ..contracts import Misfit
from ..dim.files import DimParts, read_dim
from ..dim.published import embedded_vae
from ..kinds import is_dc_ae, kind_of
from ..model_files import load_model, load_published
from ..painters.flow import FlowSchedule
from ..painters.sana_files import load_dc_ae, load_sana
from .comfy_dc_ae import DcAeVAE, empty_latent_size
from .comfy_dtype import AUTO, Precision, precision
from .comfy_folders import DIM_MINI, WEIGHTS, dim_folder, has_dim_mini, mini_folder
from .comfy_managed import stored_in
from .comfy_sana import NoTextEncoder, painter_of, sana_model

log = logging.getLogger(__name__)

SANA, DC_AE_CLASS = "SanaTransformer2DModel", "AutoencoderDC"
OWN = "the painter's own"  # autoencoder: in its file, or built in
PAINTERS = ("dim_published", "dim", "sana")
WHOLE = "SANA1.5_1.6B_1024px_diffusers"  # of Efficient-Large-Model: a folder with every part of a SANA
LICENCES = (
    "Licences are the owners': DIM-4.6B is CC BY-NC 4.0, Qwen2.5-VL-3B Qwen Research, SANA1.5 and its DC-AE NVIDIA's, "
    "SANA's text encoder under the Gemma terms of use (Google)."
)


def list_painters() -> list[str]:
    """The built-in dim-mini, painters of Draw-In-Mind under models/diffusion_models, SANAs under models/diffusers."""
    built_in = [DIM_MINI] if has_dim_mini() else []
    return [*built_in, *_of_kinds("diffusion_models", *PAINTERS), *sorted(_folders_of("transformer", SANA))]


def list_autoencoders() -> list[str]:
    """The painter's own, then DC-AE files under models/vae and folders under models/diffusers."""
    return [OWN, *_of_kinds("vae", DC_AE_CLASS), *sorted(_folders_of("vae", DC_AE_CLASS))]


def require(painter: str | None = None, vae: str | None = None) -> None:
    """Raise unless these choices stand for something here, and go together. None comes through a link.

    FileNotFoundError for what is not there, Misfit for an autoencoder that would not be used.
    """
    if painter is not None and painter not in list_painters():
        if (path := _pickles().get(painter)) is not None:
            raise FileNotFoundError(pickle_refused(path, "sana"))
        raise FileNotFoundError(_missing(painter, "model.safetensors of stdKonjac/DIM-4.6B-Edit", "diffusion_models"))
    if vae is not None and vae not in list_autoencoders():
        what = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers as a folder"
        raise FileNotFoundError(_missing(vae, what, "diffusers"))
    if painter == DIM_MINI and vae not in (None, OWN):
        raise Misfit(f"{DIM_MINI} paints latents of its own autoencoder, got the vae {vae!r}; choose {OWN!r}")


def problem(painter: str | None = None, vae: str | None = None) -> str | None:
    """What `require` says of these choices; None if all is well."""
    try:
        require(painter, vae)
    except (FileNotFoundError, Misfit) as error:
        return str(error)
    return None


def found_pickles() -> list[str]:
    """What lies among the painters and is not listed since it is a pickle, each with the command that converts it."""
    return [f"{name}, if it is a SANA: {pickle_refused(path, 'sana')}" for name, path in _pickles().items()]


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
        files += [*_configs("text_encoder"), *_configs("vae")]  # of which a SANA alone takes what it lacks
    return "|".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


def describe(model: Any) -> str:
    """What the user should know before a wait: `1.6 B parameters, edits, paints 1024x1024`.

    Text-to-image has its size from the latent, whose cells are of more pixels than the host's own nodes count.
    """
    count = sum(parameter.numel() for parameter in model.model.diffusion_model.parameters())
    base = painter_of(model).base
    said = f"paints {base}x{base} or as many pixels"
    if model.model.reads_source:
        return f"{count / 1e9:.2g} B parameters, edits, {said}"
    side = empty_latent_size(base, painter_of(model).factor)
    size = f"for KSampler, VAE Encode an Empty Image of that size, or take an Empty Latent Image of {side}x{side}"
    return f"{count / 1e9:.2g} B parameters, text-to-image, {said}; {size}"


class Loaded(NamedTuple):
    """In the order of Painter Loader's outputs. clip: a text encoder, or what says why there is none"""

    model: Any
    clip: Any
    vae: Any


def load_painter(painter: str, vae: str = OWN, dtype: str = AUTO) -> Loaded:
    """The painter of two combo values, kept in its stored dtype and computed as `comfy_dtype.precision` says.

    Raises FileNotFoundError, CheckpointError and Misfit (ValueErrors) that say what was found and what to do.
    """
    require(painter, vae)
    if painter == DIM_MINI:
        return _mini()
    folder = _folders_of("transformer", SANA).get(painter)
    path = folder or Path(folder_paths.get_full_path_or_raise("diffusion_models", painter))
    if folder is not None or _kind(path) == "sana":
        return _plain_sana(path, vae, dtype)
    chosen = precision(dtype, stored_dtype(path), mm.get_torch_device())
    hosted = DcAeVAE(_autoencoder(path, vae), _vae_dtype(chosen))
    return Loaded(sana_model(_of_dim(path, chosen.kept), hosted, chosen.compute), NoTextEncoder(), hosted)


def _of_dim(path: Path, dtype: torch.dtype | None) -> DimParts:
    """Projector, SANA and null tokens. dtype: None keeps the stored one"""
    file, name = read_dim(path), str(path)
    projector = MLPProjector.from_tensors(file.projector, len(file.null_tokens), name, dtype)
    transformer = load_sana(file.config["transformer"], file.transformer, name, dtype)
    return DimParts(projector, transformer, file.null_tokens, FlowSchedule(file.config["flow_shift"]))


def _plain_sana(path: Path, vae: str, dtype: str) -> Loaded:
    """Text-to-image: the transformer of a diffusers folder or of a converted file, with what lies beside it.

    Text encoder and autoencoder that do not lie beside it are those of another SANA's folder.
    """
    from .comfy_sana_text import load_text

    chosen = precision(dtype, stored_dtype(path), mm.get_torch_device())
    transformer = _transformer(path, chosen.kept)
    width, channels = transformer.config["caption_channels"], transformer.config["out_channels"]
    home = _beside(path, "text_encoder", model_type="gemma2", hidden_size=width)
    own = _beside(path, "vae", _class_name=DC_AE_CLASS, latent_channels=channels) if vae == OWN else None
    log.info("%s: text encoder of %s, autoencoder of %s", path, home or "none", own or vae)
    loaded = load_published(DC_AE_CLASS, own / "vae") if own else _autoencoder(path, vae)
    hosted = DcAeVAE(loaded, _vae_dtype(chosen))
    model = sana_model(DimParts(None, transformer, None, FlowSchedule()), hosted, chosen.compute)
    return Loaded(model, load_text(home, dtype) if home else NoTextEncoder(_no_text_encoder(width)), hosted)


def _transformer(path: Path, dtype: torch.dtype) -> Any:
    """SANA alone, of a diffusers folder or of a file of `mindedit convert sana`, mapped where `dtype` is its own."""
    config = _said(path / "config.json") if path.is_dir() else read_metadata(path).get("config")
    if not config:
        raise CheckpointError(f"{path} does not say its sizes; use the whole diffusers folder, in models/diffusers")
    return load_sana(config, load_tensors(path), str(path), dtype)


def _no_text_encoder(width: int) -> str:
    places = " or ".join(str(Path(root) / WHOLE) for root in folder_paths.get_folder_paths("diffusers"))
    return (
        f"this SANA reads the states of a Gemma-2 of width {width}, and there is none; put text_encoder and tokenizer "
        f"of Efficient-Large-Model/{WHOLE} (or another SANA of that width) into {places}, press R, and run again"
    )


def _mini() -> Loaded:
    """In fp16, computed in fp32: it is small, and a picture is the same on every device."""
    own = dim_folder() / "autoencoder.safetensors"
    path = own if own.is_file() else mini_folder() / own.name
    vae = DcAeVAE(stored_in(load_model(path), torch.float16), torch.float32)
    model = sana_model(_of_dim(dim_folder() / "dim.safetensors", None), vae, torch.float32)
    return Loaded(model, NoTextEncoder(), vae)


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
    """Files of these kinds under a folder key, told by their headers; subfolders as `/`, which templates write."""
    names = [Path(name).as_posix() for name in folder_paths.get_filename_list(key) if name.lower().endswith(WEIGHTS)]
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
            if _said(config).get("_class_name") == class_name:
                found[config.parent.relative_to(root).as_posix()] = config.parent
    return found


def _beside(path: Path, part: str, **wanted: Any) -> Path | None:
    """The pipeline, that of `path` or else another under models/diffusers, whose `part` says this of itself."""
    for pipeline in (path.parent, *(config.parents[1] for config in _configs(part))):
        said = _said(pipeline / part / "config.json")
        if all(said.get(key) == value for key, value in wanted.items()):
            return pipeline
    return None


def _configs(part: str) -> list[Path]:
    """config.json of every such part of a pipeline under models/diffusers."""
    roots = map(Path, folder_paths.get_folder_paths("diffusers"))
    return [config for root in roots for config in sorted(root.glob(f"*/{part}/config.json"))]


def _said(config: Path) -> dict[str, Any]:
    """What a config.json says; {} if it is none."""
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _pickles() -> dict[str, Path]:
    """Files under models/diffusion_models that `mindedit convert` is for, by the names that the host lists."""
    names = [name for name in folder_paths.get_filename_list("diffusion_models") if name.endswith(PICKLE_SUFFIXES)]
    places = {Path(name).as_posix(): folder_paths.get_full_path("diffusion_models", name) for name in names}
    return {name: Path(path) for name, path in places.items() if path is not None and is_pickle(Path(path))}


def _missing(choice: str, what: str, key: str) -> str:
    places = " or ".join(folder_paths.get_folder_paths(key))
    return f"{choice!r} is not there; put {what} under {places}, press R to refresh, and choose it again"
