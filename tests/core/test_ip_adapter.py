"""The IP-Adapter bridge on tiny UNets with SD1.5's blocks: attaching it, what it takes, training it."""

from __future__ import annotations

import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from mindedit_core.bridges import BRIDGES, bridge
from mindedit_core.bridges.attention_processor import cross_attention_layers
from mindedit_core.bridges.ip_adapter import IPAdapter
from mindedit_core.checkpoint import save_checkpoint
from mindedit_core.contracts import Bridge, Insight, Misfit

EMBED, TOKEN = 24, 32
SD15_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,
}


def tiny_unet(in_channels: int = 4, seed: int = 0, **changes) -> UNet2DConditionModel:
    """SD1.5's layout (16 cross-attention layers) with 16 to 32 channels."""
    torch.manual_seed(seed)
    sizes = {
        "block_out_channels": (16, 16, 32, 32),
        "norm_num_groups": 8,
        "cross_attention_dim": TOKEN,
        "sample_size": 16,
    }
    config = {**SD15_BLOCKS, **sizes, "in_channels": in_channels, "out_channels": 4, **changes}
    return UNet2DConditionModel(**config).eval().requires_grad_(False)


def tiny_adapter(unet: UNet2DConditionModel, seed: int = 1) -> IPAdapter:
    torch.manual_seed(seed)
    adapter = IPAdapter.for_unet(unet, embed_dim=EMBED, tokens=4, clip_space="tiny")
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return adapter.requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture(scope="module")
def adapter(unet) -> IPAdapter:
    return tiny_adapter(unet)


def inputs(in_channels: int = 4, batch: int = 2):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(batch, in_channels, 8, 8, generator=generator)
    text = torch.randn(batch, 7, TOKEN, generator=generator)
    embeds = torch.randn(batch, EMBED, generator=generator)
    return latents, text, embeds


def record_cross_attention(unet) -> tuple[list[torch.Tensor], list]:
    outputs: list[torch.Tensor] = []
    layers = cross_attention_layers(unet).values()
    return outputs, [attn.register_forward_hook(lambda _, __, out: outputs.append(out)) for attn in layers]


# Against diffusers --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_channels", [4, 9])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_it_equals_diffusers_ip_adapter(in_channels, scale):
    theirs, ours = tiny_unet(in_channels), tiny_unet(in_channels)
    adapter = tiny_adapter(ours)
    latents, text, embeds = inputs(in_channels)
    state = adapter.state_dict()
    nested = {
        part: {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(part)}
        for part in ("image_proj", "ip_adapter")
    }
    theirs._load_ip_adapter_weights([nested])
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]

    their_layers, _ = record_cross_attention(theirs)
    expected = theirs(latents, 500, text, added_cond_kwargs={"image_embeds": [embeds[:, None]]}).sample
    our_layers, _ = record_cross_attention(ours)
    with adapter.attached(ours, adapter.project(embeds), scale=scale):
        found = ours(latents, 500, text).sample

    assert len(our_layers) == len(their_layers) == 16
    for ours_out, theirs_out in zip(our_layers, their_layers, strict=True):
        torch.testing.assert_close(ours_out, theirs_out, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - ours(latents, 500, text).sample).abs().max() > 1e-3  # and the adapter does something


def test_each_layer_equals_diffusers_on_unit_variance_input(unet, adapter):
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(2, 4, TOKEN, generator=generator)
    with adapter.attached(unet, tokens, scale=1.0):
        for (name, attn), weights in zip(
            cross_attention_layers(unet).items(), adapter.ip_adapter.values(), strict=True
        ):
            hidden = torch.randn(2, 9, attn.to_q.in_features, generator=generator)
            text = torch.randn(2, 7, TOKEN, generator=generator)
            theirs = IPAdapterAttnProcessor2_0(attn.inner_dim, TOKEN, num_tokens=(4,), scale=1.0)
            theirs.to_k_ip[0].weight.data, theirs.to_v_ip[0].weight.data = (
                weights.to_k_ip.weight,
                weights.to_v_ip.weight,
            )
            expected = theirs(attn, hidden, (text, [tokens[:, None]]))
            torch.testing.assert_close(attn(hidden, text), expected, atol=1e-5, rtol=0, msg=name)


