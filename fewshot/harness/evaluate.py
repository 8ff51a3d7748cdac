"""Measure a learner on a fixed set of episodes, without changing it.

A learner that sees of each image only its features (`EmbeddingLearner`) has each image of the episodes
embedded once, and answers from the features; any other is shown the images of a batch of episodes at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral
from operator import methodcaller
from typing import Protocol as Interface
from typing import runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, with_each
from fewshot.episodes.image_lists import ImageListSource
from fewshot.episodes.labels import label_units
from fewshot.episodes.protocol import KShot, Protocol, bounds
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.source import EpisodeSource
from fewshot.errors import EpisodeError, LearnerError, check_kind
from fewshot.harness.features import embed_drawings, with_features
from fewshot.harness.record import ANSWERS_SCHEMA, accuracy_by_link, answer_columns
from fewshot.harness.statistics import Accuracies, summarise, told_by_instance
from fewshot.learners.base import Learner, check_is_learner
from fewshot.learners.embedding import EmbeddingLearner
from fewshot.learners.naming import named_labels

DEFAULT_EPISODES = 1000
PIXELS_AT_ONCE, GPU_PIXELS_AT_ONCE = 2**18, 2**21
"""Pixels (height x width) per batch: a first layer of 64 float32 channels then takes 64 megabytes. On a CPU
core MAML was not faster with 2 to 8 times as many; a GPU has to be kept busy."""
IMAGES_AT_ONCE = 2**12
"""Images per batch where their features are known. (A query may cost a copy of a memory of 20 kilobytes.)"""


class Classes(Interface):
    """What `evaluate` needs of a class pool: (class,) int64, equal for a class and its turned copies."""

    @property
    def class_index(self) -> Tensor: ...


@runtime_checkable
class NumberedEpisodes(Interface):
    """What `evaluate` needs of a sampler: episodes that are a function of their number."""

    @property
    def pool(self) -> Classes: ...

    @property
    def protocol(self) -> Protocol: ...

    def batches(self, start: int, count: int, batch_size: int) -> Iterator[EpisodeBatch]: ...

    def digest(self, count: int) -> str: ...


@dataclass(frozen=True)
class Evaluation(Accuracies):
    """A learner's accuracies on a fixed set of episodes; `print` gives the line that people quote.

    accuracy_by_link: of chains, see `fewshot.harness.record.accuracy_by_link`.
    answers: one row per (episode, class, presentation or query group), with the columns of
        `fewshot.harness.record.ANSWERS_SCHEMA`; presentations that were not asked have no row.
    """

    accuracy_by_link: dict[int, float]
    protocol: Protocol
    episodes: int
    episodes_digest: str
    answers: pa.Table = field(repr=False)

    def __str__(self) -> str:
        interval = "" if self.ci95 is None else f" ± {100 * self.ci95:.1f}"
        return (
            f"{describe(self.protocol)}  {100 * self.accuracy:.1f}{interval} % "
            f"(95 % CI over {self.episodes} episodes{told_by_instance(self.accuracy_by_instance)})"
        )


def evaluate(
    learner: Learner,
    source: NumberedEpisodes,
    episodes: int = DEFAULT_EPISODES,
    *,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Answer episodes 0 to episodes - 1 of a source and say how accurately.

    The answer is the label of the largest logit, the lowest of equals (`fewshot.learners.naming` says what it
    is where labels are strings). The learner is in evaluation mode and builds no graph (one that adapts by
    gradients enables them inside); afterwards every module's mode is what it was. Episodes are answered on
    the learner's device.

    batch_size: episodes side by side; the answers do not depend on it. By default as many as hold
        PIXELS_AT_ONCE pixels, or IMAGES_AT_ONCE images whose features are known.
    on_progress: called with (episodes done, episodes in all) after each batch.

    Raises LearnerError where the learner cannot be asked under the protocol or reads other images, and where
    the logits have the wrong shape or are not numbers; FewshotError for what is no learner or no source.
    """
    check_is_learner(learner)
    check_kind("source", source, NumberedEpisodes, "give a fewshot.EpisodeSampler")
    check_kind("episodes", episodes, Integral, "give how many, from the first on")
    if episodes < 1:
        raise EpisodeError(f"an evaluation needs at least 1 episode; got {episodes}")
    if reason := learner.refusal(source.protocol):
        raise LearnerError(reason)
    if isinstance(source, EpisodeSource):
        learner.check_images(source.pool.image_set.image_shape)
    batch_size = batch_size or episodes_at_once(learner, source)
    columns: list[dict[str, NDArray[np.int64]]] = []
    done = 0
    with evaluating(learner):
        for batch, logits in _answered(learner, source, episodes, batch_size):
            columns.append(_rows(learner, batch, logits, first_episode=done))
            done += len(batch.class_ids)
            if on_progress:
                on_progress(done, episodes)
    answers = _group({name: np.concatenate([part[name] for part in columns]) for name in columns[0]})
    return Evaluation(
        **vars(summarise(**answer_columns(answers, source.pool.class_index.numpy()))),
        accuracy_by_link=accuracy_by_link(answers, bounds(source.protocol.way)[1]),
        protocol=source.protocol,
        episodes=episodes,
        episodes_digest=source.digest(episodes),
        answers=answers,
    )


def embeds(learner: Learner, source: NumberedEpisodes) -> bool:
    """Whether each image of these episodes is embedded once, and answers are those to the features."""
    return isinstance(learner, EmbeddingLearner) and learner.answers_from_features and _as_stored(source)


