"""The IP-Adapter as a managed patch: equal to diffusers', off bit for bit, once a run, shared by all clones."""

from __future__ import annotations

import copy
import gc
import weakref

import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from diffusers import UNet2DConditionModel
from unet_config import sd15_unet  # tests/host, which conftest.py puts on the path

from mindedit_core.checkpoint import CheckpointError
from mindedit_core.contracts import Insight, Misfit
from mindedit_core.hosts import comfy_adapter, comfy_managed
from mindedit_core.hosts.comfy_adapter import attach, load_adapter

WIDTH, EMBED, TOKENS = 24, 20, 4  # unequal, so that a mix-up cannot pass
LEVELS = (32, 64, 64, 64)  # SD1.5's layout, narrow: 16 cross-attentions


# SD1.5's layout on both sides ----------------------------------------------------------------------------------------


def host_config(width=WIDTH):
    return sd15_unet(LEVELS[0], [level // LEVELS[0] for level in LEVELS], width)


def diffusers_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=LEVELS, cross_attention_dim=WIDTH, attention_head_dim=8, sample_size=16, norm_num_groups=32
    ).eval()


def host_model(config, state_dict=None):
    model_config = comfy.supported_models.SD15(config)
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model({}, device=torch.device("cpu"))
    if state_dict is not None:
        places = comfy.utils.unet_to_diffusers(model_config.unet_config)
        missing, unexpected = model.diffusion_model.load_state_dict(
            {places[key]: value for key, value in state_dict.items()}
        )
        assert not missing and not unexpected
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def random_adapter(unet, seed=1, embed=EMBED):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "image_proj": {
            "proj.weight": torch.randn(TOKENS * WIDTH, embed, generator=generator) * embed**-0.5,
            "proj.bias": 0.1 * torch.randn(TOKENS * WIDTH, generator=generator),
            "norm.weight": 1 + 0.1 * torch.randn(WIDTH, generator=generator),
            "norm.bias": 0.1 * torch.randn(WIDTH, generator=generator),
        },
        "ip_adapter": {},
    }
    for k, name in enumerate(unet.attn_processors):
        if ".attn2." in name:
            layer = unet.get_submodule(name.removesuffix(".processor"))
            for side in "kv":
                shape = getattr(layer, f"to_{side}").weight.shape
                tensors["ip_adapter"][f"{k}.to_{side}_ip.weight"] = (
                    torch.randn(shape, generator=generator) * WIDTH**-0.5
                )
    return tensors


@pytest.fixture(scope="module")
def theirs():
    with torch.inference_mode(False):
        return diffusers_unet()


@pytest.fixture(scope="module")
def model(theirs):
    return host_model(host_config(), theirs.state_dict())


@pytest.fixture(scope="module")
def tensors(theirs):
    with torch.inference_mode(False):
        return random_adapter(theirs)


@pytest.fixture
def handle(tensors):
    return load_adapter(tensors)


def insight(batch=1, seed=2, **fields):
    embeds = torch.randn(batch, EMBED, generator=torch.Generator().manual_seed(seed))
    return Insight(None, None, image_embeds=embeds, **fields)


def forward(model, x, timestep, text, options=None):
    """The UNet as the sampler calls it; uncond rows first, as the host batches."""
    extra = {"cond_or_uncond": [1, 0], "sigmas": torch.ones(x.shape[0] // 2), **(options or {})}
    transformer_options = {**model.model_options["transformer_options"], **extra}
    return model.model.diffusion_model(x, timestep, context=text, transformer_options=transformer_options)


def inputs(rows=4, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, 4, 16, 16, generator=generator),
        torch.full((rows,), 500.0),
        torch.randn(rows, 7, WIDTH, generator=generator),
    )


def sample(model, *, steps=2, cfg=3.0, batch=1, seed=5, **options):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 4, 16, 16, generator=generator)
    text = torch.randn(2, 1, 7, WIDTH, generator=generator)
    positive, negative = [[text[0], {}]], [[text[1], {}]]
    latent = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=seed, **options
    )


# Equal to diffusers --------------------------------------------------------------------------------------------------


