"""The conformance check: does a learner keep the promises that comparisons rest on?

Most published mistakes are of a few kinds: state that survives an episode, batch norm that looks at other
queries, labels that give the answer away. Each is one promise here. Every registered learner is held to
them, and so can be a learner of one's own. The episodes are made up, so nothing has to be on disk; a
learner is checked as it is, trained or not. (`fewshot audit` holds stored learners to some of them on real
episodes: what asks is a `Probe`.)
"""

import copy
import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fewshot.episodes.batch import (
    EpisodeBatch,
    KShotBatch,
    StreamBatch,
    Support,
    some_episodes,
    with_images,
)
from fewshot.episodes.codes import draw_codes
from fewshot.episodes.labels import label_units
from fewshot.episodes.source import presentation
from fewshot.errors import LearnerError
from fewshot.learners.base import Learner, State, check_is_learner, observe_in_turn
from fewshot.learners.embedding import EmbeddingLearner
from fewshot.learners.naming import named_labels

BATCH, SHOT, QUERY = 3, 2, 2
PERMUTED_EPISODES = 32
STANDARD_ERRORS = 4.0


class BrokenPromiseError(Exception):
    """Raised by one check; its text says what was seen."""


def check_learner(learner: Learner, *, tolerance: float = 1e-5, seed: int = 0) -> None:
    """Return if the learner keeps its promises; otherwise raise LearnerError, which names all broken ones.

    A learner of strings is asked in streams alone, and what is promised of K-shot episodes is not checked.
    The learner itself is not touched: each promise is checked on a copy, in the learner's floating-point type
    and on its device. tolerance: how far answers may lie apart that should be the same, as a fraction of the
    largest logit (at least of 1). seed: of the made-up episodes.
    """
    check_is_learner(learner)
    found = {
        promise: broken_promise(learner, promise, lambda subject: _MadeUp(subject, tolerance, seed), seed)
        for promise in PROMISES
    }
    broken = [f"{promise} ({seen})" for promise, seen in found.items() if seen]
    if broken:
        listed = "; ".join(broken)
        raise LearnerError(f"{type(learner).__name__} breaks {len(broken)} of its promises: {listed}")


def broken_promise(
    learner: Learner, promise: str, probe: Callable[[Learner], "Probe"], seed: int = 0
) -> str | None:
    """What was seen where the learner breaks one of the PROMISES, None where it keeps it.

    It is asked as a copy in evaluation mode. probe: makes what asks that copy; seed: of torch's random state.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            subject = copy.deepcopy(learner).eval()
            PROMISES[promise](subject, probe(subject))
        except BrokenPromiseError as seen:
            return str(seen)
        except Exception as error:  # whatever a stranger's code raises is a finding, not a crash
            return f"raised {type(error).__name__}: {' '.join(str(error).split())}"
    return None


class Probe(ABC):
    """Episodes to ask a learner, each call others, and comparison of its answers.

    batch: how many episodes at a time, unless more are wanted.
    """

    def __init__(self, learner: Learner, batch: int = BATCH) -> None:
        self._batch = batch
        self._way = learner.way
        self._labels = learner.labels

    @abstractmethod
    def kshot(self, batch: int | None = None, way: int | None = None) -> KShotBatch:
        """K-shot episodes, of the learner's way by default."""

    @abstractmethod
    def stream(self, batch: int | None = None, way: int | None = None) -> StreamBatch:
        """Streams, of the learner's way by default."""

    @abstractmethod
    def same(self, answers: Tensor, others: Tensor, complaint: str) -> None:
        """Raise the complaint, with the difference, unless the answers (..., unit) agree."""

    def episodes(self, batch: int | None = None, way: int | None = None) -> dict[str, EpisodeBatch]:
        """Of each protocol under which the learner can be asked, by its name."""
        stream = self.stream(batch, way)
        return (
            {"stream": stream}
            if self._labels == "string"
            else {"K-shot": self.kshot(batch, way), "stream": stream}
        )