def episodes_at_once(learner: Learner, source: NumberedEpisodes) -> int:
    """How many episodes are answered side by side unless the caller says so, at least one."""
    images = IMAGES_AT_ONCE
    if not embeds(learner, source):
        _, height, width = learner.image_shape
        on_gpu = any(weight.is_cuda for weight in learner.parameters())
        images = (GPU_PIXELS_AT_ONCE if on_gpu else PIXELS_AT_ONCE) // (height * width)
    return max(1, images // images_of(source.protocol))


def images_of(protocol: Protocol) -> int:
    """How many images an episode shows, the largest where it varies."""
    if isinstance(protocol, KShot):
        return bounds(protocol.way)[1] * (bounds(protocol.shot)[1] + protocol.query)
    return protocol.images


def _answered(
    learner: Learner, source: NumberedEpisodes, episodes: int, batch_size: int
) -> Iterator[tuple[EpisodeBatch, Tensor]]:
    """The episodes in batches, with the logits; with features for images where the learner takes them."""
    if embeds(learner, source):
        assert isinstance(learner, EmbeddingLearner)
        assert isinstance(source, EpisodeSource)
        drawn = [source.indices(*span) for span in source.spans(0, episodes, batch_size)]
        features = embed_drawings(learner, source, drawn, _device(learner, source.device))
        if features is not None:
            for indices in drawn:
                batch = with_features(indices, features)
                yield batch, learner.answer_features(batch)
            return
    for batch in source.batches(0, episodes, batch_size):
        device = _device(learner, batch.class_ids.device)
        batch = with_each(batch, methodcaller("to", device))
        yield batch, learner.answer(batch)


def _as_stored(source: NumberedEpisodes) -> bool:
    """Whether batches are indices rendered, each drawing the same image wherever it is shown.

    It is not where images are distorted, or where somebody's own source makes its batches in another way.
    """
    if not isinstance(source, EpisodeSource) or getattr(source, "augment", None) is not None:
        return False
    batch, batches = (getattr(made, "__func__", None) for made in (source.batch, source.batches))
    return batch in (EpisodeSampler.batch, ImageListSource.batch) and batches is EpisodeSource.batches


def _rows(
    learner: Learner, batch: EpisodeBatch, logits: Tensor, first_episode: int
) -> dict[str, NDArray[np.int64]]:
    """Columns with one row per answer: episode, class_id, label, presentation, answer."""
    if isinstance(batch, KShotBatch):
        labels, presentation = batch.query_labels, torch.zeros_like(batch.query_labels)
        first = torch.zeros_like(labels)
    else:
        labels, presentation = batch.places, batch.presentation
        first = labels - batch.labels  # what the first label of the link counts as in the whole chain
    expected = (*labels.shape, label_units(learner.labels, batch.way))
    if logits.shape != expected:
        raise LearnerError(
            f"{type(learner).__name__} answered with logits of shape {tuple(logits.shape)}; "
            f"{expected} (episode, answer, unit) were asked: see fewshot.check_learner"
        )
    asked = torch.ones_like(labels, dtype=torch.bool)
    if isinstance(batch, StreamBatch):
        asked = learner.asked(batch)
    if bool(logits[asked].isnan().any()):
        raise LearnerError(
            f"{type(learner).__name__} answered with NaN for logits in episodes {first_episode} to "
            f"{first_episode + len(labels) - 1}: its training diverged, or its weights are damaged"
        )
    named = named_labels(learner, batch, logits)
    episode = torch.arange(first_episode, first_episode + len(labels), device=labels.device)
    rows = {
        "episode": episode.unsqueeze(1).expand_as(labels),
        "class_id": batch.class_ids.gather(1, labels),
        "label": labels,
        "presentation": presentation,
        "answer": torch.where(named < 0, named, first + named),
    }
    return {name: values[asked].cpu().numpy() for name, values in rows.items()}


def _group(rows: dict[str, NDArray[np.int64]]) -> pa.Table:
    """From one row per answer to one per (episode, class, presentation), with ANSWERS_SCHEMA."""
    # A stable sort: the answers of a group stay in episode order.
    order = np.lexsort((rows["presentation"], rows["label"], rows["episode"]))
    rows = {name: values[order] for name, values in rows.items()}
    keys = np.stack([rows["episode"], rows["label"], rows["presentation"]])
    first = np.flatnonzero(np.r_[True, (keys[:, 1:] != keys[:, :-1]).any(axis=0)])
    offsets = np.append(first, len(order))
    columns = {name: rows[name][first] for name in ("episode", "class_id", "label", "presentation")}
    columns["correct"] = np.add.reduceat(rows["answer"] == rows["label"], first, dtype=np.int64)
    columns["count"] = np.diff(offsets)
    answers = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()),
        pa.array(rows["answer"], pa.int16()),
        type=ANSWERS_SCHEMA.field("answers").type,
    )
    arrays = [pa.array(columns[f.name], f.type) for f in ANSWERS_SCHEMA if f.name != "answers"]
    return pa.Table.from_arrays([*arrays, answers], schema=ANSWERS_SCHEMA)


@contextmanager
def evaluating(learner: Learner) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is back in the mode it was in."""
    modes = [(module, module.training) for module in learner.modules()]
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _device(learner: Learner, otherwise: torch.device) -> torch.device:
    """Where the learner is; one without parameters and buffers is wherever the episodes are."""
    tensor = next(chain(learner.parameters(), learner.buffers()), None)
    return otherwise if tensor is None else tensor.device


def describe(protocol: Protocol) -> str:
    """ "5-way 1-shot" or "5-way stream of 50, exact counts"."""
    if isinstance(protocol, KShot):
        way, shot = (
            "-".join(str(end) for end in sorted(set(bounds(v)))) for v in (protocol.way, protocol.shot)
        )
        return f"{way}-way {shot}-shot"
    return f"{protocol.way}-way stream of {protocol.length}, {protocol.manner}"