def test_each_cross_attention_and_the_whole_unet_equal_diffusers(
    theirs,
    model,
    handle,
    tensors,
):
    """Unit-variance input, fp32; the unconditional rows get zeros THROUGH image_proj."""
    reference = copy.deepcopy(theirs)
    with torch.inference_mode(False):
        reference._load_ip_adapter_weights([copy.deepcopy(tensors)])
    for processor in reference.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.7]
    x, timestep, text = inputs()
    embeds = insight(batch=2).image_embeds
    rows = torch.cat([torch.zeros_like(embeds), embeds])  # uncond first
    seen_there, seen_here = {}, {}
    names = [name.removesuffix(".processor") for name in reference.attn_processors if ".attn2." in name]
    for name in names:
        record(reference.get_submodule(name), seen_there, name)
    expected = reference(x, timestep, text, added_cond_kwargs={"image_embeds": [rows[:, None]]}).sample
    patched = attach(model, handle, insight(batch=2), scale=0.7)
    hooks = [
        record(attention(model, place).to_out, seen_here, name)
        for name, place in zip(names, comfy_adapter.cross_attentions(model), strict=True)
    ]
    ours = forward(patched, x, timestep, text)
    for hook in hooks:
        hook.remove()
    assert len(names) == 16
    for name in names:
        torch.testing.assert_close(
            seen_here[name], seen_there[name], atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert (forward(model, x, timestep, text) - expected).abs().mean() > 100 * (ours - expected).abs().mean()


def attention(model, place):
    unet = model.model.diffusion_model
    block = unet.middle_block if place.block == "middle" else getattr(unet, f"{place.block}_blocks")[place.number]
    return next(layer for layer in block if hasattr(layer, "transformer_blocks")).transformer_blocks[place.index].attn2


def record(module, into, name):
    return module.register_forward_hook(lambda _module, _inputs, output: into.__setitem__(name, output))


def test_lambda_is_linear_in_the_added_term(model, handle):
    """Of one cross-attention: out(2s) - out(0) = 2 (out(s) - out(0))."""
    q = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    options = {"n_heads": 8, "cond_or_uncond": [1, 0]}
    base, once, twice = (
        patch_of(model, handle, scale)(q, q, q, options) if scale else text_branch(q) for scale in (0, 0.5, 1.0)
    )
    torch.testing.assert_close(twice - base, 2 * (once - base), atol=1e-6, rtol=1e-5)


def patch_of(model, handle, scale):
    patched = attach(model, handle, insight(), scale=scale)
    return patched.model_options["transformer_options"]["patches_replace"]["attn2"][("input", 1)]


def text_branch(q):
    from comfy.ldm.modules import attention as host_attention

    return host_attention.optimized_attention(q, q, q, heads=8)


# Off, bit for bit ----------------------------------------------------------------------------------------------------


def test_lambda_zero_is_the_unpatched_model(model, handle):
    assert torch.equal(sample(attach(model, handle, insight(), scale=0.0)), sample(model))


def test_without_an_insight_the_model_is_the_unpatched_one(model, handle):
    assert torch.equal(sample(attach(model, handle, Insight(None, None, note="no head"))), sample(model))


@pytest.mark.parametrize("window", [(0.0, 0.3), (0.3, 0.6), (0.6, 1.0), (1.0, 1.0)])
def test_every_step_outside_the_window_is_the_unpatched_model(window, model, handle):
    """Every forward of a patched run is repeated on the unpatched model with the same input."""
    patched = attach(model, handle, insight(), start=window[0], end=window[1])
    sampling = model.get_model_object("model_sampling")
    first, last = (sampling.percent_to_sigma(fraction) for fraction in window)
    inside = []

    def compare(executor, x, t, *args, **kwargs):
        out = executor(x, t, *args, **kwargs)
        args = list(args)
        args[-1] = {
            key: value for key, value in args[-1].items() if key not in ("patches_replace", "wrappers")
        }  # transformer_options
        plain = model.model._apply_model(x, t, *args, **kwargs)
        inside.append(bool(first >= t[0] >= last))
        assert torch.equal(out, plain) is not inside[-1]
        return out

    patched.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, compare)
    sample(patched, steps=6)
    assert len(inside) == 6
    assert sum(inside) == 0 if window[0] == 1 else 0 < sum(inside) < 6