def test_layer_order_is_that_of_the_published_files():
    """papers.md 5.2: the true SD1.5 shape, on the meta device."""
    with torch.device("meta"):
        sd15 = UNet2DConditionModel(
            **SD15_BLOCKS, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, sample_size=64
        )
        adapter = IPAdapter.for_unet(sd15, embed_dim=1024)
    places = {
        2 * i + 1: (".".join(name.split(".")[:2]), attn.inner_dim)
        for i, (name, attn) in enumerate(cross_attention_layers(sd15).items())
    }
    table = {(1, 3): ("down_blocks.0", 320), (5, 7): ("down_blocks.1", 640), (9, 11): ("down_blocks.2", 1280)}
    table |= {
        (13, 15, 17): ("up_blocks.1", 1280),
        (19, 21, 23): ("up_blocks.2", 640),
        (25, 27, 29): ("up_blocks.3", 320),
    }
    table |= {(31,): ("mid_block.attentions", 1280)}
    assert places == {k: place for numbers, place in table.items() for k in numbers}
    processors = list(sd15.attn_processors)
    assert all(f"{name}.processor" == processors[2 * i + 1] for i, name in enumerate(cross_attention_layers(sd15)))
    shapes = {key: tuple(value.shape) for key, value in adapter.state_dict().items()}
    assert shapes["image_proj.proj.weight"] == (4 * 768, 1024) and shapes["ip_adapter.9.to_v_ip.weight"] == (1280, 768)
    assert sum(value.numel() for value in adapter.state_dict().values()) == pytest.approx(22.3e6, rel=0.005)


# Attaching ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "gate"), [(0.0, None), (1.0, False), (1.0, torch.tensor(False)), (torch.tensor(0.0), None)]
)
def test_a_shut_adapter_is_the_bare_unet_bit_for_bit(unet, adapter, scale, gate):
    latents, text, embeds = inputs()
    bare = unet(latents, 300, text).sample
    with adapter.attached(unet, adapter.project(embeds), scale=scale, gate=gate):
        assert torch.equal(unet(latents, 300, text).sample, bare)


def test_the_gate_may_be_set_between_steps(unet, adapter):
    latents, text, embeds = inputs()
    bare = unet(latents, 300, text).sample
    with adapter.attached(unet, adapter.project(embeds)) as branch:
        on = unet(latents, 300, text).sample
        branch.gate = False
        assert torch.equal(unet(latents, 300, text).sample, bare)
        branch.gate = torch.tensor(True)
        assert torch.equal(unet(latents, 300, text).sample, on) and not torch.equal(on, bare)


def test_the_text_mask_still_counts_while_attached(unet, adapter):
    latents, text, embeds = inputs()
    mask = torch.arange(7)[None].expand(2, -1) < 4
    with adapter.attached(unet, adapter.project(embeds)):
        masked = unet(latents, 300, text, encoder_attention_mask=mask).sample
        cut = unet(latents, 300, text[:, :4]).sample
    torch.testing.assert_close(masked, cut, atol=1e-5, rtol=1e-4)


def test_the_unet_is_left_as_it_was_even_after_an_error(unet, adapter):
    latents, text, embeds = inputs()
    processors, state = unet.attn_processors, {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(RuntimeError, match="by hand"), adapter.attached(unet, adapter.project(embeds)):
        assert list(unet.state_dict()) == list(state)
        raise RuntimeError("by hand")
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert all(isinstance(processor, AttnProcessor2_0) for processor in unet.attn_processors.values())
    after = unet.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())


def test_keys_and_values_are_computed_once_and_freed(unet, adapter):
    latents, text, embeds = inputs()
    calls, alive = [], []

    def seen(module, args, output):
        calls.append(module)
        alive.append(weakref.ref(output))

    linears = [linear for layer in adapter.ip_adapter.values() for linear in (layer.to_k_ip, layer.to_v_ip)]
    hooks = [linear.register_forward_hook(seen) for linear in linears]
    with adapter.attached(unet, adapter.project(embeds)):
        for timestep in (900, 500, 100):
            unet(latents, timestep, text)
    for hook in hooks:
        hook.remove()
    assert calls == linears and all(ref() is None for ref in alive)


def test_an_adapter_for_another_unet_is_refused_with_a_remedy(adapter):
    for other in (tiny_unet(cross_attention_dim=48), tiny_unet(block_out_channels=(16, 16, 32, 64))):
        with pytest.raises(
            Misfit, match="this IP-Adapter has 16 cross-attention layers.*the UNet 16.*load an IP-Adapter made for"
        ):
            adapter.attached(other, torch.zeros(1, 4, TOKEN))


def test_diffusers_own_adapter_has_to_leave_first(adapter):
    other = tiny_unet()
    other.config["encoder_hid_dim_type"] = "ip_image_proj"
    with pytest.raises(Misfit, match="unload_ip_adapter"), adapter.attached(other, torch.zeros(1, 4, TOKEN)):
        pass


# The bridge ---------------------------------------------------------------------------------------


def insight_of(embeds, clip_space="tiny", note=""):
    return Insight(hidden=None, mask=None, image_embeds=embeds, clip_space=clip_space, note=note)


def test_the_bridge_projects_v_insight_and_zeros(adapter):
    embeds = inputs()[2]
    condition = adapter(insight_of(embeds))
    assert condition.streams == adapter.emits == {"image_tokens"}
    assert torch.equal(condition.image_tokens, adapter.project(embeds)) and condition.image_tokens.shape == (
        2,
        4,
        TOKEN,
    )
    expected = torch.nn.functional.layer_norm(
        adapter.image_proj.proj.bias.reshape(4, TOKEN),
        (TOKEN,),
        adapter.image_proj.norm.weight,
        adapter.image_proj.norm.bias,
    )
    torch.testing.assert_close(condition.negative_image_tokens, expected.expand(2, -1, -1))


