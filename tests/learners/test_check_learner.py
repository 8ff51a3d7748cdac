"""The conformance check: every registered learner passes, and each kind of broken promise is caught."""

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support
from fewshot.episodes.source import presentation
from fewshot.errors import FewshotError, LearnerError
from fewshot.learners.base import Learner
from fewshot.learners.check import PROMISES, check_learner
from fewshot.learners.embedding import EmbeddingLearner
from fewshot.learners.registry import build_learner, learner_names
from fewshot.memory.attribution import Watch, append_only

IMAGE_SHAPE = (1, 8, 8)
WAY = 3
SMALL: dict[str, dict[str, Any]] = {
    "anil": {"widths": (4, 4)},
    "attention": {"widths": (4, 4), "hidden_size": 12},
    "baseline": {"widths": (4, 4), "classes": 5, "head_steps": 5},
    "baseline_pp": {"widths": (4, 4), "classes": 5, "head_steps": 5},
    "feedforward": {"widths": (4, 4), "hidden_size": 12},
    "fomaml": {"widths": (4, 4)},
    "key_value": {"widths": (4, 4), "num_slots": 8},
    "logistic": {"widths": (4, 4)},
    "lstm": {"widths": (4, 4), "hidden_size": 12},
    "maml": {"widths": (4, 4)},
    "mann": {"widths": (4, 4), "hidden_size": 12, "num_slots": 8, "word_size": 5, "read_heads": 2},
    "mann_dnc": {"widths": (4, 4), "hidden_size": 12, "num_slots": 8, "word_size": 5, "read_heads": 2},
    "mann_ntm": {"widths": (4, 4), "hidden_size": 12, "num_slots": 8, "word_size": 5, "read_heads": 2},
    "mann_paper": {"hidden_size": 12},
    "mann_sparse": {"widths": (4, 4), "hidden_size": 12, "num_slots": 8, "word_size": 5, "read_heads": 2},
    "matching": {"widths": (4, 4)},
    "matching:full_context": {"widths": (4, 4), "full_context": True},
    "meta_baseline": {"widths": (4, 4), "classes": 5},
    "metasgd": {"widths": (4, 4)},
    "nearest_feature": {"widths": (4, 4)},
    "prototypical": {"widths": (4, 4)},
    "prototypical:cosine": {"widths": (4, 4), "distance": "cosine"},
    "relation": {"widths": (4, 4), "relation_width": 4},
    "reptile": {"widths": (4, 4), "inner_steps_test": 5},
    "ridge": {"widths": (4, 4)},
    "siamese": {"widths": (4, 4), "embedding_size": 6},
    "simpleshot": {"widths": (4, 4), "classes": 5},
}

State = tuple[Tensor, Tensor]


class ClassMeans(Learner):
    """A learner that keeps its promises: distance to the class means of scaled pixels."""

    def __init__(self, image_shape: tuple[int, int, int] = IMAGE_SHAPE, way: int = WAY) -> None:
        super().__init__(image_shape, way)
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("calls", torch.zeros(()))

    def start(self, batch: int, way: int) -> State:
        pixels = self.image_shape[0] * self.image_shape[1] * self.image_shape[2]
        return torch.zeros(batch, way, pixels), torch.zeros(batch, way, 1)

    def observe(self, state: State, image: Tensor, label: Tensor) -> State:
        sums, counts = state
        shown = F.one_hot(label, sums.shape[1]).to(image).unsqueeze(2)
        return sums + shown * self.features(image).unsqueeze(1), counts + shown

    def predict(self, state: State, images: Tensor) -> Tensor:
        sums, counts = state
        means = sums / counts.clamp(min=1)
        return -(self.features(images).unsqueeze(2) - means.unsqueeze(1)).square().sum(-1)

    def features(self, images: Tensor) -> Tensor:
        return self.scale * images.flatten(-3)


class KeepsStateOnTheModule(ClassMeans):
    """easyfsl's habit: prototypes are an attribute."""

    def observe(self, state: State, image: Tensor, label: Tensor) -> State:
        self.kept = super().observe(state, image, label)
        return self.kept

    def predict(self, state: State, images: Tensor) -> Tensor:
        return super().predict(getattr(self, "kept", state), images)