def test_a_window_must_be_ordered(model, handle):
    with pytest.raises(ValueError, match="0 <= start <= end <= 1, got 0.6 and 0.4"):
        attach(model, handle, insight(), start=0.6, end=0.4)


# Once a run, without a look at the device ----------------------------------------------------------------------------


def note(calls, held, name, out):
    calls.append(name)
    held.append(weakref.ref(out))


def watch_keys_values(monkeypatch):
    """Weak references to all that `Run.keys_values` returns."""
    held, original = [], comfy_adapter.Run.keys_values

    def keys_values(*args):
        out = original(*args)
        held.append(weakref.ref(out))
        return out

    monkeypatch.setattr(comfy_adapter.Run, "keys_values", keys_values)
    return held


def test_keys_and_values_are_projected_once_a_run_and_freed_after_it(model, handle, monkeypatch):
    calls, held = [], []
    for name, module in handle.bridge.named_modules():
        if name.endswith(("_ip", "image_proj")):
            module.register_forward_hook(lambda _m, _i, out, name=name: note(calls, held, name, out))
    rows = watch_keys_values(monkeypatch)
    patched = attach(model, handle, insight())
    sample(patched, steps=3)
    gc.collect()
    assert sorted(calls) == sorted(
        ["image_proj"] + [f"ip_adapter.{k}.to_{side}_ip" for k in range(1, 32, 2) for side in "kv"]
    )
    assert len(rows) == 3 * 16
    assert not any(ref() is not None for ref in held + rows)
    sample(patched, steps=2)
    assert len(calls) == 2 * 33  # a new run projects again


def test_an_interrupted_run_frees_and_the_next_one_works(model, handle, monkeypatch):
    held = watch_keys_values(monkeypatch)
    patched = attach(model, handle, insight())
    expected = sample(patched)

    def interrupt(*_):
        raise mm.InterruptProcessingException

    with pytest.raises(mm.InterruptProcessingException):
        sample(patched, callback=interrupt)
    gc.collect()
    assert held and not any(ref() is not None for ref in held)
    assert torch.equal(sample(patched), expected)


def test_nothing_of_ours_reads_a_device_value(model, handle):
    """On the meta device there are no values: reading one raises. A stand-in is the text branch, which is not ours."""
    patched = attach(model, handle, insight(batch=2), start=0.2, end=0.8)
    patch = patched.model_options["transformer_options"]["patches_replace"]["attn2"][("output", 5)]
    patch.previous = lambda q, k, v, options: torch.zeros_like(q)
    run = comfy_adapter.Run(patch.shared, patch.shared.window)
    q = torch.empty(4, 9, 64, device="meta")
    options = {
        "n_heads": 8,
        "cond_or_uncond": [1, 0],
        "sigmas": torch.empty(2, device="meta"),
        comfy_adapter.RUNS: {patch.shared: run},
    }
    assert patch(q, q, q, options).shape == q.shape
    assert run.gate(options["sigmas"]).device.type == "meta"


# The MODEL is untouched, clones share --------------------------------------------------------------------------------


def test_the_given_model_is_untouched(model, handle):
    before, expected = snapshot(model), sample(model)
    attach(model, handle, insight())
    sample(attach(model, handle, insight(seed=9)))
    assert snapshot(model) == before
    assert torch.equal(sample(model), expected)


def snapshot(model):
    return repr(model.model_options), repr(model.wrappers), repr(model.patches), repr(model.object_patches)


CLONING = {"deep copies (v0.10)": copy.deepcopy, "shared leaves (newer)": comfy.patcher_extension.copy_nested_dicts}


@pytest.mark.parametrize("semantics", CLONING)
def test_after_four_more_clones_there_is_one_adapter_and_one_patcher(semantics, model, handle, monkeypatch):
    class Copy:
        deepcopy = staticmethod(CLONING[semantics])

    patched = attach(model, handle, insight())
    expected = sample(patched)
    monkeypatch.setattr(comfy.model_patcher, "copy", Copy)
    clones = [patched]
    for _ in range(4):
        clones.append(clones[-1].clone())
    patchers = {id(each) for clone in clones for each in clone.model_patches_models()}
    assert patchers == {id(handle.patcher)}
    adapters = {id(patch.shared.handle.bridge) for clone in clones for patch in attn2(clone).values()}
    assert adapters == {id(handle.bridge)}
    assert torch.equal(sample(clones[-1]), expected)


