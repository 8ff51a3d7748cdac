"""Guards on a stored learner, which is asked real episodes of the classes that it was measured on.

Its answers may depend on the support set and the query, or on the stream so far, and on nothing else. The
conformance check (`fewshot.check_learner`) asks the same of made-up episodes when a learner is written; here
it is the weights behind a figure that are asked.
"""

from itertools import count

import torch
from torch import Tensor

from fewshot.data.split import ClassPool
from fewshot.episodes.batch import KShotBatch, StreamBatch
from fewshot.episodes.protocol import KShot, Protocol, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.harness.audit.chance import FALSE_ALARM_RATE, chance_of_mean
from fewshot.harness.audit.finding import Finding
from fewshot.harness.evaluate import evaluating
from fewshot.learners.base import Learner
from fewshot.learners.check import BrokenPromiseError, Probe, broken_promise

NOTHING_CHANGES = "evaluation changes no parameter, buffer or mode"
PROMISES = (
    "no query tells about another",
    "labels asked for are not read",
    "a batch is its episodes side by side",
    "state is a value that goes in and out",
    NOTHING_CHANGES,
    "features stand for images",
    "the same question has the same answer",
)
"""Those of the conformance check through which an episode, or another one, could tell its answers."""

PROBED_EPISODES = 8
PERMUTED_EPISODES = 256
_AT_ONCE = 16
SHOWN, ASKED = 3, 3
"""Images of each class in a stream, and queries of each in a K-shot episode."""
EPISODE_SEED = 1_000_099
"""Of no episode that anything was measured on."""

TOLERANCE = 1e-3
"""How far an answer may move by rounding, as a fraction of the largest logit (at least of 1)."""
LEAST_STILL = 0.95
"""Part of the answers that must not move further: rounding may tip a network's own sharp decision, which of
two slots is used least, say, and then the answer is another."""
_TOLD = f"{100 * LEAST_STILL:g} % of the answers within {TOLERANCE:g} of the largest logit"


def audit_learner(subject: str, learner: Learner, pool: ClassPool, way: int) -> list[Finding]:
    """The guards on a learner, in episodes of so many classes of the pool."""
    findings = [_promise_is_kept(subject, learner, promise, pool, way) for promise in PROMISES]
    if learner.labels == "one_hot":
        sampler = EpisodeSampler(pool, _kshot(pool, way), EPISODE_SEED)
        findings.append(permuted_labels_give_chance(subject, learner, sampler))
    return findings


def permuted_labels_give_chance(
    subject: str, learner: Learner, source: EpisodeSampler, episodes: int = PERMUTED_EPISODES
) -> Finding:
    """A learner that is told the labels of a support set wrongly answers its queries by chance.

    Each episode's labels are permuted among its classes in the support set, not in the queries. What the
    support set tells about the queries is then worth nothing, and an answer is right once in `way` times,
    whatever the learner: unless it knows the labels from elsewhere.
    """
    generator = torch.Generator().manual_seed(EPISODE_SEED)
    right = []
    with evaluating(learner):
        for batch in source.batches(0, episodes, _AT_ONCE):
            assert isinstance(batch, KShotBatch)
            support = batch.support
            keys = torch.rand(len(support.labels), batch.way, generator=generator)
            permuted = keys.argsort(dim=1).gather(1, support.labels)
            logits = learner.answer(batch._replace(support=support._replace(labels=permuted)))
            right.append((logits.argmax(-1) == batch.query_labels).double().mean(1))
    accuracy, expected = float(torch.cat(right).mean()), 1 / batch.way
    chance = chance_of_mean(accuracy, expected, episodes)
    return Finding(
        "permuted support labels give chance",
        subject,
        chance >= FALSE_ALARM_RATE,
        f"{100 * accuracy:.1f} % right in {episodes} episodes (chance {100 * expected:.1f} %)",
        "find where the labels of the queries come from: nothing but the support set may tell them",
        chance,
    )


def _promise_is_kept(subject: str, learner: Learner, promise: str, pool: ClassPool, way: int) -> Finding:
    broken = broken_promise(learner, promise, lambda asked: _Drawn(asked, pool, way))
    kept = f"so in {PROBED_EPISODES} episodes"
    if promise != NOTHING_CHANGES:  # what all others compare is answers
        kept += f", {_TOLD}"
    if promise == PROMISES[0] and learner.transductive:
        kept = "not promised: it is declared transductive"
    return Finding(
        promise,
        subject,
        broken is None,
        broken or kept,
        "declare it where it is meant (`transductive`), or take it out: see fewshot.check_learner",
    )


class _Drawn(Probe):
    """Episodes drawn from a pool, and answers of which most do not move."""

    def __init__(self, learner: Learner, pool: ClassPool, way: int) -> None:
        super().__init__(learner, PROBED_EPISODES)
        self._way = way
        self._pool = pool
        self._seeds = count(EPISODE_SEED)

    def kshot(self, batch: int | None = None, way: int | None = None) -> KShotBatch:
        drawn = self._draw(_kshot(self._pool, way or self._way), batch)
        assert isinstance(drawn, KShotBatch)
        return drawn

    def stream(self, batch: int | None = None, way: int | None = None) -> StreamBatch:
        way = way or self._way
        shown = min(SHOWN, int(self._pool.images_per_class.min()))
        drawn = self._draw(Stream(way, shown * way, labels=self._labels), batch)
        assert isinstance(drawn, StreamBatch)
        return drawn

    def same(self, answers: Tensor, others: Tensor, complaint: str) -> None:
        if answers.shape != others.shape:
            raise BrokenPromiseError(f"{complaint}: shapes {list(answers.shape)} and {list(others.shape)}")
        if not answers.numel():
            return
        limit = TOLERANCE * max(1.0, float(answers.abs().max()))
        moved = (answers - others).abs().amax(-1) > limit
        if float(moved.double().mean()) > 1 - LEAST_STILL:
            raise BrokenPromiseError(
                f"{complaint}: {int(moved.sum())} of {moved.numel()} answers, by more than {TOLERANCE:g} "
                "of the largest logit"
            )

    def _draw(self, protocol: Protocol, batch: int | None) -> KShotBatch | StreamBatch:
        return EpisodeSampler(self._pool, protocol, next(self._seeds)).batch(0, batch or self._batch)


def _kshot(pool: ClassPool, way: int) -> KShot:
    return KShot(way, 1, min(ASKED, int(pool.images_per_class.min()) - 1))