class _MadeUp(Probe):
    """Made-up episodes, and answers that are the same to a tolerance.

    Classes differ by a pattern, and their brightness rises with the label: a learner that guesses labels from
    images alone does well until the labels are permuted.
    """

    def __init__(self, learner: Learner, tolerance: float, seed: int) -> None:
        super().__init__(learner)
        tensors = [*learner.parameters(), *learner.buffers()]
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
        self._device, self._dtype = like.device, like.dtype
        self._image_shape = learner.image_shape
        self._tolerance = tolerance
        self._generator = torch.Generator().manual_seed(seed)

    def kshot(self, batch: int | None = None, way: int | None = None) -> KShotBatch:
        batch, way = batch or self._batch, way or self._way
        patterns = self._patterns(batch, way)
        support, query = (self._shuffled(batch, way, each) for each in (SHOT, QUERY))
        class_ids = torch.arange(way, device=self._device).expand(batch, -1)
        shown = Support(self._images(patterns, support), support, way)
        return KShotBatch(shown, self._images(patterns, query), query, class_ids)

    def stream(self, batch: int | None = None, way: int | None = None) -> StreamBatch:
        batch, way = batch or self._batch, way or self._way
        labels = self._shuffled(batch, way, SHOT + 1)
        images = self._images(self._patterns(batch, way), labels)
        class_ids = torch.arange(way, device=self._device).expand(batch, -1)
        codes = None
        if self._labels == "string":
            keys = torch.randint(2**62, (batch, 1), generator=self._generator)
            codes = draw_codes(keys, way).to(self._device)
        return StreamBatch(images, labels, presentation(labels, way), class_ids, way, codes)

    def same(self, answers: Tensor, others: Tensor, complaint: str) -> None:
        if answers.shape != others.shape:
            raise BrokenPromiseError(f"{complaint}: shapes {list(answers.shape)} and {list(others.shape)}")
        if not answers.numel():
            return
        difference = float((answers - others).abs().max())
        if not difference <= self._tolerance * max(1.0, float(answers.abs().max())):
            raise BrokenPromiseError(f"{complaint}: logits differ by up to {difference:.2g}")

    def _patterns(self, batch: int, way: int) -> Tensor:
        patterns = torch.randn(batch, way, *self._image_shape, generator=self._generator)
        return patterns + torch.arange(way).view(-1, 1, 1, 1) / way

    def _shuffled(self, batch: int, way: int, each: int) -> Tensor:
        """(batch, way * each) labels."""
        order = torch.rand(batch, way * each, generator=self._generator).argsort(dim=1)
        return (order % way).to(self._device)

    def _images(self, patterns: Tensor, labels: Tensor) -> Tensor:
        chosen = patterns[torch.arange(len(patterns)).unsqueeze(1), labels.cpu()]
        noise = torch.randn(chosen.shape, generator=self._generator)
        return (chosen + 0.3 * noise).to(self._device, self._dtype)


@torch.no_grad()
def _shapes(learner: Learner, probe: Probe) -> None:
    ways = [learner.way] if learner.fixed_way else [learner.way, learner.way + 1]
    for way in ways:
        for name, batch in probe.episodes(way=way).items():
            answers = learner.answer(batch)
            expected = [*_labels_asked_for(batch).shape, label_units(learner.labels, way)]
            if list(answers.shape) != expected:
                raise BrokenPromiseError(
                    f"{way}-way {name} should give {expected}; got {list(answers.shape)}"
                )


def _finite(learner: Learner, probe: Probe) -> None:
    for name, batch in probe.episodes().items():
        if not _answer(learner, batch).isfinite().all():
            raise BrokenPromiseError(f"some {name} logits are infinite or not a number")


@torch.no_grad()
def _state_is_a_value(learner: Learner, probe: Probe) -> None:
    (state, images, _), (other, other_images, labels) = (_taught(learner, probe) for _ in range(2))
    before = [tensor.clone() for tensor in _tensors(state)]
    first = learner.predict(state, images)
    learner.predict(other, other_images)
    learner.observe(state, other_images[:, 0], labels[:, 0])
    if not _identical(before, _tensors(state)):
        raise BrokenPromiseError("observe or predict writes into the state passed in")
    probe.same(first, learner.predict(state, images), "another episode in between changes an answer")


def _evaluation_changes_nothing(learner: Learner, probe: Probe) -> None:
    kept = [*learner.parameters(), *learner.buffers()]
    before = [tensor.clone() for tensor in kept]
    for batch in probe.episodes().values():
        _answer(learner, batch)
    names = [name for name, _ in (*learner.named_parameters(), *learner.named_buffers())]
    after = [*learner.parameters(), *learner.buffers()]
    if len(after) != len(before):
        raise BrokenPromiseError("parameters or buffers appeared")
    for name, old, new in zip(names, before, after, strict=True):
        if not _identical([old], [new]):
            raise BrokenPromiseError(f"{name} changes")
    if any(module.training for module in learner.modules()):
        raise BrokenPromiseError("a module is left in training mode")