def attn2(model):
    return model.model_options["transformer_options"]["patches_replace"]["attn2"]


def test_the_adapter_is_loaded_with_the_model_and_nowhere_else_held(model, tensors):
    handle = load_adapter(tensors)
    patched = attach(model, handle, insight())
    sample(patched)
    assert handle.patcher in mm.loaded_models()
    gone = weakref.ref(handle.patcher)
    del patched, handle
    gc.collect()
    assert gone() is None


def test_attaching_to_a_clone_changes_nothing_of_its_origin(model, handle):
    first = attach(model, handle, insight())
    expected = sample(first)
    attach(first, handle, insight(seed=11))
    assert torch.equal(sample(first), expected)


# Beside other patches ------------------------------------------------------------------------------------------------


class Foreign:
    """An attn2 patch of another pack: the text branch, halved."""

    def __init__(self):
        self.moved = 0

    def __call__(self, q, k, v, extra_options):
        from comfy.ldm.modules import attention as host_attention

        return 0.5 * host_attention.optimized_attention(q, k, v, heads=extra_options["n_heads"])

    def to(self, _device):
        self.moved += 1
        return self


@pytest.mark.parametrize("index", [None, 0], ids=["key of the block", "key with the transformer's index"])
def test_a_patch_that_is_there_computes_the_text_branch(index, model, handle):
    """The sum equals halving the text branch by hand in that one block."""
    other = model.clone()
    other.set_model_attn2_replace(Foreign(), "middle", 0, transformer_index=index)
    patched = attach(other, handle, insight())
    keys = [key for key in attn2(patched) if key[0] == "middle"]
    assert keys == [("middle", 0) if index is None else ("middle", 0, 0)]
    patch = attn2(patched)[keys[0]]
    q = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    options = {"n_heads": 8, "cond_or_uncond": [1, 0]}
    alone = attn2(attach(model, handle, insight()))[("middle", 0)](q, q, q, options)
    torch.testing.assert_close(patch(q, q, q, options), alone - 0.5 * text_branch(q), atol=1e-6, rtol=1e-5)
    assert not torch.equal(sample(patched), sample(attach(model, handle, insight())))


def test_a_patch_underneath_is_moved_and_its_models_are_loaded(model, handle):
    foreign = Foreign()
    foreign.models = lambda: ["its patcher"]
    patch = comfy_adapter.InsightPatch(attn2(attach(model, handle, insight()))[("middle", 0)].shared, 0, foreign)
    assert patch.to("cpu") is patch
    assert foreign.moved == 1
    assert patch.models() == [handle.patcher, "its patcher"]


def test_two_insights_add_up(model, handle):
    one, two = insight(seed=2), insight(seed=7)
    both = attach(attach(model, handle, one, scale=0.5), handle, two, scale=0.25)
    q = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    options = {"n_heads": 8, "cond_or_uncond": [1, 0]}
    base = text_branch(q)
    terms = [
        attn2(attach(model, handle, each, scale=scale))[("middle", 0)](q, q, q, options) - base
        for each, scale in ((one, 0.5), (two, 0.25))
    ]
    torch.testing.assert_close(attn2(both)[("middle", 0)](q, q, q, options), base + sum(terms), atol=1e-6, rtol=1e-5)
    sample(both)


def test_ipadapter_plus_may_add_to_our_patch(model, handle):
    """It calls `add` on whatever stands at the key; its callback returns what is to be added, within its own sigmas."""
    patch = attn2(attach(model, handle, insight()))[("middle", 0)]
    q = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    options = {"n_heads": 8, "cond_or_uncond": [1, 0], "sigmas": torch.tensor([5.0])}
    alone = patch(q, q, q, options)
    patch.add(
        lambda out, q, k, v, extra_options, weight, sigma_start, sigma_end: torch.full_like(out, weight),
        weight=2.0,
        sigma_start=9.0,
        sigma_end=1.0,
    )
    torch.testing.assert_close(patch(q, q, q, options), alone + 2.0)
    assert torch.equal(patch(q, q, q, {**options, "sigmas": torch.tensor([0.5])}), alone)


