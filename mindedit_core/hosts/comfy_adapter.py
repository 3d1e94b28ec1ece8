"""IP-Adapter in ComfyUI: a managed model, attached to the cross-attention of a *clone* of the user's MODEL.

    handle = load_adapter(path)                           # weights in a ModelPatcher; the host loads and offloads them
    patched = attach(model, handle, insight, scale=1.0)   # `model` itself is left as it is

Every cross-attention of the clone gets an `InsightPatch`; all of them share one `Attachment`. During a sampling run
an OUTER_SAMPLE wrapper puts a `Run` into the run's own options: it holds the image tokens' keys and values, each
projected once, and dies with the run. The maths is `attention.add_image_branch`, the same as headless; the text
branch is the host's own attention, so that a closed gate gives the unpatched model bit for bit. Nothing here reads a
device value inside a step.

Axes: B latents, R = chunks * B rows of one forward, N image tokens, T states, Dc Dh CLIP widths.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import comfy.ldm.modules.attention as host_attention
import comfy.model_management as mm
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from einops import rearrange, repeat
from torch import Tensor

from ..attention import add_image_branch
from ..checkpoint import load_tensors, read_metadata
from ..contracts import Insight, Misfit
from .comfy_managed import Box, manage

log = logging.getLogger(__name__)

RUNS = "mindedit_runs"  # in transformer_options of a sampling run: Attachment -> Run
WRAPPER = "mindedit_insight"
METADATA = "mindedit"  # in an IPADAPTER dict of ours: {"clip_space": name}


# Loading -------------------------------------------------------------------------------------------------------------


class AdapterHandle:
    """An IP-Adapter under the host's memory management: `patcher` owns the weights, `bridge` computes.

    layout, clip_space: what it reads;  token_dim, layer_dims: the UNet it was made for;  source: where it came from
    """

    def __init__(self, bridge: Any, source: str) -> None:
        self.bridge, self.source = bridge, source
        self.patcher = manage(Box(adapter=bridge), mm.get_torch_device(), mm.unet_offload_device())

    layout = property(lambda self: self.bridge.layout)
    clip_space = property(lambda self: self.bridge.clip_space)
    token_dim = property(lambda self: self.bridge.token_dim)
    layer_dims = property(lambda self: self.bridge.layer_dims)

    def get_ram_usage(self) -> int:
        return self.patcher.model_size()


def load_adapter(source: Any) -> AdapterHandle:
    """From a path to a .safetensors file, or from an IPADAPTER dict {"image_proj", "ip_adapter"}, bare or wrapped.

    Weights stay in the dtype they are stored in. Raises CheckpointError (a ValueError) for FaceID and foreign files,
    saying what was found.
    """
    from ..bridges.ip_adapter import IPAdapter

    if isinstance(source, AdapterHandle):
        return source
    if isinstance(source, (str, Path)):
        weights, space, name = load_tensors(source), _space(read_metadata(source)), str(source)
    else:
        weights, name = _unwrapped(source), "from the IPADAPTER socket"
        space = weights.get(METADATA, {}).get("clip_space")
    return AdapterHandle(IPAdapter.from_state_dict(weights, space, name, dtype=None), name)


def ipadapter_dict(path: str | Path) -> dict[str, Any]:
    """A file as nodes pass it around: {"image_proj": {...}, "ip_adapter": {...}}, and our word on its CLIP space."""
    parts = {part: load_tensors(path, f"{part}.") for part in ("image_proj", "ip_adapter")}
    return {**parts, METADATA: {"clip_space": _space(read_metadata(path))}}


def _space(metadata: Mapping[str, Any]) -> str | None:
    space = metadata.get("config", {}).get("clip_space")
    return space.get("name") if isinstance(space, Mapping) else space


def _unwrapped(source: Any) -> Mapping[str, Any]:
    """IPAdapter_plus' unified loader wraps the dict as {"ipadapter": {"model": dict}}."""
    if isinstance(source, Mapping) and isinstance(source.get("ipadapter"), Mapping):
        source = source["ipadapter"].get("model")
    if not isinstance(source, Mapping):
        raise TypeError(
            f"an IPADAPTER is a dict with image_proj and ip_adapter, got {type(source).__name__}; "
            "wire an IP-Adapter loader"
        )
    return source


