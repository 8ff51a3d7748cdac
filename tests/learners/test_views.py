import pytest
import torch

from fewshot.errors import LearnerError
from fewshot.learners.check import check_learner
from fewshot.learners.registry import build_learner
from fewshot.learners.views import SCALE, SHIFT, mean_over_views

IMAGES = torch.rand(3, 1, 28, 28)


def shown(images: torch.Tensor, views: int) -> list[torch.Tensor]:
    """The copies whose features are averaged."""
    seen: list[torch.Tensor] = []

    def embed(view: torch.Tensor) -> torch.Tensor:
        seen.append(view)
        return view.flatten(-3)

    mean = mean_over_views(embed, images, views)
    torch.testing.assert_close(mean, torch.stack(seen).mean(0).flatten(-3))
    return seen


def test_the_first_view_is_the_image_and_alone_it_changes_nothing() -> None:
    assert mean_over_views(lambda view: view, IMAGES, 1) is IMAGES
    assert shown(IMAGES, 5)[0] is IMAGES


def test_four_views_are_shifted_by_one_pixel_of_an_omniglot_image() -> None:
    assert SHIFT * 28 == 1
    _, left, right, up, down = shown(IMAGES, 5)
    torch.testing.assert_close(left[..., :-1], IMAGES[..., 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(right[..., 1:], IMAGES[..., :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(up[..., :-1, :], IMAGES[..., 1:, :], rtol=0, atol=1e-5)
    torch.testing.assert_close(down[..., 1:, :], IMAGES[..., :-1, :], rtol=0, atol=1e-5)
    torch.testing.assert_close(right[..., 0], IMAGES[..., 0], rtol=0, atol=1e-5)


def test_the_others_are_turned_and_resized() -> None:
    disc = ((torch.arange(28) - 13.5) ** 2 + (torch.arange(28).unsqueeze(1) - 13.5) ** 2 < 64).float()
    *_, one_way, other_way, small, large = shown(disc.view(1, 1, 28, 28), 9)
    for turned in (one_way, other_way):
        assert turned.sum().item() == pytest.approx(disc.sum().item(), rel=0.02)
    assert small.sum().item() == pytest.approx(disc.sum().item() / (1 + SCALE) ** 2, rel=0.02)
    assert large.sum().item() == pytest.approx(disc.sum().item() / (1 - SCALE) ** 2, rel=0.02)
    bar = torch.zeros(1, 1, 28, 28)
    bar[..., 13:15, 4:24] = 1
    *_, one_way, other_way, _, _ = shown(bar, 9)
    torch.testing.assert_close(one_way, other_way.flip(-1), rtol=0, atol=1e-5)
    assert not torch.allclose(one_way, bar, atol=0.5)


@pytest.mark.parametrize("name", ["prototypical", "siamese", "simpleshot", "nearest_feature"])
def test_views_are_for_answers_and_training_takes_the_image_alone(name: str) -> None:
    options = {"classes": 8} if name == "simpleshot" else {}
    plain, many = (
        (torch.manual_seed(0), build_learner(name, (1, 28, 28), 5, options | {"views": views}))[1]
        for views in (1, 9)
    )
    images = IMAGES.view(1, 3, 1, 28, 28)
    for learner in (plain, many):
        learner.eval()
    assert many.embed(images).shape == plain.embed(images).shape
    assert not torch.equal(many.embed(images), plain.embed(images))
    for learner in (plain, many):
        learner.train()
    assert torch.equal(many.embed(images), plain.embed(images))


def test_a_learner_with_views_passes_the_conformance_check() -> None:
    check_learner(build_learner("prototypical", (1, 28, 28), 5, {"views": 5}))


@pytest.mark.parametrize("views", [0, 2, 10])
def test_other_numbers_of_views_are_refused(views: int) -> None:
    with pytest.raises(LearnerError, match=rf"views .* 1, 5 or 9, got {views}"):
        build_learner("prototypical", (1, 28, 28), 5, {"views": views})
