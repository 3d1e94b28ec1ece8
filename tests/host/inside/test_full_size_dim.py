"""Draw-In-Mind at full size on a CPU: 3B and 1.6B parameters of random bf16 weights, mapped, through the host.

Two steps at 256 pixels; the peak of memory is printed (`-s`), and a second process paints the same headless.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import comfy.sample
import full_size_dim  # tests/host, which conftest.py puts on the path
import pytest
import torch
from safetensors.torch import load_file, save_file

from mindedit_core.contracts import Plan
from mindedit_core.hosts import comfy_flow, comfy_painters, comfy_sana
from mindedit_core.hosts.comfy_mllm_loading import load_mllm

pytestmark = pytest.mark.slow

TEXT = "1. Edit Instruction: paint the cup red\n\n5. Edited Image Imagination: a red cup on an oak table"
SEED, STEPS, CFG, LIMIT = 233, 2, 7.5, 21.0
HEADLESS = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from mindedit_core.backbones.qwen2_5_vl import Qwen25VL
from mindedit_core.contracts import PaintSettings, Plan
from mindedit_core.painters.flow import dpm_solver, foreseen
from mindedit_core.painters.sana import SanaPainter
from mindedit_core.painters.sana_files import DC_AE
from mindedit_core.systems.dim_files import load_dim

models, given, out = map(Path, sys.argv[1:4])
found = load_file(given)
mllm = Qwen25VL.from_folder(models / "LLM" / sys.argv[4], torch.bfloat16)
insight = mllm.encode(found["image"], Plan(sys.argv[6], sys.argv[6]))
del mllm
parts = load_dim(models / "diffusion_models" / sys.argv[5], dtype=None)
from diffusers import AutoencoderDC
with torch.device("meta"):
    vae = AutoencoderDC.from_config(DC_AE)  # asked for its sizes alone: the latents are given
painter = SanaPainter(parts.transformer, vae, parts.null_tokens, parts.schedule)
with torch.no_grad():
    text = painter._text(parts.projector(insight), 1, 7.5)
    def denoise(sample, sigma):
        return foreseen(sample, painter.velocity(sample, sigma, found["source"], text, 7.5), sigma)
    latents = dpm_solver(denoise, found["noise"], parts.schedule.simple(2))
save_file({"hidden": insight.hidden.float(), "latents": latents.float()}, out)
"""


@pytest.fixture(scope="module")
def models(module_models):
    """The models folder with the files; MINDEDIT_FULL_DIM names one that `full_size_dim.py` has written before."""
    written = os.environ.get("MINDEDIT_FULL_DIM")
    if written:
        for part in Path(written).iterdir():
            (module_models / part.name).symlink_to(part)
    else:
        with torch.inference_mode(False):
            full_size_dim.write_qwen(Path(os.environ["COMFYUI_INSIDE"]).expanduser(), module_models)
            full_size_dim.write_painter(module_models)
    return module_models


def peak() -> float:
    """GB of memory at most, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def test_two_steps_fit_and_are_the_headless_ones(models, tmp_path, monkeypatch):
    import folder_paths

    for key in ("diffusion_models", "diffusers", "vae"):
        known = folder_paths.folder_names_and_paths[key][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(models / key)], known))
    image = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(1))
    mllm = load_mllm(full_size_dim.QWEN, None, "bf16")
    assert {parameter.dtype for parameter in mllm.core.model.parameters()} == {torch.bfloat16}
    insight = mllm.encode(image, Plan(TEXT, TEXT))
    assert insight.hidden.shape[1] > 37 * 37  # 1036 pixels
    model, _, vae = comfy_painters.load_painter(full_size_dim.PAINTER, full_size_dim.VAE, "bf16")
    latent = vae.encode(image)
    assert latent.shape == (1, 32, 8, 8)
    conds = comfy_sana.conditioning(comfy_sana.painter_of(model), insight)
    noise, sigmas = comfy.sample.prepare_noise(latent, SEED), comfy_flow.flow_sigmas(model, STEPS)
    found = comfy.sample.sample_custom(model, noise, CFG, comfy_flow.flow_sampler(), sigmas, *conds, latent)
    sys.stdout.write(f"\npeak of memory in the host: {peak():.1f} GB (limit {LIMIT} GB)\n")
    assert peak() < LIMIT
    given = {"image": image, "source": vae.scaling_factor * latent.float(), "noise": noise}
    save_file({key: tensor.contiguous() for key, tensor in given.items()}, tmp_path / "given.safetensors")
    words = [str(models), str(tmp_path / "given.safetensors"), str(tmp_path / "out.safetensors")]
    command = [sys.executable, "-c", HEADLESS, *words, full_size_dim.QWEN, full_size_dim.PAINTER, TEXT]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    headless = load_file(tmp_path / "out.safetensors")
    ours = {"hidden": insight.hidden.float(), "latents": vae.scaling_factor * found.float()}
    for name, tensor in ours.items():
        gap = (tensor - headless[name]).abs().mean() / headless[name].abs().mean()
        sys.stdout.write(f"{name}: mean difference {gap:.1e} of the mean size\n")
        assert gap < 1e-2