def test_without_v_insight_the_bridge_says_so_and_emits_nothing(adapter, caplog):
    assert adapter(insight_of(None, note="no head is loaded")).streams == frozenset()
    assert "text alone" in caplog.text and "no head is loaded" in caplog.text


@pytest.mark.parametrize(
    ("shape", "space"), [((1, 16), "tiny"), ((1, EMBED), "ViT-H"), ((1, 257, EMBED), "tiny"), ((1, 16), None)]
)
def test_v_insight_of_another_clip_space_is_refused(adapter, shape, space):
    wanted = (
        r"base, tokens of 32, reads 24\) reads the global embedding \[B, 24\] in CLIP space tiny, .* is \[1, .*; use "
    )
    with pytest.raises(Misfit, match=wanted + ".* that reads|for the insight's CLIP space, or an adapter file whose"):
        adapter(insight_of(torch.zeros(shape), space))


def test_an_unnamed_space_of_the_right_width_is_taken(unet):
    adapter = IPAdapter.from_state_dict(tiny_adapter(unet).state_dict())
    assert adapter(insight_of(torch.zeros(1, EMBED), "ViT-H")).image_tokens.shape == (1, 4, TOKEN)


def test_the_table_finds_it_and_it_is_a_bridge(adapter):
    assert bridge("ip_adapter") is IPAdapter and isinstance(adapter, Bridge)
    assert list(BRIDGES) == ["ip_adapter", "mlp", "text_only"]
    with pytest.raises(ValueError, match="unknown bridge 'qformer2'; have ip_adapter, mlp, text_only"):
        bridge("qformer2")


# Files --------------------------------------------------------------------------------------------


def nested(state):
    parts = {"image_proj": {}, "ip_adapter": {}}
    for key, value in state.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    return parts


def test_flat_and_nested_layouts_load_alike(adapter, tmp_path):
    state = {key: value.half() for key, value in adapter.state_dict().items()}
    path = save_checkpoint(tmp_path / "a.safetensors", state, {"component": "ip_adapter", "config": adapter.config})
    for loaded in (
        IPAdapter.from_state_dict(state),
        IPAdapter.from_state_dict(nested(state)),
        IPAdapter.from_file(path),
    ):
        assert loaded.layer_dims == adapter.layer_dims and loaded.tokens == 4 and loaded.embed_dim == EMBED
        assert all(torch.equal(value, state[key].float()) for key, value in loaded.state_dict().items())
    assert IPAdapter.from_file(path).clip_space == "tiny"
    assert loaded.config == {**adapter.config, "clip_space": "tiny"}


def test_the_number_of_tokens_comes_from_the_shapes(unet):
    sixteen = IPAdapter.for_unet(unet, embed_dim=EMBED, tokens=16)
    assert IPAdapter.from_state_dict(sixteen.state_dict()).tokens == 16


# Training -----------------------------------------------------------------------------------------


def test_a_new_adapter_starts_from_the_unets_own_keys_and_values(unet):
    adapter = IPAdapter.for_unet(unet, embed_dim=EMBED)
    for attn, layer in zip(cross_attention_layers(unet).values(), adapter.ip_adapter.values(), strict=True):
        assert torch.equal(layer.to_k_ip.weight, attn.to_k.weight) and layer.to_k_ip.weight.requires_grad
        assert (
            torch.equal(layer.to_v_ip.weight, attn.to_v.weight)
            and layer.to_v_ip.weight.data_ptr() != attn.to_v.weight.data_ptr()
        )


def gradients(unet, adapter, checkpointing: bool) -> list[torch.Tensor]:
    adapter.zero_grad()
    latents, text, embeds = inputs()
    unet.train(checkpointing)
    with adapter.attached(unet, image_tokens=adapter.project(embeds), scale=1.0):
        unet(latents, torch.tensor([10, 700]), text).sample.square().mean().backward()
    unet.eval()
    return [parameter.grad.clone() for parameter in adapter.parameters()]


def test_gradients_reach_every_adapter_parameter_and_no_other():
    unet = tiny_unet()
    adapter = tiny_adapter(unet).requires_grad_(True)
    found = gradients(unet, adapter, checkpointing=False)
    assert all(gradient.abs().max() > 0 for gradient in found)
    assert all(parameter.grad is None for parameter in unet.parameters())
    unet.enable_gradient_checkpointing()
    for plain, again in zip(found, gradients(unet, adapter, checkpointing=True), strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-4)


def test_training_lowers_the_loss():
    unet = tiny_unet()
    adapter = tiny_adapter(unet).requires_grad_(True)
    latents, text, embeds = inputs()
    target = torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        with adapter.attached(unet, image_tokens=adapter.project(embeds)):
            loss = torch.nn.functional.mse_loss(unet(latents, torch.tensor([400, 400]), text).sample, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
