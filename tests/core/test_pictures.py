"""Picture files of every kind, and what is said about them."""

import numpy as np
import pytest
import torch
from PIL import Image

from mindedit_core.pictures import read_mask, read_picture, save_picture, side_by_side, to_uint8


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff"])
def test_a_saved_picture_reads_back_to_the_nearest_step(tmp_path, generator, ending):
    image = torch.rand(1, 5, 7, 3, generator=generator)
    again, notes = read_picture(save_picture(image, tmp_path / f"x.{ending}"))
    assert again.shape == image.shape and notes == []
    assert torch.allclose(again, image, atol=0.5 / 255 + 1e-6)


def test_alpha_is_laid_over_white_and_said(tmp_path):
    Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save(tmp_path / "x.png")
    image, notes = read_picture(tmp_path / "x.png")
    assert torch.equal(image, torch.ones(1, 2, 3, 3)) and "transparent parts: they were laid over white" in notes[0]


def test_alpha_that_hides_nothing_is_not_worth_a_note(tmp_path):
    Image.new("RGBA", (3, 2), (255, 0, 0, 255)).save(tmp_path / "x.png")
    image, notes = read_picture(tmp_path / "x.png")
    assert torch.equal(image[0, 0, 0], torch.tensor([1.0, 0.0, 0.0])) and notes == []


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tiff" if mode in ("CMYK", "I;16") else "x.png")
    Image.new(mode, (4, 6)).save(path)
    image, _ = read_picture(path)
    assert image.shape == (1, 6, 4, 3) and 0 <= image.min() and image.max() <= 1


def test_a_turned_photograph_is_set_upright(tmp_path):
    picture = Image.new("RGB", (4, 2), (255, 255, 255))
    exif = picture.getexif()
    exif[274] = 6  # rotate by 90 degrees
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg")[0].shape == (1, 4, 2, 3)


def test_only_the_first_frame_is_read_and_that_is_said(tmp_path):
    frames = [Image.new("L", (2, 2), value) for value in (0, 255)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    image, notes = read_picture(tmp_path / "x.gif")
    assert image.max() == 0 and "2 frames: only the first" in notes[0]


def test_what_is_not_a_picture_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file .*x.png"):
        read_picture(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="y.png cannot be read as a picture .*; save it again as PNG"):
        read_picture(tmp_path / "y.png")
    whole = save_picture(torch.rand(9, 9, 3), tmp_path / "z.png").read_bytes()
    (tmp_path / "z.png").write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="z.png cannot be read"):
        read_mask(tmp_path / "z.png")


def test_a_mask_is_white_where_the_picture_may_change(tmp_path):
    Image.fromarray(np.array([[0, 255], [128, 0]], dtype=np.uint8)).save(tmp_path / "m.png")
    mask, notes = read_mask(tmp_path / "m.png")
    assert torch.allclose(mask, torch.tensor([[[0.0, 1.0], [128 / 255, 0.0]]])) and notes == []


def test_a_hole_in_one_colour_is_a_mask(tmp_path):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "m.png")
    mask, notes = read_mask(tmp_path / "m.png")
    assert mask.tolist() == [[[0.0, 1.0]]] and "transparent part is taken as the mask" in notes[0]


def test_an_unknown_ending_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="cannot write a picture to .*x.abc: its ending"):
        save_picture(torch.rand(2, 2, 3), tmp_path / "x.abc")
    assert list(tmp_path.iterdir()) == []


def test_side_by_side_has_a_white_gap():
    images = [torch.zeros(1, 2, 3, 3), torch.full((1, 2, 5, 3), 0.5)]
    joined = side_by_side(images)
    assert joined.shape == (1, 2, 12, 3) and joined[0, 0, 3:7].min() == 1 and joined[0, 0, 7:].max() == 0.5


def test_side_by_side_is_white_below_a_lower_picture():
    joined = side_by_side([torch.zeros(1, 4, 3, 3), torch.zeros(1, 2, 3, 3)])
    assert joined.shape == (1, 4, 10, 3) and joined[0, :2, 7:].max() == 0 and joined[0, 2:, 7:].min() == 1


def test_to_uint8_rounds_to_the_nearest_step():
    assert to_uint8(torch.full((1, 1, 3), 0.999))[0, 0, 0] == 255 and to_uint8(torch.full((1, 1, 3), -2.0)).max() == 0
