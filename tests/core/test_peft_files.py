"""LoRA files that peft itself saved: the sum is peft's, and what is more than a plain LoRA is refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindedit_core.backbones import adapter_files, lora
from mindedit_core.backbones.llava_onevision import LlavaOnevision
from mindedit_core.backbones.peft_files import CONFIG
from mindedit_core.checkpoint import CheckpointError
from mindedit_core.contracts import Misfit, Plan

peft = pytest.importorskip("peft")
TARGETS = r".*language_model.*\.(q_proj|v_proj|down_proj)"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def model(tiny_parts):
    return copy.deepcopy(tiny_parts["mllm"])


@pytest.fixture
def saved(model, tmp_path, generator):
    """`saved(**settings)`: the folder that peft's save_pretrained wrote, and the model that peft merged."""

    def save(**settings):
        config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS, **settings)
        wrapped = peft.get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        folder = tmp_path / "my-lora"
        wrapped.save_pretrained(folder)
        return folder / WEIGHTS, wrapped.merge_and_unload()

    return save


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 5}}], ids=["plain", "rslora", "ranks of its own"]
)
def test_the_merge_is_peft_s_own(model, saved, settings):
    path, merged = saved(**settings)
    adapter = adapter_files.read_adapter(path)
    assert len(adapter.pairs) == 6 and adapter.head is None and adapter.layer is None
    lora.require_match(adapter, model, 36, 2)
    lora.merge(model, adapter.pairs)
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, atol=1e-5, rtol=1e-5)


def test_keys_of_the_older_layout_are_the_same_modules(saved):
    """Trained on transformers before 4.52, where the language model was the outer one."""
    path, _ = saved()
    expected = adapter_files.read_adapter(path).pairs
    new = load_file(path)
    old = {key.replace("model.model.language_model.", "model.language_model.model."): x for key, x in new.items()}
    assert not old.keys() & new.keys()
    save_file(old, path)
    assert adapter_files.read_adapter(path).pairs.keys() == expected.keys()


def test_it_changes_the_text_and_says_that_the_insight_is_off(tiny_parts, model, saved, generator):
    path, _ = saved()
    mllm = LlavaOnevision(model, tiny_parts["tokenizer"], template="mini")
    image = torch.rand(1, 64, 64, 3, generator=generator)
    plain, layer = mllm.encode(image, Plan("add", "red cat")), mllm.layer
    mllm.attach(path)
    changed = mllm.encode(image, Plan("add", "red cat"))
    assert mllm.layer == layer and changed.image_embeds is None and "insight is off" in changed.note
    assert not torch.allclose(changed.hidden, plain.hidden)
    assert mllm.template == "mini"


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"alpha_pattern": {"v_proj": 2}}, {"modules_to_save": ["multi_modal_projector"]}]
)
def test_what_is_more_than_a_lora_is_refused(saved, settings):
    path, _ = saved(**settings)
    with pytest.raises(CheckpointError, match=rf"{CONFIG} sets {next(iter(settings))}, .*merge_and_unload"):
        adapter_files.read_adapter(path)


def test_a_config_that_is_not_there_or_no_config_is_said(saved):
    path, _ = saved()
    config = path.with_name(CONFIG)
    config.write_text(json.dumps({"r": 3}))
    with pytest.raises(CheckpointError, match="no LoRA config of peft .*lora_alpha"):
        adapter_files.read_adapter(path)
    config.unlink()
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} was saved by peft and needs its {CONFIG} beside it"):
        adapter_files.read_adapter(path)


def test_one_for_another_mllm_is_refused(saved, model):
    path, _ = saved()
    shallow = copy.deepcopy(model)
    shallow.model.language_model.layers = shallow.model.language_model.layers[:1]
    with pytest.raises(Misfit, match=r"changes model\.language_model\.layers\.1\..* does not have"):
        lora.require_match(adapter_files.read_adapter(path), shallow, 36, 1)
