"""The kernel that gathers images against plain torch, which the tests of episodes hold to the contract."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.errors import EpisodeError
from fewshot.kernels import gather as module
from fewshot.kernels.gather import gather, warp
from fewshot.kernels.native import library, plain_torch

needs_compiler = pytest.mark.skipif(library("gather") is None, reason="no C compiler here")
SIDES = st.sampled_from((1, 2, 3, 5, 12, 15, 16, 17, 20, 28, 31, 33, 40))
"""Around the tiles of 16 and the paper's sizes."""


@pytest.fixture
def some_threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def draw_case(
    seed: int, episodes: int, shown: int, shape: tuple[int, int, int], apart: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """images, rows, turns, maps, scale, offset; apart: rows, turns and maps are slices of larger tensors."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (7, *shape), dtype=torch.uint8, generator=random)
    width = shown + 3 if apart else shown
    rows = torch.randint(0, 7, (episodes, width), generator=random)[:, :shown]
    turns = torch.randint(0, 4, (episodes, width), generator=random)[:, :shown]
    maps = torch.eye(2, 3) + 0.4 * torch.randn(episodes, width, 2, 3, generator=random)[:, :shown]
    scale = 0.001 + torch.rand(shape[0], generator=random)
    offset = torch.randn(shape[0], generator=random)
    return images, rows, turns, maps, scale, offset


@needs_compiler
@pytest.mark.usefixtures("some_threads")
@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**30),
    episodes=st.integers(1, 3),
    parts=st.tuples(st.integers(0, 4), st.integers(1, 5)),
    channels=st.integers(1, 3),
    height=SIDES,
    width=SIDES,
    square=st.booleans(),
    apart=st.booleans(),
    threads=st.sampled_from((1, 2)),
)
def test_the_kernel_is_plain_torch_to_the_last_bit(
    seed: int,
    episodes: int,
    parts: tuple[int, int],
    channels: int,
    height: int,
    width: int,
    square: bool,
    apart: bool,
    threads: int,
) -> None:
    shape = (channels, height, height if square else width)
    images, rows, turns, maps, scale, offset = draw_case(seed, episodes, sum(parts), shape, apart)
    torch.set_num_threads(threads)
    turned = turns if square else None
    ours = gather(images, rows, parts[0], scale, offset, turns=turned)
    distorted = gather(images, rows, parts[0], scale, offset, turns=turned, maps=maps)
    with plain_torch():
        plain = gather(images, rows, parts[0], scale, offset, turns=turned)
        plain_distorted = gather(images, rows, parts[0], scale, offset, turns=turned, maps=maps)
    for part, reference, count in zip(ours, plain, parts, strict=True):
        assert part.shape == (episodes, count, *shape)
        assert part.dtype == torch.float32
        assert part.is_contiguous()
        assert torch.equal(part, reference)
    # Coordinates of 40 pixels in float32 are good to a few millionths, and neighbours differ by up to 255.
    tolerance = 0.01 * float(scale.max())
    for part, reference in zip(distorted, plain_distorted, strict=True):
        torch.testing.assert_close(part, reference, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("plain", [False, True])
def test_images_are_found_turned_and_normalised(plain: bool) -> None:
    images, rows, turns, _, scale, offset = draw_case(3, 2, 5, (2, 18, 18), apart=False)
    with plain_torch() if plain else nullcontext():
        parts = gather(images, rows, 2, scale, offset, turns=turns)
    for image, row, turn in zip(
        torch.cat(parts, dim=1).flatten(0, 1), rows.flatten(), turns.flatten(), strict=True
    ):
        upright = images[row] * scale.view(-1, 1, 1) + offset.view(-1, 1, 1)
        assert torch.equal(image, upright.rot90(int(turn), (1, 2)))


@needs_compiler
def test_the_kernel_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    images, rows, turns, maps, scale, offset = draw_case(0, 1, 2, (1, 6, 6), apart=False)
    monkeypatch.setattr(module, "_plain_gather", None)
    gather(images, rows, 1, scale, offset, turns=turns, maps=maps)
    for other in (images.transpose(2, 3), images.int()):
        with pytest.raises(TypeError, match="not callable"):
            gather(other, rows, 1, scale, offset, turns=turns)
    for others in ({"turns": turns[:, :1]}, {"maps": maps[:, :1]}, {"turns": turns.int()}):
        with pytest.raises(TypeError, match="not callable"):
            gather(images, rows, 1, scale, offset, **others)
    with pytest.raises(TypeError, match="not callable"):
        gather(images.expand(-1, 3, -1, -1).contiguous(), rows, 1, scale, offset)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("episodes", "shown"), [(0, 3), (2, 0)])
def test_nothing_asked_for_is_nothing(episodes: int, shown: int, plain: bool) -> None:
    images, rows, turns, _, scale, offset = draw_case(0, episodes, shown, (1, 4, 4), apart=False)
    with plain_torch() if plain else nullcontext():
        support, query = gather(images, rows, shown, scale, offset, turns=turns)
    assert support.shape == (episodes, shown, 1, 4, 4)
    assert query.shape == (episodes, 0, 1, 4, 4)


@needs_compiler
@pytest.mark.parametrize("distance", [0.0, 3.0, 1e9, float("inf"), float("nan")])
def test_maps_that_lead_anywhere_stay_inside(distance: float) -> None:
    """Far outside is paper; what is not a number must not be an address either."""
    images = torch.full((1, 1, 5, 7), 255, dtype=torch.uint8)
    maps = torch.tensor([[1.0, 0.0, distance], [0.0, 1.0, -distance]]).view(1, 1, 2, 3)
    one, zero = torch.ones(1), torch.zeros(1)
    _, pixels = gather(images, torch.zeros(1, 1, dtype=torch.int64), 0, one, zero, maps=maps)
    assert (pixels == (255 if distance == 0 else 0)).all()


def test_no_distortion_is_no_distortion() -> None:
    images, rows, turns, _, scale, offset = draw_case(1, 2, 6, (3, 28, 28), apart=False)
    still = torch.eye(2, 3).expand(2, 6, 2, 3)
    for part, upright in zip(
        gather(images, rows, 2, scale, offset, turns=turns, maps=still),
        gather(images, rows, 2, scale, offset, turns=turns),
        strict=True,
    ):
        torch.testing.assert_close(part, upright, rtol=0, atol=0.005)


@pytest.mark.parametrize("row", [-1, 7])
@pytest.mark.parametrize("plain", [False, True])
def test_rows_that_are_not_there(row: int, plain: bool) -> None:
    images, rows, _, _, scale, offset = draw_case(0, 2, 3, (1, 4, 4), apart=False)
    rows[1, 2] = row
    told = pytest.raises(EpisodeError, match=r"asked for; the set has 7: use the image set")
    with plain_torch() if plain else nullcontext(), told as error:
        gather(images, rows, 1, scale, offset)
    assert "\n" not in str(error.value)


def test_only_squares_turn() -> None:
    images, rows, turns, _, scale, offset = draw_case(0, 1, 2, (1, 4, 5), apart=False)
    with pytest.raises(EpisodeError, match="quarter turns need square images; these are 4x5"):
        gather(images, rows, 1, scale, offset, turns=turns)


def test_warp_takes_any_batch() -> None:
    images, maps = torch.rand(2, 3, 1, 5, 5), torch.eye(2, 3).expand(2, 3, 2, 3)
    torch.testing.assert_close(warp(images, maps), images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gathers_what_the_cpu_gathers_without_waiting() -> None:
    images, rows, turns, maps, scale, offset = draw_case(5, 3, 6, (3, 28, 28), apart=True)
    here = gather(images, rows, 2, scale, offset, turns=turns)
    distorted = gather(images, rows, 2, scale, offset, turns=turns, maps=maps)
    images, rows, turns, maps, scale, offset = (
        value.cuda() for value in (images, rows, turns, maps, scale, offset)
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = gather(images, rows, 2, scale, offset, turns=turns)
        distorted_there = gather(images, rows, 2, scale, offset, turns=turns, maps=maps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for part, reference in zip(here, there, strict=True):
        assert torch.equal(part, reference.cpu())
    for part, reference in zip(distorted, distorted_there, strict=True):
        torch.testing.assert_close(part, reference.cpu(), rtol=1e-4, atol=0.01 * float(scale.max()))