# Where an adapter goes -----------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """One cross-attention of a UNetModel as `extra_options` names it, and its widths."""

    block: str
    number: int
    index: int  # of the transformer block in its SpatialTransformer
    depth: int  # how many there are
    layer_dim: int
    token_dim: int


def cross_attentions(model: Any) -> list[Place]:
    """All cross-attentions of a MODEL in the order of an IP-Adapter file: input blocks, output blocks, middle.

    That is diffusers' order (down, up, mid). Raises Misfit for a MODEL that is no SD-type UNet.
    """
    unet = model.get_model_object("diffusion_model")
    if not all(hasattr(unet, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        raise Misfit(
            f"an IP-Adapter goes into the cross-attention of an SD-type UNet, this MODEL is {_model_name(model)}; "
            "wire an SD1.5 or SDXL checkpoint (or the mini's MODEL)"
        )
    blocks = [("input", number, block) for number, block in enumerate(unet.input_blocks)]
    blocks += [("output", number, block) for number, block in enumerate(unet.output_blocks)]
    blocks += [("middle", 0, unet.middle_block)]
    return [place for name, number, block in blocks if block is not None for place in _places(name, number, block)]


def _places(name: str, number: int, block: Any) -> list[Place]:
    found = []
    for layer in block:
        transformers = getattr(layer, "transformer_blocks", ())
        for index, transformer in enumerate(transformers):
            if (attention := getattr(transformer, "attn2", None)) is not None:
                out, width = attention.to_k.weight.shape
                found.append(Place(name, number, index, len(transformers), out, width))
    return found


def _model_name(model: Any) -> str:
    return f"{type(model.model).__name__} with a {type(model.get_model_object('diffusion_model')).__name__}"


def require_fit(handle: AdapterHandle, model: Any, insight: Insight) -> list[Place]:
    """The places in `model`, if the adapter was made for its shape and reads such an insight; else Misfit."""
    places = cross_attentions(model)
    dims, widths = tuple(place.layer_dim for place in places), {place.token_dim for place in places}
    if dims != tuple(handle.layer_dims) or widths != {handle.token_dim}:
        raise Misfit(
            f"this IP-Adapter ({handle.source}) has {_shape_of(handle.layer_dims, {handle.token_dim})}, "
            f"the MODEL {_model_name(model)} {_shape_of(dims, widths)}; "
            "choose an IP-Adapter made for this base model (SD1.5: 768, SDXL: 2048)"
        )
    handle.bridge.require_insight(insight, handle.source)
    return places


def _shape_of(dims: Any, widths: set[int]) -> str:
    width = "/".join(map(str, sorted(widths)))
    return f"{len(dims)} cross-attentions of {min(dims, default=0)}..{max(dims, default=0)} for tokens of {width}"


# Attaching -----------------------------------------------------------------------------------------------------------


def attach(
    model: Any, handle: AdapterHandle, insight: Insight, *, scale: float = 1.0, start: float = 0.0, end: float = 1.0
) -> Any:
    """A clone of `model` whose cross-attention also attends to the image tokens of `insight`.

    scale: lambda; start, end: fraction of the model's timesteps in which it acts (the host's start_percent and
    end_percent). No v_insight, or lambda 0: a plain clone. An attn2 patch that is already there is called for the text
    branch, and added to.
    """
    clone = model.clone()
    if insight.image_embeds is None or scale == 0:
        return clone
    from ..bridges.ip_adapter import negative_embeds

    places = require_fit(handle, model, insight)
    window = noise_window(model, start, end)
    shared = Attachment(handle, insight.image_embeds, negative_embeds(insight), scale, start, end, window)
    for layer, place in enumerate(places):
        _install(clone, shared, layer, place)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER, RunWrapper(shared))
    clone.add_callback_with_key(CallbacksMP.ON_CLONE, WRAPPER, own_patches)
    return clone


def own_patches(_origin: Any, clone: Any) -> None:
    """Patches of a clone's own: IPAdapter_plus adds to those it finds there, and newer hosts' clones share them."""
    attn2 = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for key, patch in attn2.items():
        if isinstance(patch, InsightPatch):
            attn2[key] = copy.copy(patch)


def noise_window(model: Any, start: float, end: float) -> tuple[float, float]:
    """Noise levels (first, last) of a part of the timesteps; raises ValueError unless 0 <= start <= end <= 1."""
    if not 0.0 <= start <= end <= 1.0:
        raise ValueError(f"start and end must satisfy 0 <= start <= end <= 1, got {start} and {end}; swap them")
    sampling = model.get_model_object("model_sampling")
    return sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)


