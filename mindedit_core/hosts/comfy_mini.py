"""The mini as the host's own types: MODEL on the host's UNetModel, a comfy.sd.CLIP, a VAE, an IPADAPTER, the MLLM.

The files hold diffusers and transformers weights in fp16 (model_files.py). UNet and text model are rebuilt from the
host's own classes, so that LoRA, ControlNet, attention patches and samplers work on them; the autoencoder, which the
host has no class for, is boxed. Everything is kept in fp16 and computes in fp32: it is small, and a picture is the
same on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.clip_model
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch
from einops import rearrange
from torch import Tensor

from ..checkpoint import CheckpointError, load_tensors, read_metadata
from ..model_files import MINI_FILES, load_model, require_mini
from .comfy_adapter import ipadapter_dict
from .comfy_dc_ae import DcAeLatents, DcAeVAE
from .comfy_folders import MINI, mini_folder
from .comfy_managed import stored_in

UNETS = {"inpaint": "unet_inpaint.safetensors", "img2img": "unet.safetensors"}
STORED, COMPUTE = torch.float16, torch.float32
GROUPS = 32  # of every GroupNorm in the host's UNetModel


class MiniParts(NamedTuple):
    """In the order of the Mini Loader's outputs."""

    mllm: Any
    model: Any
    clip: Any
    vae: Any
    ipadapter: dict[str, Any]


def load_mini(painter: str = "inpaint") -> MiniParts:
    """All parts of the built-in mini. painter: "inpaint" (2C + 1 channels in) or "img2img" (C channels in)."""
    from .comfy_mllm_loading import load_mllm

    folder = require_files(mini_folder(), painter)
    vae = load_vae(folder / "autoencoder.safetensors")
    model = load_painter(folder / UNETS[painter], vae)
    clip = load_clip(folder / "clip.safetensors", folder / "tokenizer.json")
    return MiniParts(load_mllm(MINI, MINI), model, clip, vae, ipadapter_dict(folder / "ip_adapter.safetensors"))


def require_files(folder: Path, painter: str) -> Path:
    """`folder`, if the files of a mini with this painter are in it; the other painter's may be missing."""
    if painter not in UNETS:
        raise ValueError(f"unknown painter {painter!r}; have {', '.join(UNETS)}")
    others = {file for name, file in UNETS.items() if name != painter}
    return require_mini(folder, [name for name in MINI_FILES if name not in others])


# MODEL ---------------------------------------------------------------------------------------------------------------


class MiniUNet(comfy.model_base.BaseModel):
    """The host's BaseModel; `blank` float[C] is the scaled latent of grey, which stands for no picture."""

    blank: Tensor

    def set_inpaint(self) -> None:
        super().set_inpaint()
        self.blank_inpaint_image_like = lambda latents: rearrange(self.blank.to(latents), "c -> 1 c 1 1").expand_as(
            latents
        )


class MiniConfig(comfy.supported_models_base.BASE):
    """What the host asks of an architecture. Its own rule would call every UNet of over 4 channels an inpainter."""

    unet_config: dict = {}
    unet_extra_config: dict = {}
    sampling_settings = {"linear_start": 0.00085, "linear_end": 0.012}  # SD1.5
    memory_usage_factor = 1.0

    def inpaint_model(self) -> bool:
        return self.unet_config["in_channels"] == 2 * self.unet_config["out_channels"] + 1

    def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: Any = None) -> MiniUNet:
        model = MiniUNet(self, self.model_type(state_dict, prefix), device)
        if self.inpaint_model():
            model.set_inpaint()
        return model