def _batch_is_episodes(learner: Learner, probe: Probe) -> None:
    for name, batch in probe.episodes().items():
        parts = [some_episodes(batch, slice(i, i + 1)) for i in range(len(batch.class_ids))]
        alone = torch.cat([_answer(learner, part) for part in parts])
        probe.same(_answer(learner, batch), alone, f"{name} episodes side by side and alone")


def _queries_are_apart(learner: Learner, probe: Probe) -> None:
    if learner.transductive or learner.labels == "string":
        return
    batch, other = probe.kshot(), probe.kshot()
    changed = torch.cat([batch.query_images[:, :1], other.query_images[:, 1:]], dim=1)
    answer = _answer(learner, batch)[:, :1]
    complaint = "transductive is not declared, but an answer changes"
    probe.same(
        answer,
        _answer(learner, batch._replace(query_images=changed))[:, :1],
        f"{complaint} when other queries do",
    )
    single = batch._replace(query_images=changed[:, :1], query_labels=batch.query_labels[:, :1])
    probe.same(answer, _answer(learner, single), f"{complaint} when other queries go")


def _labels_are_names(learner: Learner, probe: Probe) -> None:
    if learner.label_equivariant:
        for name, batch in probe.episodes().items():
            permutation = torch.randperm(batch.way, device=batch.class_ids.device)
            permuted = _answer(learner, _relabelled(batch, permutation))[..., permutation]
            probe.same(_answer(learner, batch), permuted, f"permuting labels does not permute {name} logits")
        return
    asked = probe.stream if learner.labels == "string" else probe.kshot
    batch = asked(PERMUTED_EPISODES)
    shift = torch.arange(batch.way, device=batch.class_ids.device).roll(1)
    permuted = _relabelled(batch, shift)
    gain = _accuracy(learner, batch) - _accuracy(learner, permuted)
    error = float(gain.std()) / len(gain) ** 0.5
    if abs(float(gain.mean())) > STANDARD_ERRORS * error:
        raise BrokenPromiseError(
            f"accuracy changes by {100 * float(gain.mean()):.0f} points when labels are permuted: labels are "
            "guessed from images alone"
        )


def _labels_asked_for_are_hidden(learner: Learner, probe: Probe) -> None:
    if learner.labels == "one_hot":
        kshot = probe.kshot()
        others = (kshot.query_labels + 1) % kshot.way
        probe.same(
            _answer(learner, kshot),
            _answer(learner, kshot._replace(query_labels=others)),
            "an answer changes with the labels of the queries",
        )
    stream = probe.stream()
    middle = stream.labels.shape[1] // 2
    labels = stream.labels.clone()
    labels[:, middle:] = (labels[:, middle:] + 1) % stream.way
    later = stream._replace(labels=labels)  # presentations as before: which steps are asked stays the same
    probe.same(
        _answer(learner, stream)[:, : middle + 1],
        _answer(learner, later)[:, : middle + 1],
        "an answer changes with labels not shown yet",
    )


@torch.no_grad()
def _stream_is_observe_and_predict(learner: Learner, probe: Probe) -> None:
    batch = probe.stream()
    asked = learner.asked(batch)
    probe.same(
        learner.stream(batch)[asked],
        Learner.stream(learner, batch)[asked],
        "stream() and observe()/predict() step by step",
    )


@torch.no_grad()
def _adapt_is_observe(learner: Learner, probe: Probe) -> None:
    if learner.labels == "string":
        return
    batch = probe.kshot()
    at_once, in_turn = learner.adapt(batch.support), Learner.adapt(learner, batch.support)
    probe.same(
        learner.predict(at_once, batch.query_images),
        learner.predict(in_turn, batch.query_images),
        "adapt() and observe() image by image",
    )


@torch.no_grad()
def _features_stand_for_images(learner: Learner, probe: Probe) -> None:
    if not (isinstance(learner, EmbeddingLearner) and learner.answers_from_features):
        return

    def embedded(images: Tensor) -> Tensor:
        """Each by itself: features that depend on an image's neighbours come out otherwise."""
        alone = [learner.embed(image.unsqueeze(0)) for image in images.flatten(0, 1)]
        return torch.cat(alone).view(*images.shape[:2], -1)

    complaint = "answers to images and to their features, each image embedded by itself"
    for name, batch in probe.episodes().items():
        features = with_images(batch, embedded)
        answers = _where_asked(learner, batch, learner.answer_features(features))
        probe.same(_answer(learner, batch), answers, f"{name} {complaint}")


@torch.no_grad()
def _watched_is_answered(learner: Learner, probe: Probe) -> None:
    if not (isinstance(learner, EmbeddingLearner) and learner.has_memory):
        return
    batch = probe.stream()
    features = batch._replace(images=learner.embed(batch.images))
    answers, _ = learner.watch_features(features)
    probe.same(learner.stream_features(features), answers, "stream answers watched and not")


