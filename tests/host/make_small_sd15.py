"""Run by the host's Python: a UNet in SD1.5's layout without its widening levels, CLIP-L, and IP-Adapters, all random.

python make_small_sd15.py COMFYUI MODELS EMBED      0.5 GB in fp16; EMBED: width of the insight that the adapters read

MODELS/diffusion_models/small.safetensors, MODELS/text_encoders/clip-l.safetensors, MODELS/ipadapter: one.safetensors,
two.safetensors and silent.safetensors, which adds nothing in the middle block.
"""

import sys
from pathlib import Path

comfyui, models, embed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import torch  # noqa: E402
from random_weights import base_adapter, random_like  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from unet_config import sd15_unet  # noqa: E402

WIDTH, CHANNELS, LAYERS = 768, 320, 16  # what the host and IPAdapter_plus know SD1.5 by


def random_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: random_like(name, value) for name, value in module.state_dict().items()}


def adapter(silent: int | None = None) -> dict[str, torch.Tensor]:
    return base_adapter([CHANNELS] * LAYERS, embed, WIDTH, gain=3.0, silent=silent)


def write(tensors: dict[str, torch.Tensor], *place: str) -> None:
    path = models.joinpath(*place)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


layout = sd15_unet(CHANNELS, (1, 1, 1, 1), WIDTH)
unet = openaimodel.UNetModel(**layout, operations=comfy.ops.manual_cast)
write(random_of(unet), "diffusion_models", "small.safetensors")
write(random_of(comfy.sd1_clip.SD1ClipModel().clip_l.transformer), "text_encoders", "clip-l.safetensors")
write(adapter(), "ipadapter", "one.safetensors")
write(adapter(), "ipadapter", "two.safetensors")
write(adapter(silent=LAYERS - 1), "ipadapter", "silent.safetensors")
