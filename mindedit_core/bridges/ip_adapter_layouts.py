"""The published layouts of h94/IP-Adapter, told apart by keys and shapes alone, so that a file's header is enough.

    layout     image_proj                          emits                reads
    base       proj, norm                          4 tokens             global embedding: 1024 ViT-H, 1280 ViT-bigG
    plus       latents, proj_in, layers, ...       16 tokens            257 x 1280 states of ViT-H, hidden_states[-2]
    full-face  proj.0, proj.2, proj.3              a token a state      the same
    ip_adapter {k}.to_k_ip, {k}.to_v_ip of the k-th attention layer, k = 1, 3, 5, ...: 16 of them in SD1.5, 70 in SDXL

"plus-face" files are of the plus layout. Source: keys and shapes of the files; IP-Adapter (arXiv 2308.06721).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import CheckpointError, is_pickle, pickle_refused, read_shapes
from ..contracts import GLOBAL, STATES
from ..kinds import Shapes, kind_of

HEAD_DIM = 64  # of a resampler's heads; no tensor says it
PARTS = ("image_proj", "ip_adapter")
KINDS = {"ip_adapter": "base", "ip_adapter_plus": "plus", "ip_adapter_full_face": "full-face"}  # of kinds.detect
STRANGERS = {
    "ip_adapter_faceid": "a FaceID IP-Adapter (ip_adapter.0.to_q_lora), which reads face embeddings of another network",
    "ip_adapter_faceid_plus": "a FaceID-plus IP-Adapter (image_proj.perceiver_resampler), which reads face embeddings "
    "of another network",
    "ip_adapter_portrait": "a FaceID-portrait IP-Adapter (image_proj.proj.2 without proj.3), which reads face "
    "embeddings of another network",
}
BASE_MODELS = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}  # by cross_attention_dim
CLIP_MODELS = {(GLOBAL, 1024): "ViT-H", (GLOBAL, 1280): "ViT-bigG", (STATES, 1280): "ViT-H"}  # of h94's files
STATE_COUNTS = {1280: 257}  # ViT-H: 16 x 16 patches and the class token
PUBLISHED = {  # (what is read, its width) -> base model -> files
    (GLOBAL, 1024): {"SD1.5": "ip-adapter_sd15 or ip-adapter_sd15_light", "SDXL": "ip-adapter_sdxl_vit-h"},
    (GLOBAL, 1280): {"SD1.5": "ip-adapter_sd15_vit-G", "SDXL": "ip-adapter_sdxl"},
    (STATES, 1280): {
        "SD1.5": "ip-adapter-plus_sd15, ip-adapter-plus-face_sd15 or ip-adapter-full-face_sd15",
        "SDXL": "ip-adapter-plus_sdxl_vit-h or ip-adapter-plus-face_sdxl_vit-h",
    },
}


@dataclass(frozen=True)
class Layout:
    """Every size of an IP-Adapter.

    kind: "base", "plus" or "full-face";  embed_dim: width of what it reads;  token_dim: the UNet's cross_attention_dim
    layer_dims: widths of its cross-attention layers, in file order;  tokens: N, None: one a state
    sizes: of a resampler, {"width", "heads", "depth", "inner"}; of full-face's MLP, {"inner"}
    """

    kind: str
    embed_dim: int
    token_dim: int
    layer_dims: tuple[int, ...]
    tokens: int | None = 4
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def embed_form(self) -> str:
        """What it reads: GLOBAL, float[B, Dc], or STATES, float[B, T, Dh]."""
        return GLOBAL if self.kind == "base" else STATES

    @property
    def base_model(self) -> str:
        return BASE_MODELS.get(self.token_dim, f"tokens of {self.token_dim}")

    @property
    def reads(self) -> str:
        """For people: "1024 of ViT-H", "257x1280 of ViT-H", "states of 192"."""
        return said_embedding(self.embed_form, self.embed_dim)

    def __str__(self) -> str:
        return f"{self.kind}, {self.base_model}, reads {self.reads}"

    def as_config(self) -> dict[str, Any]:
        """Plain JSON values; `Layout(**config)` is the same layout again."""
        return {**asdict(self), "layer_dims": list(self.layer_dims), "sizes": dict(self.sizes)}


def said_embedding(form: str, width: int) -> str:
    """(GLOBAL, 1024) -> "1024 of ViT-H";  (STATES, 192) -> "states of 192"."""
    clip = CLIP_MODELS.get((form, width))
    known = f" of {clip}" if clip else ""
    if form == GLOBAL:
        return f"{width}{known}"
    return f"{STATE_COUNTS[width]}x{width}{known}" if width in STATE_COUNTS else f"states of {width}{known}"


def files_reading(form: str, width: int, base_model: str) -> str | None:
    """The files of h94/IP-Adapter for this base model that read such an embedding; None if there is none."""
    return PUBLISHED.get((form, width), {}).get(base_model)


def describe_file(path: Path) -> tuple[bool, str]:
    """(True, "plus, SD1.5, reads 257x1280 of ViT-H") or (False, why it cannot be used), by the file's header alone."""
    try:
        if is_pickle(path):
            return False, pickle_refused(path, "ip-adapter")
        return True, str(layout_of(read_shapes(path), path.name))
    except (ValueError, OSError) as error:
        return False, str(error)