def test_the_hosts_attention_override_is_still_asked(model, handle):
    asked = []

    def override(function, *args, **kwargs):
        asked.append(args[0].shape)
        return function(*args, **kwargs)

    patched = attach(model, handle, insight())
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    expected = sample(attach(model, handle, insight()), steps=1)
    assert torch.equal(sample(patched, steps=1), expected)
    assert len(asked) == 32  # 16 self-attentions, 16 text branches


# Which rows get what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0], [1], [0, 1], [1, 0], [1, 0, 0]])
def test_rows_follow_cond_or_uncond(order, model, handle):
    """A batch of chunks equals the chunks one by one."""
    patch = attn2(attach(model, handle, insight(batch=2)))[("input", 4)]
    q = torch.randn(2 * len(order), 9, 64, generator=torch.Generator().manual_seed(0))
    whole = patch(q, q, q, {"n_heads": 8, "cond_or_uncond": order})
    parts = [
        patch(part, part, part, {"n_heads": 8, "cond_or_uncond": [flag]})
        for part, flag in zip(q.chunk(len(order)), order, strict=True)
    ]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-6, rtol=1e-5)
    cond, uncond = (patch(q[:2], q[:2], q[:2], {"n_heads": 8, "cond_or_uncond": [flag]}) for flag in (0, 1))
    assert not torch.allclose(cond, uncond, atol=1e-3)


def test_a_guider_that_lists_its_negative_first_is_understood(model, handle):
    """DualCFG's chunks are [negative, middle, positive] = 0, 1, 2; the conditionings' uuids say which is which.

    The middle one, with the picture but not the text of InstructPix2Pix, the host marks as a negative.
    """
    patched = attach(model, handle, insight())
    seen = []
    wrapper = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    runs = []
    original = comfy_adapter.Run.uncond

    def uncond(run, options):
        flags = original(run, options)
        runs.append(dict(zip(options["cond_or_uncond"], flags, strict=True)))
        return flags

    patched.add_wrapper(wrapper, lambda executor, *args, **kwargs: (seen.append(1), executor(*args, **kwargs))[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy_adapter.Run, "uncond", uncond)
        run_dual(patched)
    merged = {index: flag for each in runs for index, flag in each.items()}
    assert merged == {0: True, 1: True, 2: False}


def run_dual(model):
    text = torch.randn(3, 1, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    guider = Guider_DualCFG(model)
    guider.set_conds(*([[each, {}]] for each in text))
    guider.set_cfg(2.0, 3.0)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    return guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0
    )


def test_a_conditioning_that_stands_on_both_sides_is_told_by_its_index(model, handle):
    shared = attn2(attach(model, handle, insight()))[("middle", 0)].shared

    class Guider:
        conds = {"positive": [{"uuid": "a"}], "negative": [{"uuid": "b"}, {"uuid": "a"}]}

    run = comfy_adapter.Run(shared, shared.window, Guider)
    assert run.uncond({"cond_or_uncond": [1, 0, 1], "uuids": ["a", "a", "b"]}) == (True, False, True)


def test_one_insight_serves_a_batch_and_a_batch_of_insights_its_pictures(model, handle):
    """Picture i of a batch is what it would be alone with insight i."""
    batch = sample(attach(model, handle, insight(batch=2)), batch=2, cfg=1.0)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 1, 7, WIDTH, generator=generator)
    for index in range(2):
        one = Insight(None, None, image_embeds=insight(batch=2).image_embeds[index : index + 1])
        alone = comfy.sample.sample(
            attach(model, handle, one), noise[index : index + 1], 2, 1.0, "euler", "simple", [[text[0], {}]],
            [[text[1], {}]], torch.zeros(1, 4, 16, 16), disable_pbar=True, seed=5,
        )  # fmt: skip
        torch.testing.assert_close(batch[index : index + 1], alone, atol=1e-4, rtol=1e-4)


# Loading and misfits -------------------------------------------------------------------------------------------------


