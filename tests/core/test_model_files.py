"""Published folders into models: in float32 for everybody, and in the dtype that is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mindedit_core.model_files import load_published
from mindedit_core.systems.tiny_dim import tiny_dim_parts


def gemma() -> nn.Module:
    from transformers import Gemma2Config, Gemma2Model

    sizes = {"hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64, "head_dim": 20}
    return Gemma2Model(Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0))


MODELS = {"Gemma2Model": gemma, "SanaTransformer2DModel": lambda: tiny_dim_parts()["transformer"]}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_read_in_float32_or_as_it_is_asked_for(name, stored, tmp_path):
    model = MODELS[name]()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored)
    model.save_pretrained(tmp_path)
    wide, own = load_published(name, tmp_path).state_dict(), load_published(name, tmp_path, stored).state_dict()
    for key, parameter in model.named_parameters():
        assert own[key].dtype == stored and torch.equal(own[key], parameter)
        assert wide[key].dtype == torch.float32 and torch.equal(wide[key], parameter.float())
