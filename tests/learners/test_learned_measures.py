"""Relation networks and siamese networks: learned measures, against loops over pairs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.learners import relation
from fewshot.learners.metric import MetricLearner
from fewshot.learners.relation import Relation
from fewshot.learners.siamese import Siamese
from tests.learners.made_up import SHAPE, kshot, patterns

WAY = 3


def sigmoid(score: float) -> float:
    return float(1 / (1 + np.exp(-score)))


def build_relation(image_shape: tuple[int, int, int] = SHAPE) -> Relation:
    torch.manual_seed(0)
    learner = Relation(image_shape, WAY, widths=(3, 4), relation_width=5).double()
    for name, buffer in learner.named_buffers():  # as after training
        if name.endswith(("running_mean", "running_var")):
            buffer += torch.rand(buffer.shape)
    return learner.eval()


# --- Relation -----------------------------------------------------------------------------------------------


def slow_relation(learner: Relation, shown: Tensor, asked: Tensor) -> float:
    """g of one class and one image, both maps (channel, height, width): their channels side by side."""
    module = learner.relation
    kernel = torch.cat([module.of_class.weight, module.of_image.weight], dim=1)
    maps = F.conv2d(torch.cat([shown, asked]).unsqueeze(0), kernel, padding=1)
    convolution, second = (module.block[i] for i in (0, 1))
    for norm in (module.rest_of_block[0], second):
        if norm is second:
            maps = F.conv2d(maps, convolution.weight, padding=1)
        mean, variance, scale, shift = (
            part.view(-1, 1, 1) for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        maps = ((maps - mean) / (variance + norm.eps).sqrt() * scale + shift).relu()
        if maps.shape[-1] > 1:
            maps = F.max_pool2d(maps, 2)
    hidden = (module.layers[0].weight @ maps.flatten() + module.layers[0].bias).relu()
    return float(module.layers[2].weight @ hidden + module.layers[2].bias)


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 12, 20])
def test_scores_are_those_of_maps_side_by_side(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where maps can be halved once, and twice; and whatever number of pairs is compared at a time."""
    learner = build_relation((1, size, size))
    support, query = torch.randn(2, 6, 1, size, size).double(), torch.randn(2, 4, 1, size, size).double()
    labels = torch.arange(6).expand(2, -1) % WAY
    batch = kshot(patterns(9), way=WAY)
    batch = batch._replace(support=batch.support._replace(images=support, labels=labels), query_images=query)
    scores = learner.answer(batch)
    monkeypatch.setattr(relation, "PAIRS_AT_ONCE", 7)
    torch.testing.assert_close(learner.answer(batch), scores)
    maps = learner.backbone.output_shape
    for episode, image, label in np.ndindex(2, 4, WAY):
        mean = learner.embed(support[episode, labels[episode] == label]).mean(0).view(maps)
        asked = learner.embed(query[episode, image : image + 1]).view(maps)
        expected = slow_relation(learner, mean, asked)
        assert float(scores[episode, image, label]) == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_relations_is_the_squared_error() -> None:
    scores = torch.tensor([[[0.3, -2.0, 1.5], [4.0, -torch.inf, -1.0]]], dtype=torch.double)
    loss = build_relation().loss_of_scores(scores, torch.tensor([[2, 1]]))
    pairs = [(0.3, 0), (-2.0, 0), (1.5, 1), (4.0, 0), (-1.0, 0)]
    assert float(loss) == pytest.approx(np.mean([(sigmoid(score) - same) ** 2 for score, same in pairs]))


def test_gradient_of_relations() -> None:
    learner = build_relation().train()
    features, means = (torch.randn(1, n, learner.feature_size).double().requires_grad_() for n in (3, 2))
    assert torch.autograd.gradcheck(learner.relation, (features, means))


# --- Siamese ------------------------------------------------------------------------------------------------


def build_siamese() -> Siamese:
    torch.manual_seed(0)
    learner = Siamese(SHAPE, WAY, widths=(4, 4), embedding_size=6).double()
    with torch.no_grad():
        learner.feature_weights += torch.randn(6)
    return learner.eval()


@torch.no_grad()
def test_the_most_similar_image_of_a_class_speaks_for_it() -> None:
    learner, batch = build_siamese(), kshot(patterns(9).double(), way=WAY)
    scores = learner.answer(batch)
    weights, bias = learner.feature_weights.tolist(), float(learner.bias)
    for episode, query, label in np.ndindex(*scores.shape):
        asked = learner.embed(batch.query_images[episode, query : query + 1])[0].tolist()
        found = []
        for image in batch.support.images[episode][batch.support.labels[episode] == label]:
            shown = learner.embed(image.unsqueeze(0))[0].tolist()
            apart = [w * abs(a - b) for w, a, b in zip(weights, asked, shown, strict=True)]
            found.append(bias - sum(apart))
        assert float(scores[episode, query, label]) == pytest.approx(max(found), rel=1e-6)


def test_pairs_of_one_class_weigh_as_much_as_those_of_two() -> None:
    scores = torch.tensor([[[0.3, -2.0, 1.5], [4.0, -torch.inf, -1.0]]], dtype=torch.double)
    loss = build_siamese().loss_of_scores(scores, torch.tensor([[2, 1]]))
    same = [-np.log(sigmoid(1.5))]
    others = [-np.log(1 - sigmoid(score)) for score in (0.3, -2.0, 4.0, -1.0)]
    assert float(loss) == pytest.approx((np.mean(same) + np.mean(others)) / 2)


def test_where_nothing_is_shown_there_is_nothing_to_learn() -> None:
    scores = torch.full((1, 2, WAY), -torch.inf, requires_grad=True)
    for learner in (build_siamese(), build_relation()):
        loss = learner.loss_of_scores(scores, torch.tensor([[0, 1]]))
        (gradient,) = torch.autograd.grad(loss, scores)
        assert loss.item() == 0
        assert gradient.eq(0).all()


@pytest.mark.parametrize(
    ("learner", "options", "says"),
    [
        (Relation, {"relation_width": 0}, "relation_width must be at least 1; got 0"),
        (Relation, {"hidden_size": 0}, "hidden_size must be at least 1; got 0"),
        (Siamese, {"embedding_size": 0}, "embedding_size must be at least 1; got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    learner: type[MetricLearner], options: dict[str, int], says: str
) -> None:
    with pytest.raises(LearnerError) as caught:
        learner(SHAPE, WAY, **options)
    assert str(caught.value) == says
