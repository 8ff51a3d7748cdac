import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewshot.episodes.augment import Augment
from fewshot.episodes.hashing import fold
from fewshot.errors import EpisodeError
from fewshot.kernels.gather import warp

KEYS = fold(1, torch.arange(5000))
STILL = Augment(angle_degrees=0, shift=0)
SIDE = 21


def blob(row: int, column: int) -> Tensor:
    """(1, SIDE, SIDE): a small square of ink on paper."""
    image = torch.zeros(1, SIDE, SIDE)
    image[0, row - 1 : row + 2, column - 1 : column + 2] = 255
    return image


def centre(images: Tensor) -> Tensor:
    """(image, 2): row and column of the ink's centre of mass, from the image's centre."""
    place = torch.arange(SIDE) - SIDE // 2
    mass = images.sum(dim=(-3, -2, -1))
    rows = (images.sum(dim=(-3, -1)) * place).sum(dim=-1) / mass
    columns = (images.sum(dim=(-3, -2)) * place).sum(dim=-1) / mass
    return torch.stack((rows, columns), dim=1)


def test_no_distortion_leaves_images_alone() -> None:
    images = torch.rand(6, 2, 3, 9, 9) * 255
    torch.testing.assert_close(warp(images, STILL.maps(KEYS[:12].view(6, 2))), images, rtol=0, atol=1e-3)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    images = torch.rand(1, 1, 9, 9)
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    torch.testing.assert_close(warp(images, quarter), images.rot90(1, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_shift_is_a_fraction_of_the_side_and_fills_it_evenly(axis: int) -> None:
    images = blob(10, 10).expand(len(KEYS), -1, -1, -1)
    moved = centre(warp(images, replace(STILL, shift=0.2).maps(KEYS)))[:, axis] / SIDE
    assert moved.abs().max() <= 0.2 + 1e-4
    assert moved.max() > 0.19
    assert moved.min() < -0.19
    assert abs(moved.mean()) < 0.01


def test_rotation_keeps_its_distance_and_its_limit() -> None:
    images = blob(10, 17).expand(len(KEYS), -1, -1, -1)
    rows, columns = centre(warp(images, replace(STILL, angle_degrees=11.25).maps(KEYS))).unbind(dim=1)
    torch.testing.assert_close((rows**2 + columns**2).sqrt(), torch.full_like(rows, 7.0), rtol=0, atol=0.1)
    angles = torch.rad2deg(torch.atan2(rows, columns))
    assert 10.5 < angles.max() < 11.75
    assert -11.75 < angles.min() < -10.5


def test_scale_changes_area_and_shear_does_not() -> None:
    grown = torch.linalg.det(replace(STILL, scale=0.25).maps(KEYS)[..., :2]).rsqrt()
    assert 0.75 <= grown.min() < 0.76
    assert 1.24 < grown.max() <= 1.25
    slanted = replace(STILL, shear=0.3).maps(KEYS)
    torch.testing.assert_close(torch.linalg.det(slanted[..., :2]), torch.ones(len(KEYS)))
    assert 0.29 < slanted[:, 0, 1].abs().max() <= 0.3


def test_mirror_exchanges_left_and_right_of_every_other_image_before_all_else() -> None:
    augment = Augment(angle_degrees=20, shift=0.1, scale=0.1, shear=0.1)
    images = torch.rand(len(KEYS), 1, 9, 9)
    straight, mirrored = augment.maps(KEYS), replace(augment, mirror=True).maps(KEYS)
    exchanged = (straight != mirrored).flatten(1).any(dim=1)
    assert exchanged.double().mean() == pytest.approx(0.5, abs=0.03)
    there = torch.where(exchanged.view(-1, 1, 1, 1), images.flip(-1), images)
    torch.testing.assert_close(warp(images, mirrored), warp(there, straight), rtol=0, atol=1e-5)


def test_a_crop_is_the_window_in_the_middle() -> None:
    images = torch.rand(2, 3, 1, 9, 8)
    left = replace(STILL, crop=5).cropped(images)
    assert torch.equal(left, images[..., 2:7, 1:6])
    assert left.is_contiguous()
    assert replace(STILL, crop=None).cropped(images) is images
    with pytest.raises(EpisodeError, match="crop of 9 pixels does not fit images of 9x8: lower it"):
        replace(STILL, crop=9).check_fits((1, 9, 8))
    with pytest.raises(EpisodeError, match="crop must be at least 1 pixel; got 0"):
        replace(STILL, crop=0)


def test_the_default_is_small() -> None:
    """Santoro et al. (2016): at most pi / 16; the ink stays near where it was."""
    assert math.radians(Augment().angle_degrees) == pytest.approx(math.pi / 16)
    images = blob(10, 14).expand(len(KEYS), -1, -1, -1)
    moved = centre(warp(images, Augment().maps(KEYS))) - centre(images[:1])
    assert moved.abs().max() < 0.1 * SIDE + 1


def test_paper_comes_in_from_outside() -> None:
    shifted = warp(torch.full((1, 1, 8, 8), 255.0), torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]]))
    assert (shifted[..., -2:] == 0).all()
    assert (shifted[..., :6] == 255).all()


def test_maps_are_a_pure_function_of_the_key() -> None:
    augment = Augment(scale=0.1, shear=0.1)
    whole = augment.maps(KEYS[:12].view(3, 4))
    assert whole.shape == (3, 4, 2, 3)
    assert torch.equal(whole[2, 1], augment.maps(KEYS[9]))
    assert len(whole.flatten(0, 1).unique(dim=0)) == 12


@pytest.mark.parametrize("setting", [{"shift": -0.1}, {"angle_degrees": 200.0}, {"scale": 1.0}])
def test_limits_that_make_no_sense(setting: dict[str, float]) -> None:
    with pytest.raises(EpisodeError, match=rf"{next(iter(setting))} must lie in 0\.\."):
        Augment(**setting)