def test_the_weights_are_managed_leaf_by_leaf(handle):
    assert comfy_managed.unmanaged(handle.patcher.model) == []
    assert handle.get_ram_usage() == sum(p.numel() * p.element_size() for p in handle.bridge.parameters())


def test_a_file_the_bare_dict_and_the_wrapped_dict_are_the_same_adapter(mini_folder, model):
    path = mini_folder / "ip_adapter.safetensors"
    bare = comfy_adapter.ipadapter_dict(path)
    handles = [
        load_adapter(source) for source in (path, str(path), bare, {"ipadapter": {"model": bare}, "clipvision": {}})
    ]
    assert len({each.clip_space for each in handles}) == 1 and handles[0].clip_space is not None
    for other in handles[1:]:
        pairs = zip(handles[0].bridge.parameters(), other.bridge.parameters(), strict=True)
        assert all(torch.equal(a, b) and a.dtype == b.dtype == torch.float16 for a, b in pairs)
    assert load_adapter(handles[0]) is handles[0]
    assert set(bare) - {"mindedit"} == {"image_proj", "ip_adapter"}


def test_what_is_no_adapter_says_so():
    with pytest.raises(TypeError, match="an IPADAPTER is a dict .* got int"):
        load_adapter(7)
    face = {"0.to_q_lora.down.weight": torch.zeros(1, 8)}
    with pytest.raises(CheckpointError, match="from the IPADAPTER socket: .* found a FaceID IP-Adapter"):
        load_adapter({"image_proj": {"proj.0.weight": torch.zeros(8, 8)}, "ip_adapter": face, "insightface": True})


def test_an_adapter_of_other_widths_is_refused(model, theirs):
    wrong = copy.deepcopy(random_adapter(theirs))
    wrong["ip_adapter"] = {key: value[:16] for key, value in wrong["ip_adapter"].items()}
    with pytest.raises(Misfit, match="16 cross-attentions of 16..16 .* BaseModel .* of 32..64 .* choose an IP-Adapter"):
        attach(model, load_adapter(wrong), insight())


def test_another_context_width_is_refused(handle):
    with pytest.raises(
        Misfit, match="for tokens of 24, the MODEL .* for tokens of 40; choose an IP-Adapter made for this base"
    ):
        attach(host_model(host_config(width=40)), handle, insight())


def test_another_model_family_is_refused(handle, model):
    other = model.clone()
    other.add_object_patch("diffusion_model", torch.nn.Linear(2, 2))
    with pytest.raises(Misfit, match="SD-type UNet, this MODEL is BaseModel with a Linear; wire an SD1.5"):
        attach(other, handle, insight())


def test_another_clip_space_is_refused(model, tensors):
    named = load_adapter({**tensors, "mindedit": {"clip_space": "vit-h"}})
    with pytest.raises(Misfit, match="in CLIP space vit-h, the insight is .* in other; use"):
        attach(model, named, insight(clip_space="other"))
    wide = Insight(None, None, image_embeds=torch.zeros(1, EMBED + 1))
    with pytest.raises(Misfit, match=r"reads the global embedding \[B, 20\] .* insight is \[1, 21\] "):
        attach(model, named, wide)
    attach(model, named, insight(clip_space="vit-h"))
    attach(model, named, insight())


def test_transformers_of_some_depth_get_a_patch_each(tensors):
    """SDXL's layout has several transformer blocks in one place; each needs its own key."""
    config = host_config()
    config["transformer_depth"] = [2, *config["transformer_depth"][1:]]
    model = host_model(config)
    places = comfy_adapter.cross_attentions(model)
    assert [(place.block, place.number, place.index) for place in places[:3]] == [
        ("input", 1, 0),
        ("input", 1, 1),
        ("input", 2, 0),
    ]
    deep = {"image_proj": tensors["image_proj"], "ip_adapter": {}}
    for layer, place in enumerate(places):
        for side in "kv":
            deep["ip_adapter"][f"{2 * layer + 1}.to_{side}_ip.weight"] = torch.zeros(place.layer_dim, WIDTH)
    keys = attn2(attach(model, load_adapter(deep), insight()))
    assert {("input", 1, 0), ("input", 1, 1), ("input", 2)} <= set(keys)
    assert len(keys) == len(places) == 17
