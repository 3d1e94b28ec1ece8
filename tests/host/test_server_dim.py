"""Draw-In-Mind in a real ComfyUI: dim-mini's template, stock samplers, LoRA, text-to-image, and other designers."""

from __future__ import annotations

import http.server
import json
import threading

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mindedit_core import edit, load_system
from mindedit_core.blueprint import SECTIONS, format_blueprint
from mindedit_core.scenes import sample

SCENES = [2**31 + number for number in range(10)]
SAMPLER, OPTIMIZER, BRIDGE, SCENE = (
    *("MindEditEditSampler", "MindEditInstructionOptimizer"),
    *("MindEditIPAdapterBridge", "MindEditSampleScene"),
)
CLOSE = 2.0  # of 255, mean absolute difference
STEPS = 10


def forget(server) -> None:
    """Empty the host's result cache, so that the same prompt runs again."""
    server.post("/free", {"unload_models": True, "free_memory": True})


def with_latent(graph) -> str:
    return graph.add("SaveLatent", samples=graph.link(SAMPLER, 1), filename_prefix="edit")


# The path of five nodes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system(dim_folder):
    return load_system("dim-mini") if "weights" in dim_folder.parts else load_system(dim_folder)


@pytest.mark.parametrize("seed", SCENES)
def test_headless_and_comfyui_agree(server, dim, system, seed):
    dim[SCENE]["seed"] = seed
    dim[SAMPLER] |= {"seed": seed, "steps": STEPS, "cfg": 2.0}
    answer = dim.add("PreviewAny", source=dim.link(OPTIMIZER))
    run = server.run_well(dim.prompt)
    scene = sample(seed)
    image = torch.from_numpy(scene.source_image.copy()).float()[None] / 255
    settings = system.settings.but(steps=STEPS, guidance_scale=2.0, seed=seed)
    with torch.inference_mode():
        result = edit(system, image, scene.instruction, settings)
    assert server.text(run, answer) == result.plan.text
    hosted = server.pictures(run, dim.id("SaveImage"))[0]
    assert np.abs(hosted.astype(float) - result.image[0].numpy() * 255).mean() <= CLOSE


def test_the_same_seed_twice_is_bit_equal_and_another_is_another_picture(server, dim):
    latent, found = with_latent(dim), []
    for seed in (0, 0, 1):
        forget(server)
        dim[SAMPLER]["seed"] = seed
        found.append(server.latent(server.run_well(dim.prompt), latent))
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2], atol=1e-2)


def test_strength_zero_returns_the_source(server, dim):
    dim[SAMPLER]["strength"] = 0.0
    source = dim.add("PreviewImage", images=dim.link(SCENE))
    run = server.run_well(dim.prompt)
    before, after = (server.pictures(run, node)[0] for node in (source, dim.id("SaveImage")))
    assert np.array_equal(before, after)


def test_a_batch_is_painted_picture_by_picture(server, dim):
    two = dim.add("RepeatImageBatch", image=dim.link(SCENE), amount=2)
    for node in (OPTIMIZER, "MindEditInsightEmbedding", SAMPLER):
        dim[node]["image"] = [two, 0]
    run = server.run_well(dim.prompt)
    assert len(server.pictures(run, dim.id("SaveImage"))) == 2


def test_a_picture_of_another_shape_comes_back_in_its_size_and_the_node_says_how(server, dim):
    size = {"width": 200, "height": 96}
    wide = dim.add("ImageScale", image=dim.link(SCENE), upscale_method="bilinear", crop="disabled", **size)
    for node in (OPTIMIZER, "MindEditInsightEmbedding", SAMPLER):
        dim[node]["image"] = [wide, 0]
    for framing, size in (("bins", (96, 200)), ("pad", (96, 200)), ("crop", (128, 128))):
        dim[SAMPLER]["framing"] = framing
        run = server.run_well(dim.prompt)
        assert server.pictures(run, dim.id("SaveImage"))[0].shape[:2] == size
        assert "is painted at" in run.texts[dim.id(SAMPLER)][-1]


# Stock samplers, LoRA ------------------------------------------------------------------------------------------------


def advanced(graph) -> str:
    """The host's SamplerCustomAdvanced in place of Edit Sampler; returns the id of a SaveLatent."""
    inputs = graph[SAMPLER]
    flow = graph.add("MindEditFlowSampler", model=inputs["model"], steps=inputs["steps"], strength=1.0)
    noise = graph.add("RandomNoise", noise_seed=inputs["seed"])
    guider = graph.add("CFGGuider", **{name: inputs[name] for name in ("model", "positive", "negative", "cfg")})
    latent = graph.add("VAEEncode", pixels=inputs["image"], vae=inputs["vae"])
    links = {"noise": noise, "guider": guider, "sampler": flow, "latent_image": latent}
    sampled = graph.add("SamplerCustomAdvanced", **{name: [node, 0] for name, node in links.items()}, sigmas=[flow, 1])
    return graph.add("SaveLatent", samples=[sampled, 0], filename_prefix="core")


def test_sampler_and_sigmas_paint_what_edit_sampler_paints(server, dim):
    """The source is the latent that is sampled, so stock nodes need nothing else."""
    ours, core = with_latent(dim), advanced(dim)
    run = server.run_well(dim.prompt)
    assert np.abs(server.latent(run, ours) - server.latent(run, core)).max() < 1e-4


