"""One real ComfyUI with both packs: our EMBEDS in its node, its MODEL in our bridge and ours in its node.

tests/host/inside/test_beside_ipadapter_plus.py has the laws one by one; here the graph is what a user would build.
"""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from mindedit_core.checkpoint import read_metadata

BRIDGE, EMBEDDING, OPTIMIZER = "MindEditIPAdapterBridge", "MindEditInsightEmbedding", "MindEditInstructionOptimizer"
SETTINGS = {"seed": 3, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


@pytest.fixture(scope="module")
def both_packs(
    ipadapter_plus, comfyui_path, comfyui_python, root, mini_folder, dim_folder, tmp_path_factory, client
):
    """A server of its own, with IPAdapter_plus copied beside our pack."""
    base = tmp_path_factory.mktemp("comfyui_with_both")
    folder = base / "custom_nodes" / "ComfyUI_IPAdapter_plus"
    shutil.copytree(ipadapter_plus, folder, ignore=shutil.ignore_patterns(".git", "examples", "__pycache__"))
    width = read_metadata(mini_folder / "mind_edit.safetensors")["config"]["clip_space"]["dim"]
    script = root / "tests" / "host" / "make_small_sd15.py"
    command = [comfyui_python, str(script), str(comfyui_path), str(base / "models"), str(width)]
    done = subprocess.run(command, cwd=base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = {"mini": mini_folder, "dim": dim_folder}
    with client.ComfyServer(comfyui_path, comfyui_python, root, weights, base) as running:
        failed = [line for line in running.log().splitlines() if "IMPORT FAILED" in line]
        assert not [line for line in failed if "custom_nodes" in line]
        yield running


class Both:
    """A prompt in which plan and insight are there; `ours` and `theirs` patch a MODEL, `paint` samples it."""

    def __init__(self, graph_class) -> None:
        graph = self.graph = graph_class()
        self.mini = graph.add("MindEditMiniLoader", painter="inpaint")
        scene = graph.add("MindEditSampleScene", seed=5, operation="any", edits=1)
        read = {"mllm": [self.mini, 0], "image": [scene, 0]}
        writing = {"instruction": [scene, 2], "seed": 0, "max_new_tokens": 64, "temperature": 0.0}
        self.plan = [graph.add(OPTIMIZER, **read, **writing), 1]
        self.insight = graph.add(EMBEDDING, **read, plan=self.plan)
        self.clip = [graph.add("CLIPLoader", clip_name="clip-l.safetensors", type="stable_diffusion"), 0]
        self.bare = [graph.add("UNETLoader", unet_name="small.safetensors", weight_dtype="default"), 0]
        texts = [graph.add("CLIPTextEncode", clip=self.clip, text=text) for text in ("a red cup", "")]
        self.texts = {"positive": [texts[0], 0], "negative": [texts[1], 0]}
        self.latent = [graph.add("EmptyLatentImage", width=128, height=128, batch_size=1), 0]

    def ours(self, model, adapter, scale=0.8):
        rest = {"negative_text": "", "start": 0.0, "end": 1.0, "clip": self.clip, "plan": self.plan}
        insight = {"insight": [self.insight, 0], "insight_scale": scale}
        return [self.graph.add(BRIDGE, model=model, adapter=adapter, **insight, **rest), 0]

    def theirs(self, model, adapter, weight=0.8):
        loaded = self.graph.add("IPAdapterModelLoader", ipadapter_file=adapter)
        seen = {"pos_embed": [self.insight, 1], "neg_embed": [self.insight, 2]}
        how = {"weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
        node = self.graph.add("IPAdapterEmbeds", model=model, ipadapter=[loaded, 0], weight=weight, **seen, **how)
        return [node, 0]

    def paint(self, model) -> str:
        sampled = self.graph.add("KSampler", model=model, latent_image=self.latent, **self.texts, **SETTINGS)
        return self.graph.add("SaveLatent", samples=[sampled, 0], filename_prefix="both")


def distance(one, two) -> float:
    """The largest difference, as a part of the largest number."""
    return float(np.abs(one - two).max() / np.abs(two).max())


@pytest.fixture
def graph(graph_class):
    return Both(graph_class)


@pytest.fixture
def painted(both_packs, graph):
    """{name: latent} for {name: MODEL}, all in one prompt."""

    def run(models):
        nodes = {name: graph.paint(model) for name, model in models.items()}
        done = both_packs.run_well(graph.graph.prompt)
        latents = {name: both_packs.latent(done, node) for name, node in nodes.items()}
        assert all(np.isfinite(latent).all() for latent in latents.values())
        return latents

    return run


def test_our_embeds_drive_its_node_and_paint_what_our_bridge_paints(graph, painted):
    """Apart from the middle block, where its patch never fires: the silent adapter adds nothing there."""
    latents = painted(
        {"bare": graph.bare}
        | {f"ours {name}": graph.ours(graph.bare, f"{name}.safetensors") for name in ("silent", "one")}
        | {f"theirs {name}": graph.theirs(graph.bare, f"{name}.safetensors") for name in ("silent", "one")}
    )
    assert distance(latents["theirs silent"], latents["bare"]) > 0.01
    assert distance(latents["ours silent"], latents["theirs silent"]) < 1e-4
    assert distance(latents["ours one"], latents["theirs one"]) > 1e-3


def test_either_order_keeps_both_effects(graph, painted):
    """With one at zero, exactly the other alone is left; with both on, neither."""
    one, two = "one.safetensors", "two.safetensors"

    def us_then_them(scale=0.8, weight=0.8):
        return graph.theirs(graph.ours(graph.bare, one, scale), two, weight)

    def them_then_us(scale=0.8, weight=0.8):
        return graph.ours(graph.theirs(graph.bare, two, weight), one, scale)

    models = {"bare": graph.bare, "us": graph.ours(graph.bare, one), "them": graph.theirs(graph.bare, two)}
    for name, build in (("us, them", us_then_them), ("them, us", them_then_us)):
        models |= {name: build(), f"{name} without us": build(scale=0.0), f"{name} without them": build(weight=0.0)}
    latents = painted(models)
    for name in ("us, them", "them, us"):
        assert np.array_equal(latents[f"{name} without us"], latents["them"])
        assert np.array_equal(latents[f"{name} without them"], latents["us"])
        assert all(distance(latents[name], latents[alone]) > 0.01 for alone in ("us", "them", "bare"))
    assert distance(latents["us, them"], latents["them, us"]) < 1e-4


def test_an_adapter_that_its_loader_loaded_fits_our_bridge(graph, painted):
    """IPADAPTER of IPAdapterModelLoader into our bridge: the same as our own reading of the file."""
    loaded = graph.graph.add("IPAdapterModelLoader", ipadapter_file="one.safetensors")
    through = graph.ours(graph.bare, "two.safetensors")
    graph.graph.prompt[through[0]]["inputs"]["ipadapter"] = [loaded, 0]
    latents = painted({"file": graph.ours(graph.bare, "one.safetensors"), "socket": through})
    assert np.array_equal(latents["file"], latents["socket"])


def test_its_node_run_again_starts_from_our_model_as_it_was(both_packs, graph):
    """It adds to the patch that it finds; the MODEL in the host's cache must not keep that."""
    theirs = graph.theirs(graph.ours(graph.bare, "one.safetensors"), "two.safetensors")
    node, latents = graph.paint(theirs), []
    for weight in (0.8, 0.3, 0.8):
        graph.graph.prompt[theirs[0]]["inputs"]["weight"] = weight
        run = both_packs.run_well(graph.graph.prompt)
        assert theirs[0] in run.ran
        latents.append(both_packs.latent(run, node))
    assert np.array_equal(latents[0], latents[2]) and distance(latents[1], latents[0]) > 1e-3