class WritesIntoTheState(ClassMeans):
    def observe(self, state: State, image: Tensor, label: Tensor) -> State:
        sums, counts = state
        sums += F.one_hot(label, sums.shape[1]).unsqueeze(2) * self.features(image).unsqueeze(1)
        counts += F.one_hot(label, sums.shape[1]).unsqueeze(2)
        return sums, counts


class LearnsFromQueries(ClassMeans):
    """Undeclared transduction: queries are centred together."""

    def predict(self, state: State, images: Tensor) -> Tensor:
        return super().predict(state, images - images.mean(1, keepdim=True))


class MixesEpisodes(ClassMeans):
    """Batch norm over the whole batch of episodes."""

    def predict(self, state: State, images: Tensor) -> Tensor:
        return super().predict(state, images / images.std())


class ReadsQueryLabels(ClassMeans):
    def answer(self, batch: EpisodeBatch) -> Tensor:
        logits = super().answer(batch)
        return logits + F.one_hot(batch.query_labels, batch.way) if isinstance(batch, KShotBatch) else logits


class ReadsTheStreamAhead(ClassMeans):
    def stream(self, batch: StreamBatch) -> Tensor:
        return super().stream(batch) + F.one_hot(batch.labels, batch.way)


class StreamsDifferently(ClassMeans):
    """A faster stream with a mistake: it forgets the first image."""

    def stream(self, batch: StreamBatch) -> Tensor:
        rest = StreamBatch(*(part[:, 1:] for part in batch[:3]), batch.class_ids, batch.way)
        return F.pad(super().stream(rest), (0, 0, 1, 0))


class AdaptsDifferently(ClassMeans):
    def adapt(self, support: Support) -> State:
        return super().adapt(support._replace(images=support.images[:, 1:], labels=support.labels[:, 1:]))


class PrefersTheFirstLabel(ClassMeans):
    """Claims label equivariance, which it has not."""

    def predict(self, state: State, images: Tensor) -> Tensor:
        logits = super().predict(state, images)
        return logits - torch.arange(logits.shape[2])


class GuessesLabelsFromImages(ClassMeans):
    """The shortcut of samplers that number classes in a fixed order: brightness tells the label."""

    label_equivariant: ClassVar[bool] = False

    def predict(self, state: State, images: Tensor) -> Tensor:
        way = state[0].shape[1]
        return -(images.flatten(-3).mean(-1, keepdim=True) - torch.arange(way) / way).square()


class CountsItsCalls(ClassMeans):
    calls: Tensor

    def predict(self, state: State, images: Tensor) -> Tensor:
        self.calls += 1
        return super().predict(state, images)


class StaysInTrainingMode(ClassMeans):
    """The MAML examples that call train() inside test."""

    def predict(self, state: State, images: Tensor) -> Tensor:
        self.train()
        return super().predict(state, images)


class LosesALabel(ClassMeans):
    def predict(self, state: State, images: Tensor) -> Tensor:
        return super().predict(state, images)[..., 1:]


class OnlyItsOwnWay(ClassMeans):
    """Answers only the way it was built for, and does not say so."""

    def predict(self, state: State, images: Tensor) -> Tensor:
        return super().predict(state, images)[..., : self.way]


class DividesByZero(ClassMeans):
    def predict(self, state: State, images: Tensor) -> Tensor:
        sums, counts = state
        return super().predict((sums / counts, torch.ones_like(counts)), images)


class Guesses(ClassMeans):
    def predict(self, state: State, images: Tensor) -> Tensor:
        logits = super().predict(state, images)
        return logits + torch.rand_like(logits)


class ForgetsWhenSaved(ClassMeans):
    """What calibration finds is no buffer."""

    sharpness = 1.0

    def calibrate(self, batch: StreamBatch) -> None:
        self.sharpness = 2.0

    def predict(self, state: State, images: Tensor) -> Tensor:
        return self.sharpness * super().predict(state, images)


class TrainsHalf(ClassMeans):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(2))


class ExplodesInTraining(ClassMeans):
    def loss(self, batch: EpisodeBatch) -> Tensor:
        return super().loss(batch) / 0


