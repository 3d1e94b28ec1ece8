"""In which dtype an MLLM computes and is kept: on a CPU never fp16, elsewhere what the host says or the user chose."""

from __future__ import annotations

import comfy.model_management as mm
import pytest
import torch

from mindedit_core.hosts.comfy_dtype import AUTO, CHOICES, DTYPES, precision
from mindedit_core.hosts.comfy_folders import MINI
from mindedit_core.hosts.comfy_mllm_loading import describe, load_mllm

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
@pytest.mark.parametrize("choice", CHOICES)
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
    with pytest.raises(ValueError, match="auto, fp32, bf16, fp16, got 'fp8'"):
        precision("fp8", BF16, CPU)


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
