"""Run by the host's Python: files of random weights with the names and shapes of a Stable Diffusion and its IP-Adapter.

python make_full_size.py COMFYUI MODELS [instruct]        MODELS/checkpoints and MODELS/ipadapter, 2 GB in fp16

SD1.5-inpainting, which takes 9 channels; or InstructPix2Pix, which takes 8.
"""

import sys
from functools import partial
from pathlib import Path

comfyui, models, instructed = sys.argv[1], Path(sys.argv[2]), "instruct" in sys.argv[3:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.ldm.models.autoencoder  # noqa: E402
import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import torch  # noqa: E402
from random_weights import base_adapter, random_like  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from unet_config import sd15_unet  # noqa: E402

ops = comfy.ops.manual_cast
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
CLIP_DIM = 1024
CROSS_ATTENTIONS = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]  # widths


def checkpoint() -> dict[str, torch.Tensor]:
    layout = sd15_unet(in_channels=8 if instructed else 9)
    unet = openaimodel.UNetModel(**layout, operations=ops).state_dict()
    vae = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=VAE, embed_dim=4).state_dict()
    text = comfy.sd1_clip.SD1ClipModel().clip_l.transformer.state_dict()
    tensors = {f"model.diffusion_model.{name}": random_like(name, value) for name, value in unet.items()}
    tensors |= {f"first_stage_model.{name}": random_like(name, value) for name, value in vae.items()}
    return tensors | {f"cond_stage_model.transformer.{name}": random_like(name, value) for name, value in text.items()}


NAME = "instruct-pix2pix-00-22000" if instructed else "sd-v1-5-inpainting"
for folder, name, content in (
    ("checkpoints", f"{NAME}.safetensors", checkpoint),
    ("ipadapter", "ip-adapter_sd15.safetensors", partial(base_adapter, CROSS_ATTENTIONS, CLIP_DIM)),
):
    (models / folder).mkdir(parents=True, exist_ok=True)
    save_file(content(), models / folder / name)