def _install(clone: Any, shared: Attachment, layer: int, place: Place) -> None:
    """Put a patch where the host looks first, around what it would have found; it prefers the key with an index."""
    present = clone.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    general, exact = (place.block, place.number), (place.block, place.number, place.index)
    previous = present.get(exact, present.get(general))
    needs_index = exact in present or place.depth > 1
    patch = InsightPatch(shared, layer, previous)
    clone.set_model_attn2_replace(patch, *general, transformer_index=place.index if needs_index else None)


@dataclass(frozen=True, eq=False)
class Attachment:
    """What all patches of one `attach` share, and never copy: the adapter, what it says, and when. Never changed."""

    handle: AdapterHandle
    image_embeds: Tensor  # float[B, Dc] or float[B, T, Dh], on the intermediate device
    negative_embeds: Tensor  # of the same shape, for the unconditional branch
    scale: float
    start: float
    end: float
    # noise levels (first, last) of start and end, for a forward that is no part of a sampling run
    window: tuple[float, float]

    def __deepcopy__(self, memo: dict) -> Attachment:
        return self


class Run:
    """One sampling run of one attachment: the image tokens' keys and values, projected once; the gate of the step."""

    def __init__(self, shared: Attachment, window: tuple[float, float], guider: Any = None) -> None:
        self.shared, self.window, self.guider = shared, window, guider
        self.tokens: dict[torch.device, Tensor] = {}
        self.projected: dict[tuple, Tensor] = {}
        self.rows: dict[tuple, Tensor] = {}
        self.step: tuple[Tensor, Tensor] | None = None
        self.signs: dict[Any, set[bool]] | None = None

    def free(self) -> None:
        """Let go of every tensor and of the guider."""
        self.__init__(self.shared, self.window)

    def gate(self, sigmas: Tensor | None) -> bool | Tensor:
        """True for the whole run, or a bool tensor [] on the device, made once a step. sigmas: float[B] of the step."""
        if sigmas is None or (self.shared.start <= 0 and self.shared.end >= 1):
            return True
        step, (first, last) = self.step, self.window
        if step is None or step[0] is not sigmas:
            step = self.step = sigmas, ((sigmas <= first) & (sigmas >= last))[0]
        return step[1]

    def uncond(self, extra_options: Mapping[str, Any]) -> tuple[bool, ...]:
        """For every chunk of the batch: is it the unconditional branch?

        The uuid of a conditioning says it, since `cond_or_uncond` is only an index into what a guider listed (DualCFG
        lists its negative first); where it does not (areas copy a conditioning to the other side), the index counts:
        0 is conditional.
        """
        flags = extra_options.get("cond_or_uncond", [0])
        ids = extra_options.get("uuids") or [None] * len(flags)
        if self.signs is None:
            self.signs = _signs(getattr(self.guider, "conds", {}))
        return tuple(_only(self.signs.get(identity), flag != 0) for identity, flag in zip(ids, flags, strict=True))

    def keys_values(self, layer: int, like: Tensor, uncond: tuple[bool, ...]) -> Tensor:
        """float[2, R, N, layer_dim]: K and V for the rows of `like` float[R, L, layer_dim], in `len(uncond)` chunks."""
        batch = like.shape[0] // len(uncond)
        key = (layer, uncond, batch, like.device, like.dtype)
        if key not in self.rows:
            projected = self._project(layer, like)
            self.rows[key] = torch.cat([_to_batch(projected[:, int(negative)], batch) for negative in uncond], dim=1)
        return self.rows[key]

    def _project(self, layer: int, like: Tensor) -> Tensor:
        """float[2, 2, B, N, layer_dim]: K and V; positive and negative."""
        key = (layer, like.device, like.dtype)
        if key not in self.projected:
            projections = list(self.shared.handle.bridge.ip_adapter.values())[layer]
            pair = torch.stack(projections(self._image_tokens(like.device)))
            self.projected[key] = rearrange(pair.to(like.dtype), "kv (sign b) n d -> kv sign b n d", sign=2)
        return self.projected[key]

    def _image_tokens(self, device: torch.device) -> Tensor:
        """float[2 * B, N, token_dim]: of the insight, then of its unconditional counterpart, one projection of both."""
        if device not in self.tokens:
            embeds = torch.cat([self.shared.image_embeds, self.shared.negative_embeds])
            self.tokens[device] = self.shared.handle.bridge.image_proj(embeds.to(device, torch.float32))
        return self.tokens[device]


