"""The mini in a real ComfyUI: its template paints, and every part is the host's own."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

SAMPLER = "MindEditEditSampler"
OPTIMIZER = "MindEditInstructionOptimizer"


def forget(server) -> None:
    """Empty the host's result cache, so that the same prompt runs again."""
    server.post("/free", {"unload_models": True, "free_memory": True})


def with_latent(graph) -> str:
    return graph.add("SaveLatent", samples=graph.link(SAMPLER, 1), filename_prefix="edit")


def test_the_template_paints_a_picture(server, mini):
    run = server.run_well(mini.prompt)
    (picture,) = server.pictures(run, mini.id("SaveImage"))
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 5


@pytest.mark.weights
def test_the_optimizer_shows_its_text_while_it_is_written_and_after(server, mini):
    forget(server)
    mini["MindEditSampleScene"]["seed"] += 1
    answer = mini.add("PreviewAny", source=mini.link(OPTIMIZER))
    run = server.run_well(mini.prompt)
    node = mini.id(OPTIMIZER)
    assert len(run.texts[node]) > 2, "the text came in one piece"
    assert run.texts[node][-1].startswith(server.text(run, answer))
    assert run.outputs[node]["text"][0] == run.texts[node][-1]


def test_the_same_seed_twice_is_bit_equal(server, mini):
    latent = with_latent(mini)
    forget(server)
    first = server.run_well(mini.prompt)
    forget(server)
    second = server.run_well(mini.prompt)
    assert mini.id(SAMPLER) in second.ran
    assert np.array_equal(server.latent(first, latent), server.latent(second, latent))
    one, two = (server.pictures(run, mini.id("SaveImage"))[0] for run in (first, second))
    assert np.array_equal(one, two)


def test_another_seed_is_another_picture(server, mini):
    latent = with_latent(mini)
    first = server.latent(server.run_well(mini.prompt), latent)
    mini[SAMPLER]["seed"] += 1
    assert not np.allclose(first, server.latent(server.run_well(mini.prompt), latent), atol=1e-2)


def test_outside_the_mask_the_source_is_kept_to_the_pixel(server, mini):
    source = mini.add("PreviewImage", images=mini.link("MindEditSampleScene"))
    mask = mini.add("MaskToImage", mask=mini.link("MindEditSampleScene", 1))
    shown = mini.add("PreviewImage", images=[mask, 0])
    run = server.run_well(mini.prompt)
    before, painted, after = (server.pictures(run, node)[0] for node in (source, shown, mini.id("SaveImage")))
    kept = painted[..., 0] == 0
    assert kept.any() and not kept.all()
    assert np.array_equal(before[kept], after[kept])


def core_sampling(graph, mask: bool) -> str:
    """Core nodes in place of Edit Sampler; returns the id of a SaveLatent."""
    inputs = graph[SAMPLER]
    positive, negative = inputs["positive"], inputs["negative"]
    if mask:
        prepared = graph.add(
            "InpaintModelConditioning",
            positive=positive,
            negative=negative,
            vae=inputs["vae"],
            pixels=inputs["image"],
            mask=inputs["mask"],
            noise_mask=False,
        )
        positive, negative, latent = [prepared, 0], [prepared, 1], [prepared, 2]
    else:
        latent = [graph.add("VAEEncode", pixels=inputs["image"], vae=inputs["vae"]), 0]
    same = {name: inputs[name] for name in ("model", "seed", "steps", "cfg", "sampler_name", "scheduler")}
    sampled = graph.add(
        "KSampler", **same, positive=positive, negative=negative, latent_image=latent, denoise=inputs["strength"]
    )
    graph.add("PreviewImage", images=[graph.add("VAEDecode", samples=[sampled, 0], vae=inputs["vae"]), 0])
    return graph.add("SaveLatent", samples=[sampled, 0], filename_prefix="core")


@pytest.mark.parametrize(
    ("painter", "sampler", "scheduler", "strength"),
    [
        ("inpaint", "euler", "simple", 1.0),
        ("inpaint", "dpmpp_2m", "karras", 0.7),
        ("img2img", "euler", "simple", 0.6),
        ("img2img", "euler_ancestral", "normal", 1.0),
    ],
)
def test_edit_sampler_equals_the_core_nodes(server, mini, painter, sampler, scheduler, strength):
    mini["MindEditMiniLoader"]["painter"] = painter
    mini[SAMPLER] |= {"sampler_name": sampler, "scheduler": scheduler, "strength": strength, "steps": 5, "seed": 7}
    if painter == "img2img":
        del mini[SAMPLER]["mask"]
    ours, core = with_latent(mini), core_sampling(mini, mask=painter == "inpaint")
    run = server.run_well(mini.prompt)
    assert np.abs(server.latent(run, ours) - server.latent(run, core)).max() < 1e-4


