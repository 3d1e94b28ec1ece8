"""An MLLM from disk under the host's management: read once, in the user's dtype, as long as any node holds it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import comfy.model_management as mm
import folder_paths
import torch

from ..checkpoint import read_shapes
from ..dim.published import holds_an_mllm
from ..prompts import token_counter
from .comfy_dtype import AUTO, Precision, precision
from .comfy_folders import (
    MINI,
    NO_ADAPTER,
    QWEN,
    fingerprint,
    mllm_type,
    mllm_type_of,
    resolve_adapter,
    resolve_mllm,
)
from .comfy_managed import matrices_in, stored_in
from .comfy_mllm import ManagedMLLM

if TYPE_CHECKING:
    from .comfy_qwen import ManagedQwen

log = logging.getLogger(__name__)

ALIVE: WeakValueDictionary[tuple[str, ...], ManagedMLLM] = WeakValueDictionary()  # holds nothing: node outputs do


def load_mllm(
    choice: str, adapter_choice: str | None = NO_ADAPTER, dtype: str = AUTO, strength: float = 1.0
) -> ManagedMLLM:
    """The MLLM and the adapter of two combo values, in a dtype of `comfy_dtype.CHOICES`.

    The mini comes with its own adapter unless another is chosen; None: without any. The weights are read once as long
    as anything that came from here is alive. Raises FileNotFoundError, CheckpointError and Misfit (ValueErrors) that
    say what was found and what to do.
    """
    if choice == MINI and adapter_choice == NO_ADAPTER:
        adapter_choice = MINI
    bare = _shared(choice, dtype)
    return bare if adapter_choice is None else adapted(bare, adapter_choice, strength)


def adapted(mllm: ManagedMLLM, adapter_choice: str, strength: float = 1.0) -> ManagedMLLM:
    """The same MLLM with the adapter of a combo value in place of its own; NO_ADAPTER: without any."""
    return mllm.with_adapter(None if adapter_choice == NO_ADAPTER else resolve_adapter(adapter_choice), strength)


def _shared(choice: str, dtype: str) -> ManagedMLLM:
    """The MLLM of a choice without an adapter: the one that is there already, if the files have not changed."""
    folder, read = resolve_mllm(choice), qwen_from_folder if mllm_type(choice) == QWEN else from_paths
    key = (str(folder), fingerprint("mllm", choice), dtype)
    if (found := ALIVE.get(key)) is None:
        found = ALIVE[key] = read(folder, mllm_id="mini" if choice == MINI else None, dtype=dtype)
    return found


def from_paths(
    folder: Path, adapter: Path | None = None, mllm_id: str | None = None, dtype: str = AUTO
) -> ManagedMLLM:
    """A LLaVA-OneVision from its folder, with an adapter file, read anew."""
    from ..backbones.llava_onevision import LlavaOnevision

    is_mini, chosen = weights_of(folder) != folder, precision_of(folder, dtype)
    core = read_core(LlavaOnevision, folder, chosen, mllm_id)
    counter = token_counter(core.tokenizer) if is_mini else clip_counter()  # the mini's CLIP has the same tokenizer
    bare = ManagedMLLM(core, chosen.compute, counter)
    return bare if adapter is None else bare.with_adapter(adapter)


def qwen_from_folder(folder: Path, mllm_id: str | None = None, dtype: str = AUTO) -> ManagedQwen:
    """A Qwen2.5-VL, read anew; dim-mini is asked for blueprints in its own few words."""
    from ..backbones.qwen2_5_vl import Qwen25VL
    from .comfy_qwen import ManagedQwen

    chosen = precision_of(folder, dtype)
    core = read_core(Qwen25VL, folder, chosen, mllm_id)
    return ManagedQwen(core, chosen.compute, "mini" if weights_of(folder) != folder else "dim")


def read_core(backbone: Any, folder: Path, chosen: Precision, mllm_id: str | None) -> Any:
    """The backbone of a folder, its weights in the dtype that was chosen to keep."""
    log.info("reading %s: %s", folder, chosen)
    options: dict[str, Any] = {} if mllm_id is None else {"mllm_id": mllm_id}
    if (embedded := embedded_for(folder)) is not None:
        options["embedded"] = embedded
    # a mini is read in fp32 and then stored in its own dtype: casting the whole module would round its buffers too
    is_mini, is_fp8, stored = weights_of(folder) != folder, chosen.kept.itemsize == 1, precision_of(folder).kept
    kept = stored if is_fp8 else chosen.kept
    core = backbone.from_folder(folder, torch.float32 if is_mini else kept, **options)
    if is_mini:
        stored_in(core.model, kept)
    if is_fp8:
        matrices_in(core.model, chosen.kept, apart=core.model.get_output_embeddings())
    return core


def weights_of(folder: Path) -> Path:
    """The mini's one file of weights; else the folder itself, with its shards."""
    from ..backbones.llava_loading import MINI_WEIGHTS

    mini = folder / MINI_WEIGHTS
    return mini if mini.is_file() else folder


def embedded_for(folder: Path) -> Path | None:
    """The published painter of Draw-In-Mind whose copy of the MLLM is read where a folder has no weights of its own."""
    if mllm_type_of(folder) != QWEN or any(folder.glob("*.safetensors")):
        return None
    names = folder_paths.get_filename_list("diffusion_models")
    paths = (Path(folder_paths.get_full_path_or_raise("diffusion_models", name)) for name in names)
    return next((path for path in paths if path.suffix == ".safetensors" and holds_an_mllm(path)), None)


def precision_of(folder: Path, dtype: str = AUTO) -> Precision:
    """How an MLLM's folder will be kept and computed here, from the headers alone: every shard is there and whole.

    The mini is small enough to be computed in fp32 everywhere, unless another dtype was chosen.
    """
    from ..backbones.hf_weights import stored_dtype

    weights = embedded_for(folder) or weights_of(folder)
    read_shapes(weights)
    stored = stored_dtype(weights)
    if weights_of(folder) != folder and dtype == AUTO:
        return Precision(torch.float32, stored, "it is small")
    return precision(dtype, stored, mm.text_encoder_device())


def describe(choice: str, dtype: str = AUTO) -> str:
    """What the user should know before a wait: `0.9 B parameters, weights kept in bf16, computed in fp32: why`."""
    folder = resolve_mllm(choice)
    embedded = embedded_for(folder)
    shapes = read_shapes(embedded or weights_of(folder)).items()
    count = sum(torch.Size(shape).numel() for key, shape in shapes if embedded is None or key.startswith("mllm."))
    inside = f", the copy in {embedded.name}" if embedded else ""
    return f"{count / 1e9:.1f} B parameters{inside}, {precision_of(folder, dtype)}"


def clip_counter() -> Callable[[str], int]:
    """Length of a text for CLIP-L, start and end token included, by the host's own tokenizer."""
    from comfy.sd1_clip import SDTokenizer

    return token_counter(SDTokenizer().tokenizer)