def load_painter(path: Path, vae: MiniVAE) -> Any:
    """A MODEL from a diffusers UNet2DConditionModel file whose levels all have cross-attention.

    Raises CheckpointError if the host's UNetModel has no counterpart for it, or not every key finds its place.
    """
    metadata, tensors = read_metadata(path), load_tensors(path)
    config = MiniConfig(host_unet_config(metadata["config"], path))
    config.latent_format = DcAeLatents(vae)
    config.set_inference_dtype(STORED, COMPUTE)
    model = config.get_model({}, device=mm.unet_offload_device())
    model.blank = vae.blank
    model.load_model_weights(_host_keys(tensors, config.unet_config, model.diffusion_model, path))
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher_class(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


def host_unet_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Arguments of the host's UNetModel for the config of a diffusers UNet2DConditionModel."""
    widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
    kinds = {*config["down_block_types"], *config["up_block_types"]}
    fits = kinds == {"CrossAttnDownBlock2D", "CrossAttnUpBlock2D"} and all(width % widths[0] == 0 for width in widths)
    if not fits or config["norm_num_groups"] != GROUPS or not isinstance(config["attention_head_dim"], int):
        raise CheckpointError(
            f"{path}: ComfyUI's UNetModel has cross-attention in every block, {GROUPS} groups, one number of heads, "
            f"got {sorted(kinds)}, {config['norm_num_groups']} groups, heads {config['attention_head_dim']}; "
            "put the shipped file back"
        )
    return {
        "image_size": 32,  # unused by the host
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "num_heads": config["attention_head_dim"],  # diffusers' name, SD1.5's meaning: the number of heads
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "transformer_depth": [1] * layers * len(widths),
        "transformer_depth_output": [1] * (layers + 1) * len(widths),
        "transformer_depth_middle": 1,
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "legacy": False,
    }


def _host_keys(
    tensors: Mapping[str, Tensor], unet_config: dict, unet: torch.nn.Module, path: Path
) -> dict[str, Tensor]:
    """diffusers' keys renamed to the host's, every one of them placed."""
    places = comfy.utils.unet_to_diffusers(unet_config)
    renamed = {places.get(key, key): tensor for key, tensor in tensors.items()}
    if difference := set(renamed) ^ set(unet.state_dict()):
        raise CheckpointError(
            f"{path} does not match ComfyUI's UNetModel in {len(difference)} keys, first: {sorted(difference)[0]}"
        )
    return renamed


# CLIP ----------------------------------------------------------------------------------------------------------------


class MiniTextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model with the mini's vocabulary and projection (the stock one has 49408 and a square)."""

    def __init__(self, config: dict, dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config, dtype, device, operations)
        width, options = config["hidden_size"], {"dtype": dtype, "device": device}
        self.text_model.embeddings = comfy.clip_model.CLIPEmbeddings(
            width, config["vocab_size"], config["max_position_embeddings"], operations=operations, **options
        )
        self.text_projection = operations.Linear(width, config["projection_dim"], bias=False, **options)


class MiniTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """The host's tokenizer (weights in brackets, embeddings) around the mini's tokenizer.json and pad token."""

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: Any = None, *, path: Path, config: dict
    ) -> None:
        options = {"embedding_size": config["hidden_size"], "max_length": config["max_position_embeddings"]}
        pad = config["special_tokens"]["pad"]
        tokenizer = partial(
            comfy.sd1_clip.SDTokenizer, str(path), tokenizer_class=_TokenizerFile, pad_token=pad, **options
        )
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=tokenizer)


class _TokenizerFile:
    @staticmethod
    def from_pretrained(path: str, **_: Any) -> Any:
        from ..backbones.mini_tokenizer import load_tokenizer

        return load_tokenizer(path)


class MiniClipModel(comfy.sd1_clip.SD1ClipModel):
    """Last states after the final layer norm, 77 tokens, no mask: as SD1.5, and as headless."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None, *, config: dict) -> None:
        encoder = partial(
            comfy.sd1_clip.SDClipModel,
            textmodel_json_config=config,
            model_class=MiniTextModel,
            special_tokens=config["special_tokens"],
            max_length=config["max_position_embeddings"],
            return_projected_pooled=False,
        )
        super().__init__(device, dtype, model_options or {}, clip_model=encoder)


def load_clip(path: Path, tokenizer_path: Path) -> comfy.sd.CLIP:
    """A CLIP from the text part of a transformers CLIPModel file."""
    config = _text_config(read_metadata(path)["config"])
    tensors = {
        key: value for key, value in load_tensors(path).items() if key.startswith(("text_model.", "text_projection."))
    }
    target = comfy.supported_models_base.ClipTarget(
        partial(MiniTokenizer, path=tokenizer_path, config=config), partial(MiniClipModel, config=config)
    )
    clip = comfy.sd.CLIP(target, parameters=sum(x.numel() for x in tensors.values()), model_options={"dtype": STORED})
    missing, unexpected = clip.load_sd(tensors)
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not match ComfyUI's CLIP text model; first difference: {[*missing, *unexpected][0]}"
        )
    return clip


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    text = dict(config["text_config"])
    tokens = {"start": text["bos_token_id"], "end": text["eos_token_id"], "pad": text["pad_token_id"]}
    return {**text, "projection_dim": config["projection_dim"], "special_tokens": tokens}


# VAE -----------------------------------------------------------------------------------------------------------------


def load_vae(path: Path) -> MiniVAE:
    """A VAE from a diffusers AutoencoderDC file."""
    return MiniVAE(stored_in(load_model(path), STORED))


class MiniVAE(DcAeVAE):
    """Computed in fp32. blank: float[C], the scaled latent of mid-grey"""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__(autoencoder, COMPUTE)
        self.blank = self.blank_latent()
