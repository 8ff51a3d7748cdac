"""The ceiling at first presentations: what the best guesser reaches, and that who is above it is found."""

from pathlib import Path

import pytest

from fewshot.data.image_folder import load_image_folder
from fewshot.data.split import ClassPool
from fewshot.episodes.protocol import Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.harness.audit.answers import first_presentations_are_guesses
from fewshot.harness.audit.finding import Finding
from fewshot.harness.evaluate import evaluate
from fewshot.harness.record import Record, read_records
from fewshot.learners.base import Learner
from fewshot.learners.count_guesser import CountGuesser
from tests.harness.audit.leaky import ClassMeans, LabelWithItsOwnImage


@pytest.fixture(scope="module")
def pool(image_folder: Path) -> ClassPool:
    return load_image_folder(image_folder, 12).split("folders").train


@pytest.fixture
def record(tiny_results: Path) -> Record:
    return next(record for record in read_records(tiny_results) if record.protocol == "stream")


def found(learner: Learner, pool: ClassPool, record: Record, stream: Stream) -> Finding:
    answers = evaluate(learner, EpisodeSampler(pool, stream, episode_seed=0), 300).answers
    changes = {"way": stream.way, "counts": stream.counts, "chain": stream.chain, "labels": stream.labels}
    finding = first_presentations_are_guesses("x", record.model_copy(update=changes), answers)
    assert finding is not None
    return finding


@pytest.mark.parametrize(
    "stream", [Stream(5, 20), Stream(5, 20, "random"), Stream(3, 9, chain=3), Stream(8, 8, "random")]
)
def test_the_guesser_itself_passes_and_comes_near_it(pool: ClassPool, record: Record, stream: Stream) -> None:
    finding = found(CountGuesser((1, 12, 12), stream.way), pool, record, stream)
    assert finding.holds, finding.seen
    reached, limit = (float(text.split("%")[0]) for text in (finding.seen, finding.seen.split("ceiling ")[1]))
    assert reached == pytest.approx(limit, abs=5)


@pytest.mark.parametrize("stream", [Stream(5, 20), Stream(5, 20, "random"), Stream(3, 9, chain=3)])
def test_a_stream_that_shows_the_label_with_its_own_image_is_found(
    pool: ClassPool, record: Record, stream: Stream
) -> None:
    assert found(ClassMeans((1, 12, 12), stream.way), pool, record, stream).holds
    finding = found(LabelWithItsOwnImage((1, 12, 12), stream.way), pool, record, stream)
    assert not finding.holds
    assert finding.seen.startswith("100.00 % of ")


def test_who_was_not_asked_is_not_judged(pool: ClassPool, record: Record) -> None:
    class AnswersLater(ClassMeans):
        presentations = (2, 3)

    stream = Stream(5, 20)
    answers = evaluate(AnswersLater((1, 12, 12), 5), EpisodeSampler(pool, stream, 0), 10).answers
    assert first_presentations_are_guesses("x", record, answers) is None