# Reading a layout ----------------------------------------------------------------------------------------------------


def layout_of(shapes: Shapes, name: str = "these tensors") -> Layout:
    """The layout of an IP-Adapter from the shapes of its flat keys.

    Raises CheckpointError for FaceID, portrait, other checkpoints and incomplete files, naming what was found.
    """
    kind = KINDS[_require_known(shapes, name)]
    try:
        return READERS[kind](shapes, _layer_dims(shapes, name))
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{name}, a {kind} IP-Adapter, lacks {error.args[0]}; fetch the file again") from None
    except (IndexError, ValueError, ZeroDivisionError):
        raise CheckpointError(
            f"{name}, a {kind} IP-Adapter by its keys, has tensors of shapes that none has; fetch the file again"
        ) from None


def _require_known(shapes: Shapes, name: str) -> str:
    found = kind_of(shapes)
    if found in KINDS:
        return found
    keys = f"{len(shapes)} keys, such as {', '.join(sorted(shapes)[:3]) or 'none'}"
    what = STRANGERS.get(found) or (keys if found is None else f"a checkpoint of kind {found!r} ({keys})")
    raise CheckpointError(
        f"{name}: an IP-Adapter of the base, plus or full-face layout is needed, found {what}; use one of "
        "h94/IP-Adapter, such as ip-adapter_sd15.safetensors"
    )


def layer_numbers(count: int) -> list[int]:
    """1, 3, 5, ...: places of the cross-attentions among a UNet's attention layers."""
    return [2 * index + 1 for index in range(count)]


def _layer_dims(shapes: Shapes, name: str) -> tuple[int, ...]:
    found = sorted(int(key.split(".")[1]) for key in shapes if key.endswith(".to_k_ip.weight"))
    if not found or found != layer_numbers(len(found)):
        raise CheckpointError(
            f"{name}: an IP-Adapter has layers 1, 3, 5, ... (16 for SD1.5, 70 for SDXL), got layers {found[:4]}...; "
            "fetch the file again"
        )
    return tuple(shapes[f"ip_adapter.{k}.to_k_ip.weight"][0] for k in found)


def _base(shapes: Shapes, layers: tuple[int, ...]) -> Layout:
    rows, embed_dim = shapes["image_proj.proj.weight"]
    token_dim = shapes["image_proj.norm.weight"][0]
    if rows % token_dim:
        raise CheckpointError(f"a base IP-Adapter has a projection of N x {token_dim} rows, got {rows} rows")
    return Layout("base", embed_dim, token_dim, layers, tokens=rows // token_dim)


def _plus(shapes: Shapes, layers: tuple[int, ...]) -> Layout:
    _, tokens, width = shapes["image_proj.latents"]
    embed_dim, token_dim = shapes["image_proj.proj_in.weight"][1], shapes["image_proj.proj_out.weight"][0]
    depth = len([key for key in shapes if key.startswith("image_proj.layers.") and key.endswith(".0.to_q.weight")])
    heads = shapes["image_proj.layers.0.0.to_q.weight"][0] // HEAD_DIM
    sizes = {"width": width, "heads": heads, "depth": depth, "inner": shapes["image_proj.layers.0.1.1.weight"][0]}
    return Layout("plus", embed_dim, token_dim, layers, tokens, sizes)


def _full_face(shapes: Shapes, layers: tuple[int, ...]) -> Layout:
    inner, embed_dim = shapes["image_proj.proj.0.weight"]
    return Layout("full-face", embed_dim, shapes["image_proj.proj.3.weight"][0], layers, None, {"inner": inner})


READERS = {"base": _base, "plus": _plus, "full-face": _full_face}
