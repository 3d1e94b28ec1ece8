"""Shapes, layouts, masks, keys."""

import pytest
import torch

from mindedit_core.tensors import (
    check_shape,
    composite,
    crop_to,
    fit_mask,
    from_model,
    image_key,
    pad_to_multiple,
    to_model,
    to_rgb,
)


def test_check_shape_returns_the_sizes():
    assert check_shape("x", torch.zeros(2, 7, 32), "b l d", d=32) == {"b": 2, "l": 7, "d": 32}


@pytest.mark.parametrize(("shape", "sizes"), [((2, 7, 31), {"d": 32}), ((7, 32), {}), ((2, 7, 32, 1), {"d": 32})])
def test_check_shape_names_the_tensor_the_invariant_and_what_came(shape, sizes):
    with pytest.raises(ValueError, match=r"insight.hidden must be \[b l d\].*got \(" + ", ".join(map(str, shape))):
        check_shape("insight.hidden", torch.zeros(shape), "b l d", **sizes)


def test_to_model_and_back_is_the_same_picture(generator):
    image = torch.rand(2, 5, 7, 3, generator=generator)
    pixels = to_model(image)
    assert pixels.shape == (2, 3, 5, 7) and pixels.min() >= -1 and pixels.max() <= 1
    assert torch.equal(pixels[:, 1, 4, 2], image[:, 4, 2, 1] * 2 - 1)
    assert torch.allclose(from_model(pixels), image, atol=1e-6)


def test_from_model_clamps():
    assert (
        from_model(torch.full((1, 3, 1, 1), 9.0)).max() == 1 and from_model(torch.full((1, 3, 1, 1), -9.0)).min() == 0
    )


def test_to_rgb_lays_alpha_over_white_and_repeats_grey():
    image = torch.tensor([[[[0.2, 0.4, 0.6, 0.0]], [[0.2, 0.4, 0.6, 1.0]], [[0.2, 0.4, 0.6, 0.5]]]])
    white, opaque, half = to_rgb(image)[0, :, 0]
    assert torch.equal(white, torch.ones(3)) and torch.equal(opaque, image[0, 1, 0, :3])
    assert torch.allclose(half, torch.tensor([0.6, 0.7, 0.8]))
    assert torch.equal(to_rgb(torch.full((1, 1, 1, 1), 0.3)), torch.full((1, 1, 1, 3), 0.3))


def test_to_rgb_leaves_rgb_alone_and_refuses_the_rest():
    image = torch.rand(1, 2, 2, 3)
    assert to_rgb(image) is image
    with pytest.raises(ValueError, match="1, 3 or 4 channels last, got .1, 2, 2, 5."):
        to_rgb(torch.rand(1, 2, 2, 5))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 15), (16, 1), (1365, 3)])
@pytest.mark.parametrize("multiple", [8, 16])
def test_padding_repeats_the_edge_and_cropping_undoes_it(generator, size, multiple):
    image = torch.rand(2, *size, 3, generator=generator)
    padded, old = pad_to_multiple(image, multiple)
    assert padded.shape[1] % multiple == 0 and padded.shape[2] % multiple == 0
    assert torch.equal(crop_to(padded, old), image)
    assert torch.equal(padded[:, -1, -1], image[:, -1, -1])
    mask, _ = pad_to_multiple(image[..., 0], multiple)
    assert torch.equal(mask, padded[..., 0])


def test_a_mask_of_another_size_is_fitted_as_the_host_does_it(generator):
    image, mask = torch.zeros(2, 12, 20, 3), torch.rand(1, 6, 5, generator=generator)
    hosts = torch.nn.functional.interpolate(mask.reshape((-1, 1, 6, 5)), size=(12, 20), mode="bilinear")
    fitted = fit_mask(mask, image)
    assert fitted.shape == (2, 12, 20) and torch.equal(fitted[0], hosts[0, 0]) and torch.equal(fitted[0], fitted[1])


def test_every_form_of_mask_is_taken_and_clamped():
    image = torch.zeros(1, 4, 4, 3)
    for shape in ((4, 4), (1, 4, 4), (1, 1, 4, 4)):
        assert torch.equal(fit_mask(torch.full(shape, 3), image), torch.ones(1, 4, 4))


def test_masks_that_are_not_one_each_are_refused():
    with pytest.raises(ValueError, match="one for each of the 3 pictures, got 2 masks"):
        fit_mask(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4, 3))


def test_image_key_sees_pixels_shape_and_nothing_else(generator):
    image = torch.rand(1, 6, 4, 3, generator=generator)
    assert image_key(image) == image_key(image.double()) == image_key((image * 255).round() / 255)
    changed = image.clone()
    changed[0, 5, 3, 2] = 1 - changed[0, 5, 3, 2].round()
    assert image_key(image) != image_key(changed)
    assert image_key(image) != image_key(image.reshape(1, 4, 6, 3))


def test_composite_is_exact_outside_the_mask_and_inside_it(generator):
    source, edited = torch.rand(2, 6, 6, 3, generator=generator), torch.rand(2, 6, 6, 3, generator=generator)
    mask = torch.zeros(2, 6, 6)
    mask[:, 2:4, 2:4], mask[:, 4, 4] = 1.0, 0.5
    result = composite(source, edited, mask)
    assert torch.equal(result[mask == 0], source[mask == 0]) and torch.equal(result[mask == 1], edited[mask == 1])
    assert torch.allclose(result[:, 4, 4], (source + edited)[:, 4, 4] / 2)


def test_composite_keeps_a_broken_painting_out_of_the_source():
    source, broken = torch.rand(1, 2, 2, 3), torch.full((1, 2, 2, 3), torch.nan)
    assert torch.equal(composite(source, broken, torch.zeros(1, 2, 2)), source)