def test_a_stock_ksampler_runs(server, dim):
    inputs = dim[SAMPLER]
    latent = dim.add("VAEEncode", pixels=inputs["image"], vae=inputs["vae"])
    named = {name: inputs[name] for name in ("model", "positive", "negative", "seed", "steps", "cfg")}
    how = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampled = dim.add("KSampler", **named, **how, latent_image=[latent, 0])
    shown = dim.add("PreviewImage", images=[dim.add("VAEDecode", samples=[sampled, 0], vae=inputs["vae"]), 0])
    (picture,) = server.pictures(server.run_well(dim.prompt), shown)
    assert picture.shape == (128, 128, 3) and np.isfinite(picture).all()


def test_a_lora_changes_the_picture_and_strange_keys_are_said(server, dim, dim_folder):
    from mindedit_core.checkpoint import load_tensors

    key = "transformer_blocks.0.attn2.to_out.0"
    out, into = load_tensors(dim_folder / "dim.safetensors")[f"transformer.{key}.weight"].shape
    random = np.random.default_rng(0)
    lora = {
        f"transformer.{key}.lora_A.weight": random.normal(size=(4, into)),
        f"transformer.{key}.lora_B.weight": random.normal(size=(out, 4)),
        "transformer.nowhere.lora_A.weight": np.zeros((4, 4)),
    }
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.astype(np.float32) for name, tensor in lora.items()}, folder / "sana.safetensors")
    latent = with_latent(dim)
    plain = server.latent(server.run_well(dim.prompt), latent)
    model, found = dim[BRIDGE]["model"], {}
    for strength in (0.0, 1.0):
        node = dim.add("MindEditPainterLoRA", model=model, lora="sana.safetensors", strength=strength)
        dim[BRIDGE]["model"] = [node, 0]
        run = server.run_well(dim.prompt)
        found[strength] = server.latent(run, latent)
        assert "1 keys of sana.safetensors match nothing" in run.texts[node][-1]
    assert np.array_equal(found[0.0], plain) and not np.allclose(found[1.0], plain, atol=1e-3)


# Text-to-image -------------------------------------------------------------------------------------------------------


def test_a_text_alone_is_painted(server, dim):
    """dim-mini edits; told of a text without a picture it still paints, whatever that looks like."""
    told = dim.add("MindEditTextInsight", mllm=dim[OPTIMIZER]["mllm"], text="a red cat on a lawn")
    dim[BRIDGE] |= {"insight": [told, 0], "plan": [told, 1]}
    run = server.run_well(dim.prompt)
    assert server.pictures(run, dim.id("SaveImage"))[0].shape == (128, 128, 3)


# Designers -----------------------------------------------------------------------------------------------------------


class Answers(http.server.ThreadingHTTPServer):
    """An OpenAI-compatible server that is busy once, then writes `text`. seen: what was asked;  keys: with which key"""

    def __init__(self, text: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.text, self.seen, self.keys = text, [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        busy = len(self.server.seen) == 1
        said = {"choices": [{"message": {"content": self.server.text}, "finish_reason": "stop"}]}
        body = b"too many" if busy else json.dumps(said).encode()
        self.send_response(429 if busy else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def endpoint():
    server = Answers(format_blueprint({name: f"of {name.lower()}" for name in SECTIONS}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_endpoint_designs_after_it_was_busy_and_is_asked_once(server, dim, endpoint):
    asked = dim.add("MindEditEndpointDesigner", base_url=endpoint.url, model="m", timeout=30.0)
    dim[OPTIMIZER]["mllm"] = [asked, 0]
    answer = dim.add("PreviewAny", source=dim.link(OPTIMIZER))
    run = server.run_well(dim.prompt)
    assert server.text(run, answer) == endpoint.text and len(endpoint.seen) == 2
    forget(server)
    again = server.run_well(dim.prompt)
    assert dim.id(OPTIMIZER) in again.ran and len(endpoint.seen) == 2, "the same design was asked for twice"
    assert server.text(again, answer) == endpoint.text


def test_the_key_goes_to_the_endpoint_and_nowhere_else(server, dim, endpoint, client):
    asked = dim.add("MindEditEndpointDesigner", base_url=endpoint.url, model="another", timeout=30.0)
    dim[OPTIMIZER]["mllm"] = [asked, 0]
    run = server.run_well(dim.prompt)
    assert set(endpoint.keys) == {f"Bearer {client.API_KEY}"}
    (image,) = run.outputs[dim.id("SaveImage")]["images"]
    kept = [*(server.base / "user").rglob("*"), *(server.base / "temp").rglob("*")]
    said = [server.get_bytes("/history"), server.get_bytes("/view", **image), server.log().encode(),
            *(path.read_bytes() for path in kept if path.is_file())]
    assert not any(client.API_KEY.encode() in text for text in said)


def test_an_endpoint_that_is_not_there_says_what_to_do(server, dim):
    asked = dim.add("MindEditEndpointDesigner", base_url="http://127.0.0.1:9/v1", model="m", timeout=1.0)
    dim[OPTIMIZER]["mllm"] = [asked, 0]
    run = server.run(dim.prompt)
    assert run.end == "execution_error" and "127.0.0.1:9" in run.message


def test_what_the_user_typed_goes_to_the_painter_as_it_is(server, dim):
    dim[OPTIMIZER] |= {"designer": "as typed", "instruction": "make everything blue"}
    answer = dim.add("PreviewAny", source=dim.link(OPTIMIZER))
    assert server.text(server.run_well(dim.prompt), answer) == "make everything blue"