def test_strength_zero_returns_the_source(server, mini):
    mini[SAMPLER]["strength"] = 0.0
    source = mini.add("PreviewImage", images=mini.link("MindEditSampleScene"))
    run = server.run_well(mini.prompt)
    before, after = (server.pictures(run, node)[0] for node in (source, mini.id("SaveImage")))
    assert np.array_equal(before, after)


def test_insight_scale_zero_equals_the_model_without_the_bridge(server, mini):
    mini["MindEditIPAdapterBridge"]["insight_scale"] = 0.0
    off = with_latent(mini)
    bare = mini.copy()
    bare[SAMPLER]["model"] = mini.link("MindEditMiniLoader", 1)
    first = server.latent(server.run_well(mini.prompt), off)
    assert np.array_equal(first, server.latent(server.run_well(bare.prompt), off))


def test_the_insight_changes_the_picture(server, mini):
    latent = with_latent(mini)
    on = server.latent(server.run_well(mini.prompt), latent)
    mini["MindEditIPAdapterBridge"]["insight_scale"] = 0.0
    assert not np.allclose(on, server.latent(server.run_well(mini.prompt), latent), atol=1e-3)


def test_a_batch_is_painted_picture_by_picture(server, mini):
    two = mini.add("RepeatImageBatch", image=mini.link("MindEditSampleScene"), amount=2)
    for node in (OPTIMIZER, "MindEditInsightEmbedding", SAMPLER):
        mini[node]["image"] = [two, 0]
    run = server.run_well(mini.prompt)
    pictures = server.pictures(run, mini.id("SaveImage"))
    assert [picture.shape for picture in pictures] == [(128, 128, 3)] * 2
    assert not np.array_equal(*pictures), "both pictures got the same noise"


def save_lora(mini_folder, folder) -> str:
    """A LoRA on the value projection of the middle cross-attention, under the host's own names."""
    weights = load_file(mini_folder / "unet_inpaint.safetensors")
    rows, columns = weights["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"].shape
    random, name = np.random.default_rng(0), "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
    tensors = {
        f"{name}.lora_up.weight": random.standard_normal((rows, 2), np.float32),
        f"{name}.lora_down.weight": random.standard_normal((2, columns), np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "strong.safetensors")
    return "strong.safetensors"


def test_a_core_lora_on_the_painter_changes_the_picture(server, mini, mini_folder):
    latent = with_latent(mini)
    plain = server.latent(server.run_well(mini.prompt), latent)
    name = save_lora(mini_folder, server.base / "models" / "loras")
    painter = mini.link("MindEditMiniLoader", 1)
    lora = mini.add("LoraLoaderModelOnly", model=painter, lora_name=name, strength_model=1.0)
    mini["MindEditIPAdapterBridge"]["model"] = [lora, 0]
    assert not np.allclose(plain, server.latent(server.run_well(mini.prompt), latent), atol=1e-2)
    mini.prompt[lora]["inputs"]["strength_model"] = 0.0
    assert np.array_equal(plain, server.latent(server.run_well(mini.prompt), latent)), "the LoRA did not come off"


def test_the_parts_of_the_mini_are_the_hosts_own_types(server, mini):
    """Core nodes that look at types and attributes take them: LoRA on CLIP, tiled VAE, model merging."""
    clip, vae = mini.link("MindEditMiniLoader", 2), mini.link("MindEditMiniLoader", 3)
    text = mini.add("CLIPTextEncode", clip=clip, text="small red cat at bottom left")
    mini[SAMPLER]["positive"] = [text, 0]
    latent = mini.add("VAEEncode", pixels=mini.link("MindEditSampleScene"), vae=vae)
    mini.add("PreviewImage", images=[mini.add("VAEDecode", samples=[latent, 0], vae=vae), 0])
    mini[SAMPLER]["model"] = [
        mini.add("FreeU_V2", model=mini.link("MindEditIPAdapterBridge"), b1=1.1, b2=1.1, s1=0.9, s2=0.9),
        0,
    ]
    server.run_well(mini.prompt)