def _deterministic(learner: Learner, probe: Probe) -> None:
    for name, batch in probe.episodes().items():
        probe.same(_answer(learner, batch), _answer(learner, batch), f"asked twice, {name} answers")


def _saved_and_loaded(learner: Learner, probe: Probe) -> None:
    loaded = copy.deepcopy(learner)
    for tensor in loaded.state_dict().values():
        tensor.zero_()
    learner.calibrate(probe.stream())
    batches = probe.episodes().values()
    expected = [_answer(learner, batch) for batch in batches]
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file))
    for batch, answers in zip(batches, expected, strict=True):
        probe.same(answers, _answer(loaded, batch), "calibrated, saved and loaded, it answers differently")


def _trains(learner: Learner, probe: Probe) -> None:
    if not learner.trainable:
        return
    learner.train()
    for name, batch in probe.episodes().items():
        loss = learner.loss(batch)
        if loss.ndim or not loss.isfinite():
            raise BrokenPromiseError(f"the {name} loss is not one finite number: {loss}")
        loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            raise BrokenPromiseError(f"the loss gives no gradient to {name}")
        if not parameter.grad.isfinite().all():
            raise BrokenPromiseError(f"the gradient of {name} is infinite or not a number")


PROMISES: Mapping[str, Callable[[Learner, Probe], None]] = {
    "logits have the shape (batch, asked, way)": _shapes,
    "logits are finite": _finite,
    "state is a value that goes in and out": _state_is_a_value,
    "evaluation changes no parameter, buffer or mode": _evaluation_changes_nothing,
    "a batch is its episodes side by side": _batch_is_episodes,
    "no query tells about another": _queries_are_apart,
    "labels are only names": _labels_are_names,
    "labels asked for are not read": _labels_asked_for_are_hidden,
    "a stream is observed step by step": _stream_is_observe_and_predict,
    "a support set is its images observed": _adapt_is_observe,
    "features stand for images": _features_stand_for_images,
    "what is watched is what is answered": _watched_is_answered,
    "the same question has the same answer": _deterministic,
    "weights can be saved and loaded": _saved_and_loaded,
    "training reaches every parameter": _trains,
}
"""What is promised, and how it is checked."""


@torch.no_grad()
def _answer(learner: Learner, batch: EpisodeBatch) -> Tensor:
    return _where_asked(learner, batch, learner.answer(batch))


def _where_asked(learner: Learner, batch: EpisodeBatch, answers: Tensor) -> Tensor:
    """The answers, with zeros where a stream asks nothing: what stands there is nobody's promise."""
    if isinstance(batch, KShotBatch):
        return answers
    return answers.masked_fill(~learner.asked(batch).unsqueeze(-1), 0)


def _taught(learner: Learner, probe: Probe) -> tuple[State, Tensor, Tensor]:
    """What is known after some labelled images; other images, and their labels as `observe` takes them."""
    if learner.labels == "one_hot":
        kshot = probe.kshot()
        return learner.adapt(kshot.support), kshot.query_images, kshot.query_labels
    stream = probe.stream()
    images, labels, half = stream.images, learner.shown(stream), stream.labels.shape[1] // 2
    state = learner.start(len(images), stream.way)
    state = observe_in_turn(learner.observe, state, images[:, :half], labels[:, :half])
    return state, images[:, half:], labels[:, half:]


def _labels_asked_for(batch: EpisodeBatch) -> Tensor:
    return batch.query_labels if isinstance(batch, KShotBatch) else batch.labels


def _accuracy(learner: Learner, batch: EpisodeBatch) -> Tensor:
    """(batch,)."""
    right = named_labels(learner, batch, _answer(learner, batch)) == _labels_asked_for(batch)
    return right.double().mean(1)


def _relabelled(batch: EpisodeBatch, permutation: Tensor) -> Any:
    """Label c becomes permutation[c], and where labels are strings, the class behind it takes that string."""
    if isinstance(batch, KShotBatch):
        support = batch.support._replace(labels=permutation[batch.support.labels])
        return batch._replace(support=support, query_labels=permutation[batch.query_labels])
    return batch._replace(labels=permutation[batch.labels])


def _identical(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def _tensors(state: Any) -> list[Tensor]:
    return list(_walk(state))


def _walk(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        yield from _walk(list(state.values()))
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from _walk(part)
    elif dataclasses.is_dataclass(state):
        yield from _walk([getattr(state, field.name) for field in dataclasses.fields(state)])