class MeansOfFeatures(EmbeddingLearner):
    """The same method as an `EmbeddingLearner`; it keeps its promises."""

    def __init__(self) -> None:
        super().__init__(IMAGE_SHAPE, WAY)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def start(self, batch: int, way: int) -> State:
        return torch.zeros(batch, way, 64), torch.zeros(batch, way, 1)

    def embed(self, images: Tensor) -> Tensor:
        return self.scale * images.flatten(-3)

    def observe_features(self, state: State, features: Tensor, label: Tensor) -> State:
        sums, counts = state
        shown = F.one_hot(label, sums.shape[1]).to(features).unsqueeze(2)
        return sums + shown * features.unsqueeze(1), counts + shown

    def predict_features(self, state: State, features: Tensor) -> Tensor:
        sums, counts = state
        means = sums / counts.clamp(min=1)
        return -(features.unsqueeze(2) - means.unsqueeze(1)).square().sum(-1)


class AnswersFeaturesDifferently(MeansOfFeatures):
    """A faster way for features with a mistake."""

    def answer_features(self, batch: EpisodeBatch) -> Tensor:
        return 2 * super().answer_features(batch)


class EmbedsTogether(MeansOfFeatures):
    """Batch norm over the images embedded side by side."""

    def embed(self, images: Tensor) -> Tensor:
        return super().embed(images) / images.std()


class WatchedDifferently(MeansOfFeatures):
    """It gives better answers where somebody looks."""

    has_memory = True

    def watch_features(self, batch: StreamBatch) -> tuple[Tensor, Watch]:
        steps = torch.zeros(*batch.labels.shape, 1)
        return self.stream_features(batch) + F.one_hot(batch.labels, batch.way), append_only(steps, 0)


class Crashes(ClassMeans):
    def observe(self, state: State, image: Tensor, label: Tensor) -> State:
        raise RuntimeError("only K-shot\nhere")


BROKEN: dict[type[ClassMeans | MeansOfFeatures], tuple[str, str]] = {
    KeepsStateOnTheModule: ("state is a value that goes in and out", "another episode in between"),
    WritesIntoTheState: ("state is a value that goes in and out", "writes into the state"),
    LearnsFromQueries: ("no query tells about another", "transductive is not declared"),
    MixesEpisodes: ("a batch is its episodes side by side", "side by side and alone"),
    ReadsQueryLabels: ("labels asked for are not read", "the labels of the queries"),
    ReadsTheStreamAhead: ("labels asked for are not read", "labels not shown yet"),
    StreamsDifferently: ("a stream is observed step by step", "logits differ"),
    AdaptsDifferently: ("a support set is its images observed", "logits differ"),
    PrefersTheFirstLabel: ("labels are only names", "does not permute K-shot logits"),
    GuessesLabelsFromImages: ("labels are only names", "guessed from images alone"),
    CountsItsCalls: ("evaluation changes no parameter, buffer or mode", "calls changes"),
    StaysInTrainingMode: ("evaluation changes no parameter, buffer or mode", "left in training mode"),
    LosesALabel: ("logits have the shape (batch, asked, way)", "3-way K-shot should give"),
    OnlyItsOwnWay: ("logits have the shape (batch, asked, way)", "4-way K-shot should give"),
    DividesByZero: ("logits are finite", "stream logits are infinite"),
    Guesses: ("the same question has the same answer", "asked twice"),
    ForgetsWhenSaved: ("weights can be saved and loaded", "saved and loaded"),
    TrainsHalf: ("training reaches every parameter", "no gradient to unused"),
    ExplodesInTraining: ("training reaches every parameter", "not one finite number"),
    AnswersFeaturesDifferently: ("features stand for images", "K-shot answers to images and to their"),
    WatchedDifferently: ("what is watched is what is answered", "stream answers watched and not"),
    EmbedsTogether: ("features stand for images", "each image embedded by itself"),
    Crashes: ("a support set is its images observed", "raised RuntimeError: only K-shot here"),
}


