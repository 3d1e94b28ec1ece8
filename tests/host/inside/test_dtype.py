"""In which dtype an MLLM computes and is kept: on a CPU never fp16, elsewhere what the host says or the user chose."""

from __future__ import annotations

import comfy.model_management as mm
import pytest
import torch

from mindedit_core.contracts import Plan
from mindedit_core.hosts.comfy_dtype import AUTO, DTYPES, FP8, precision
from mindedit_core.hosts.comfy_folders import MINI
from mindedit_core.hosts.comfy_mllm_loading import describe, load_mllm

STRENGTH = 0.02
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """`gpu("fp16", "bf16")`: what the host says a device is fast in."""

    def fast_in(*names):
        monkeypatch.setattr(mm, "should_use_fp16", lambda _device: "fp16" in names)
        monkeypatch.setattr(mm, "should_use_bf16", lambda _device: "bf16" in names)

    return fast_in


@pytest.mark.parametrize("stored", [FP32, BF16, FP16])
@pytest.mark.parametrize("choice", [AUTO, *DTYPES])
def test_a_cpu_keeps_what_is_stored_and_never_computes_fp16(choice, stored):
    chosen = precision(choice, stored, CPU)
    assert chosen.kept == stored
    assert chosen.compute == (BF16 if choice == "bf16" else FP32)
    assert ("a hundred times slower" in chosen.why) == (choice == "fp16")


@pytest.mark.parametrize(
    ("fast", "stored", "compute"),
    [
        (("fp16", "bf16"), FP16, FP16),
        (("fp16", "bf16"), BF16, BF16),
        (("fp16", "bf16"), FP32, FP32),
        (("fp16",), BF16, FP16),
        (("bf16",), FP16, BF16),
        ((), BF16, FP32),
    ],
)
def test_by_itself_the_host_decides(gpu, fast, stored, compute):
    gpu(*fast)
    chosen = precision(AUTO, stored, GPU)
    assert (chosen.compute, chosen.kept) == (compute, stored)
    assert chosen.why


@pytest.mark.parametrize(
    ("choice", "stored", "kept"),
    [("fp32", BF16, BF16), ("bf16", FP32, BF16), ("fp16", FP32, FP16), ("bf16", FP16, BF16), ("fp32", FP32, FP32)],
)
def test_a_choice_holds_and_never_widens_what_is_kept(gpu, choice, stored, kept):
    gpu()
    chosen = precision(choice, stored, GPU)
    assert chosen.kept == kept and chosen.compute == DTYPES[choice]
    assert kept.itemsize <= stored.itemsize


def test_an_unknown_choice_lists_the_known_ones():
    with pytest.raises(ValueError, match="auto, fp32, bf16, fp16, fp8_e4m3fn, got 'int4'"):
        precision("int4", BF16, CPU)


@pytest.mark.parametrize(("choice", "computed"), [("auto", FP32), ("fp32", FP32), ("bf16", BF16), ("fp16", FP32)])
def test_every_leaf_computes_in_the_chosen_dtype(choice, computed, generator):
    """The mini, stored in fp16, on a CPU: no leaf makes a number in another dtype, and it says what it does."""
    mllm = load_mllm(MINI, dtype=choice)
    seen, hooks = set(), []
    for module in mllm.core.model.modules():
        if getattr(module, "comfy_cast_weights", False):
            hooks.append(module.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype) and None))
    image = torch.rand(1, 64, 64, 3, generator=generator)
    insight = mllm.encode(image, mllm.design(image, "make the small red cat big", max_new_tokens=3))
    for hook in hooks:
        hook.remove()
    assert seen == {computed}
    assert {parameter.dtype for parameter in mllm.core.model.parameters()} == {FP16}
    assert torch.isfinite(insight.image_embeds).all()
    assert "weights kept in fp16, computed in " in describe(MINI, choice)


# fp8 in memory -------------------------------------------------------------------------------------------------------


def test_fp8_keeps_the_matrices_in_one_byte_and_computes_as_ever(generator):
    """The text head, embeddings, norms and convolutions stay; the states lie near those of the stored weights."""
    fp8, whole = load_mllm(MINI, dtype=FP8), load_mllm(MINI)
    head, saved = fp8.core.model.get_output_embeddings(), 0
    for name, module in fp8.core.model.named_modules():
        for parameter in module.parameters(recurse=False):
            is_matrix = isinstance(module, torch.nn.Linear) and module is not head and parameter.ndim == 2
            assert parameter.dtype == (torch.float8_e4m3fn if is_matrix else FP16), name
            saved += parameter.numel() if is_matrix else 0
    assert whole.patcher.model_size() - fp8.patcher.model_size() == saved > 0
    image = torch.rand(1, 64, 64, 3, generator=generator)
    states = [each.encode(image, Plan("add", "red cat")).hidden for each in (fp8, whole)]
    assert states[0].dtype == FP32
    assert torch.cosine_similarity(*states, dim=-1).min() > 0.98
    assert "weights kept in fp8_e4m3fn, computed in fp32" in describe(MINI, FP8)


def test_a_lora_on_fp8_is_rounded_by_chance_and_comes_off_bit_for_bit():
    """A LoRA far below a step of fp8 is there on the average: rounding to the nearest would lose it."""
    mllm, bare = load_mllm(MINI, dtype=FP8, strength=STRENGTH), load_mllm(MINI, None, FP8)
    mm.load_models_gpu([bare.patcher])
    before = {name: value.clone() for name, value in bare.core.model.state_dict().items()}
    mm.load_models_gpu([mllm.patcher])
    added, wanted = [], []
    for module, pair in mllm.core.adapter.pairs.items():
        weight = mllm.core.model.get_submodule(module).weight
        assert weight.dtype == torch.float8_e4m3fn
        added.append((weight.float() - before[f"{module}.weight"].float()).flatten())
        wanted.append(pair.delta(strength=STRENGTH).flatten())
    added, wanted = torch.cat(added), torch.cat(wanted)
    assert (added == 0).float().mean() > 0.5, "the LoRA is too strong for this test"
    assert 0.7 < float(added @ wanted / (wanted @ wanted)) < 1.3
    mm.load_models_gpu([bare.patcher])
    after = bare.core.model.state_dict()
    assert all(torch.equal(value.view(torch.uint8), after[name].view(torch.uint8)) for name, value in before.items())
