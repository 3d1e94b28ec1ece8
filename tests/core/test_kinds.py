"""What a checkpoint is, by its keys and shapes."""

import pytest
import torch

from mindedit_core.checkpoint import CheckpointError, load_tensors, read_metadata
from mindedit_core.kinds import KINDS, detect, require_kind
from mindedit_core.model_files import MINI_FILES


@pytest.mark.parametrize("name", MINI_FILES[:-1])
def test_every_file_of_a_mini_is_known_by_its_keys(tiny_folder, tmp_path, name):
    kind = name.removesuffix(".safetensors")
    assert read_metadata(tiny_folder / name)["component"] == detect(tiny_folder / name) == kind
    assert detect(load_tensors(tiny_folder / name)) == kind
    (tmp_path / "misleading_unet.safetensors").write_bytes((tiny_folder / name).read_bytes())
    assert detect(tmp_path / "misleading_unet.safetensors") == kind


def shaped(**shapes):
    return {key.replace("__", "."): torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("ip_adapter_plus", shaped(image_proj__latents=(1, 16, 768), ip_adapter__1__to_k_ip__weight=(320, 768))),
        ("ip_adapter_full_face", shaped(image_proj__proj__3__weight=(768,), ip_adapter__1__to_k_ip__weight=(320, 768))),
        ("ip_adapter_faceid", shaped(ip_adapter__0__to_q_lora__down__weight=(4, 320), image_proj__norm__weight=(768,))),
        ("sd_checkpoint", {"model.diffusion_model.input_blocks.0.0.weight": torch.empty(320, 4, 3, 3, device="meta")}),
        ("mllm", shaped(language_model__model__norm__weight=(8,), vision_tower__vision_model__x=(8,))),
        (
            "unet_instruct",
            shaped(conv_in__weight=(32, 8, 3, 3), conv_out__weight=(4, 32, 3, 3), down_blocks__0__x=(1,)),
        ),
        ("clip_text", shaped(text_model__final_layer_norm__weight=(768,))),
        ("clip_vision", shaped(vision_model__post_layernorm__weight=(1280,), visual_projection__weight=(1024, 1280))),
    ],
)
def test_published_layouts_are_told_apart(kind, tensors):
    assert detect(tensors) == kind


def test_diffusers_own_autoencoder_kl_is_an_autoencoder():
    from diffusers import AutoencoderKL

    kl = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    assert detect(kl.state_dict()) == "autoencoder"


def test_a_stranger_is_described():
    with pytest.raises(
        CheckpointError, match="no kind of checkpoint known here: 2 keys, such as a, b; known kinds: mind_ed"
    ):
        detect({"a": torch.zeros(1), "b": torch.zeros(1)})
    assert len(KINDS) == len(set(KINDS))


def test_the_wrong_kind_says_found_needed_and_where(tiny_folder):
    path = tiny_folder / "unet.safetensors"
    assert require_kind(path, "unet", "unet_inpaint", where="x") == "unet"
    with pytest.raises(
        CheckpointError, match="found a checkpoint of kind 'unet', needed 'ip_adapter'; put one in models/ip"
    ):
        require_kind(path, "ip_adapter", where="put one in models/ipadapter")
