"""The microscope: watch a memory answer streams, step by step (the opacity of such networks is known).

A step begins when the label of the image before is shown, so image t - 1 is what is stored at step t; what is
written at the first step belongs to no image. What is read at step t is shared out among the images stored by
then (`fewshot.memory.attribution`). Any learner that `has_memory` can be watched, see
`fewshot.learners.embedding`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import StreamBatch
from fewshot.episodes.source import EpisodeSource
from fewshot.errors import LearnerError, unknown
from fewshot.harness.checkpoint import load_learner
from fewshot.harness.evaluate import evaluating
from fewshot.harness.record import read_records
from fewshot.harness.watched import Attribution, WatchedEpisode, attribution
from fewshot.learners.base import Learner
from fewshot.learners.embedding import EmbeddingLearner, embed_in_parts
from fewshot.learners.naming import named_labels
from fewshot.memory.attribution import Visit, Watch, amounts, read_amounts

EPISODES_AT_ONCE = 10
"""Each step's memory is kept until the stream is over."""


def find_learner_with_memory(
    run: Path, learner: str | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Path, EmbeddingLearner]:
    """The checkpoint `run`, or the first of the results folder `run` that is of a learner with a memory.

    learner: the id that it must have; options: in place of those it was trained with, as for `load_learner`.
    Raises LearnerError where there is no such learner.
    """
    others = []
    for path in _checkpoints(run, learner) if run.is_dir() else [run]:
        loaded = load_learner(path, learner)
        if _has_memory(loaded):
            asked = load_learner(path, learner, options)
            assert _has_memory(asked), "no option takes a memory away"
            return path, asked
        others.append(type(loaded).__name__)
    named = f" under the name {learner}" if learner and run.is_dir() else ""
    raise LearnerError(
        f"{run} has no learner with a memory to look into{named}, only {', '.join(others) or 'records'}: "
        "choose one that has, mann for one"
    )


def watch_episode(learner: EmbeddingLearner, source: EpisodeSource, number: int) -> WatchedEpisode:
    """One episode of a stream, with all that the memory did."""
    batch, answers, (slots, num_slots, steps) = _watch(learner, source, number, 1)
    classes = F.one_hot(batch.labels[0], batch.way).to(steps[0].read.dtype)
    held = [lying[0, :, 1:] @ classes[:-1] for lying in amounts(steps)]
    usage = [step.usage[0] for step in steps if step.usage is not None]
    return WatchedEpisode(
        images=source.drawings(number).numpy(),
        labels=batch.labels[0].numpy(),
        answers=answers[0].numpy(),
        presentation=batch.presentation[0].numpy(),
        class_names=source.class_names(number),
        slots=slots.numpy(),
        num_slots=num_slots,
        read_weights=torch.stack([step.read[0] for step in steps]).numpy(),
        write_weights=torch.stack([step.written[0] for step in steps]).numpy(),
        usage=torch.stack(usage).numpy() if usage else None,
        held=torch.stack(held).numpy(),
        shares=item_shares(steps)[0].numpy(),
    )


def measure_attribution(
    learner: EmbeddingLearner,
    source: EpisodeSource,
    episodes: int,
    *,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Attribution:
    """The score over episodes 0 to episodes - 1; on_progress is called with how many more are done."""
    parts = []
    for start, count in source.spans(0, episodes, EPISODES_AT_ONCE):
        batch, answers, watch = _watch(learner, source, start, count)
        shares = item_shares(watch.visits)
        parts.append([part.numpy() for part in (shares, batch.labels, batch.presentation, answers)])
        on_progress(count)
    return attribution(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def item_shares(steps: Sequence[Visit]) -> Tensor:
    """(batch, step, item): which part of what is read came from each image, of all that came from images."""
    stored = F.pad(read_amounts(steps)[..., 1:], (0, 1))  # what step j + 1 wrote is image j
    return stored / stored.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(stored.dtype).tiny)


def _has_memory(learner: Learner) -> TypeGuard[EmbeddingLearner]:
    return isinstance(learner, EmbeddingLearner) and learner.has_memory


def _checkpoints(folder: Path, learner: str | None) -> list[Path]:
    """Those of a results folder, or of one learner there, in the order of the records."""
    found = {record.checkpoint: record.learner for record in read_records(folder) if record.checkpoint}
    if learner is not None and learner not in found.values():
        raise LearnerError(unknown(f"learner of {folder}", learner, set(found.values())))
    return [folder / checkpoint for checkpoint, name in found.items() if learner in (None, name)]


def _watch(
    learner: EmbeddingLearner, source: EpisodeSource, start: int, count: int
) -> tuple[StreamBatch, Tensor, Watch]:
    """Episodes of streams, the answers (batch, step), and what the memory did at each step."""
    batch = source.batch(start, count)
    assert isinstance(batch, StreamBatch), "a memory is watched in a stream"
    with evaluating(learner):
        features = embed_in_parts(learner, batch.images)
        logits, watch = learner.watch_features(batch._replace(images=features))
    return batch, named_labels(learner, batch, logits), watch