@pytest.mark.parametrize("name", sorted({*learner_names(), *SMALL}))
def test_every_registered_learner_keeps_its_promises(name: str) -> None:
    torch.manual_seed(0)
    check_learner(build_learner(name, IMAGE_SHAPE, WAY, SMALL.get(name, {})))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in sorted({*learner_names(), *SMALL})),
        ("maml", {"norms": "step"}),
        ("maml", {"norms": "running"}),
        *((name, {"batch_norm": "none"}) for name in ("key_value", "lstm", "nearest_feature")),
        *((name, {"widths": ()}) for name in ("mann", "nearest_feature")),
    ],
)
def test_the_batch_norm_that_is_declared_is_there(name: str, options: dict[str, Any]) -> None:
    learner = build_learner(name, IMAGE_SHAPE, WAY, SMALL.get(name, {}) | options)
    norms = [part for part in learner.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    follows = any(norm.track_running_stats for norm in norms)
    assert learner.batch_norm == ("frozen" if follows else "batch" if norms else "none")


@pytest.mark.parametrize("whole", [ClassMeans, MeansOfFeatures])
def test_the_learners_that_the_broken_ones_are_made_of_are_whole(whole: type[Learner]) -> None:
    check_learner(whole())  # type: ignore[call-arg]


def test_a_subclass_that_answers_images_in_its_own_way_is_not_asked_about_features() -> None:
    class Negated(MeansOfFeatures):
        def predict(self, state: State, images: Tensor) -> Tensor:
            return -super().predict(state, images)

    learner = MeansOfFeatures()
    assert learner.answers_from_features
    assert not Negated().answers_from_features
    learner.predict = lambda state, images: images  # type: ignore[method-assign]
    assert not learner.answers_from_features


def test_what_stands_at_steps_that_are_not_asked_is_nobodys_concern() -> None:
    class AnswersTheSecondOnly(ClassMeans):
        presentations: ClassVar[tuple[int, ...] | None] = (2,)

        def stream(self, batch: StreamBatch) -> Tensor:
            elsewhere = ~self.asked(batch).unsqueeze(-1)
            return super().stream(batch).masked_fill(elsewhere, torch.nan)

    check_learner(AnswersTheSecondOnly())


def test_the_loss_of_a_stream_is_that_of_the_steps_asked() -> None:
    class AnswersSome(ClassMeans):
        presentations: ClassVar[tuple[int, ...] | None] = (1, 3)

    labels = torch.tensor([[0, 0, 1, 0, 2, 2]])
    times = presentation(labels, WAY)
    batch = StreamBatch(torch.randn(1, 6, *IMAGE_SHAPE), labels, times, torch.arange(WAY)[None], WAY)
    learner = AnswersSome()
    assert learner.asked(batch).tolist() == [[True, False, True, True, True, False]]
    assert ClassMeans().asked(batch).all()
    steps = [0, 2, 3, 4]
    expected = F.cross_entropy(learner.stream(batch)[0, steps], labels[0, steps])
    torch.testing.assert_close(learner.loss(batch), expected)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_each_broken_promise_is_named(broken: type[ClassMeans | MeansOfFeatures]) -> None:
    promise, seen = BROKEN[broken]
    with pytest.raises(LearnerError) as caught:
        check_learner(broken())
    message = str(caught.value)
    assert message.startswith(f"{broken.__name__} breaks")
    assert promise in message
    assert seen in message
    assert "\n" not in message


def test_every_promise_has_somebody_who_breaks_it() -> None:
    assert {promise for promise, _ in BROKEN.values()} == set(PROMISES)


def test_a_declared_transductive_learner_may_look_at_queries() -> None:
    class Declared(LearnsFromQueries):
        transductive = True

    check_learner(Declared())


def test_the_learner_itself_is_not_touched() -> None:
    learner = CountsItsCalls().train()
    state = torch.random.get_rng_state()
    with pytest.raises(LearnerError):
        check_learner(learner)
    assert learner.calls == 0
    assert learner.training
    assert learner.scale.grad is None
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_is_no_learner_is_refused() -> None:
    for given, got in (("mann", "a str"), (nn.Linear(2, 2), "a Linear"), (Learner, "the class Learner")):
        with pytest.raises(
            FewshotError, match=f"^learner should be of the type Learner; got {got}: give an "
        ):
            check_learner(given)  # type: ignore[arg-type]