def _signs(conds: Mapping[str, Any]) -> dict[Any, set[bool]]:
    """uuid of a conditioning -> on which sides it occurs: True is negative."""
    signs: dict[Any, set[bool]] = {}
    for side, group in conds.items():
        for cond in group or ():
            said = cond.get("prompt_type") or side  # DualCFG says of its middle one that it is a negative
            signs.setdefault(cond.get("uuid"), set()).add("negative" in said)
    return signs


def _only(signs: set[bool] | None, otherwise: bool) -> bool:
    return next(iter(signs)) if signs is not None and len(signs) == 1 else otherwise


def _to_batch(x: Tensor, batch: int) -> Tensor:
    """[2, B, ...] -> [2, batch, ...]: rows repeated in turn, surplus rows dropped, as the host repeats batches."""
    times = -(-batch // x.shape[1])
    return repeat(x, "kv b n d -> kv (times b) n d", times=times)[:, :batch]


class RunWrapper:
    """OUTER_SAMPLE wrapper: gives the run's options a `Run`, and frees it when the run ends, however it ends."""

    def __init__(self, shared: Attachment) -> None:
        self.shared = shared

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        options = guider.model_options["transformer_options"]  # the guider's copy for this run
        window = noise_window(guider.model_patcher, self.shared.start, self.shared.end)
        run = Run(self.shared, window, guider)
        options[RUNS] = {**options.get(RUNS, {}), self.shared: run}
        try:
            return executor(*args, **kwargs)
        finally:
            options[RUNS].pop(self.shared, None)
            run.free()


class InsightPatch:
    """The attn2 patch of one cross-attention: the host's text branch (or a foreign patch's) and the image branch.

    The host calls it with q, k, v float[R, L, layer_dim], moves it with `to`, and loads what `models` returns beside
    the MODEL.
    """

    def __init__(self, shared: Attachment, layer: int, previous: Any = None, added: tuple = ()) -> None:
        self.shared, self.layer, self.previous, self.added = shared, layer, previous, added

    def __deepcopy__(self, memo: dict) -> InsightPatch:
        """v0.10 deep-copies model options on `clone()`: the adapter stays shared, a foreign patch is copied as ever."""
        return InsightPatch(self.shared, self.layer, copy.deepcopy(self.previous, memo), self.added)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        attended = self._text_branch(q, k, v, extra_options)
        run = extra_options.get(RUNS, {}).get(self.shared) or Run(self.shared, self.shared.window)
        key, value = run.keys_values(self.layer, q, run.uncond(extra_options))
        gate, heads = run.gate(extra_options.get("sigmas")), extra_options["n_heads"]
        out = add_image_branch(attended, q, key, value, self.shared.scale, heads, gate)
        for callback, options in self.added:
            out = _add_foreign(out, q, k, v, extra_options, callback, options)
        return out

    def _text_branch(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        if self.previous is not None:
            return self.previous(q, k, v, extra_options)
        precision = extra_options.get("attn_precision")
        return host_attention.optimized_attention(
            q, k, v, heads=extra_options["n_heads"], attn_precision=precision, transformer_options=extra_options
        )

    def to(self, *args: Any, **kwargs: Any) -> InsightPatch:
        """The weights move with their own patcher; a foreign patch underneath is moved."""
        if hasattr(self.previous, "to"):
            self.previous = self.previous.to(*args, **kwargs)
        return self

    def models(self) -> list:
        below = self.previous.models() if hasattr(self.previous, "models") else []
        return [self.shared.handle.patcher, *below]

    def add(self, callback: Callable, **options: Any) -> None:
        """IPAdapter_plus adds to the patch it finds: f(out, q, k, v, extra_options, **options) -> what to add."""
        self.added = (*self.added, (callback, options))


def _add_foreign(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, callback: Callable, options: dict
) -> Tensor:
    total = out + callback(out, q, k, v, extra_options, **options)
    if "sigmas" not in extra_options or not {"sigma_start", "sigma_end"} <= options.keys():
        return total
    sigma = extra_options["sigmas"][0]
    return torch.where((sigma <= options["sigma_start"]) & (sigma >= options["sigma_end"]), total, out)
