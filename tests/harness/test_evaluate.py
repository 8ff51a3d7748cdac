import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.data.image_set import ImageSet
from fewshot.data.split import ClassPool
from fewshot.episodes.augment import Augment
from fewshot.episodes.batch import with_each
from fewshot.episodes.labels import LETTERS, VALUES
from fewshot.episodes.protocol import KShot, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import EpisodeError, FewshotError, LearnerError
from fewshot.harness.evaluate import evaluate
from fewshot.harness.record import ANSWERS_SCHEMA
from fewshot.learners.base import Learner
from fewshot.learners.embedding import EmbeddingLearner
from fewshot.learners.registry import build_learner

CLASSES, PER_CLASS = 12, 20
PROTOCOLS = [
    KShot(way=5, shot=1, query=3),
    KShot(way=(3, 5), shot=(1, 2), query=2, block=4),
    Stream(way=3, length=12),
    Stream(way=3, length=12, counts="random"),
    Stream(way=3, length=12, chain=4),
]
STRINGS = Stream(way=3, length=12, labels="string")


@pytest.fixture(scope="module")
def pool():
    """Images of one pixel row that spell their class: pixel c of class c is white."""
    images = F.one_hot(torch.arange(16).repeat_interleave(PER_CLASS), 16)[: CLASSES * PER_CLASS]
    image_set = ImageSet(
        name="spelled",
        images=(255 * images).to(torch.uint8).view(-1, 1, 4, 4),
        class_names=tuple(f"a/{c:02}" for c in range(CLASSES)),
        class_start=torch.arange(0, CLASSES * PER_CLASS + 1, PER_CLASS),
        image_names=tuple(f"{i:03}" for i in range(CLASSES * PER_CLASS)),
        source="this test",
        licence="none",
        mean=(0.0,),
        std=(1.0,),
        digest=hashlib.sha256(b"spelled").hexdigest(),
    )
    return ClassPool(image_set, "all", "test", torch.arange(CLASSES), torch.zeros(CLASSES, dtype=torch.int64))


class Oracle(Learner):
    """Remembers which class has which label, and so is wrong only where a class is new."""

    def __init__(self):
        super().__init__((1, 4, 4), 5)
        self.dropout = nn.Dropout(0.9)  # would make answers wrong if training mode were left on
        self.norm = nn.BatchNorm1d(16, affine=False)  # would count batches if it were
        self.batch_sizes = []

    def start(self, batch, way):
        return torch.zeros(batch, way, 16)

    def observe(self, state, image, label):
        self.norm(image.flatten(1))
        assert not torch.is_grad_enabled()
        return state + F.one_hot(label, state.shape[1]).unsqueeze(2) * image.flatten(1).unsqueeze(1)

    def predict(self, state, images):
        self.batch_sizes.append(len(images))
        logits = torch.einsum("bwp,bip->biw", state, images.flatten(2))
        return self.dropout(logits)


class Constant(Oracle):
    """All labels alike: the tie goes to label 0."""

    def predict(self, state, images):
        return torch.zeros(*images.shape[:2], state.shape[1])


class Guesser(Oracle):
    """Random, from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def predict(self, state, images):
        return torch.rand(*images.shape[:2], state.shape[1], generator=self.generator)


class NowAndThen(Oracle):
    presentations = (1, 3)

    def stream(self, batch):
        logits = super().stream(batch)
        unasked = (batch.presentation != 1) & (batch.presentation != 3)
        return logits.masked_fill(unasked.unsqueeze(2), torch.nan)


def test_an_oracle_is_perfect_in_k_shot(pool):
    evaluation = evaluate(Oracle(), EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1), 50)
    assert (evaluation.accuracy, evaluation.ci95, evaluation.ci95_classes) == (1, 0, 0)
    assert evaluation.accuracy_by_instance == {}
    assert evaluation.answers.num_rows == 50 * 5


def test_an_oracle_in_a_stream_is_wrong_only_where_a_class_is_new(pool):
    evaluation = evaluate(Oracle(), EpisodeSampler(pool, PROTOCOLS[2], episode_seed=1), 50)
    # Where nothing is known the lowest label wins; so label 0 is named at once and the others are not.
    by_instance = evaluation.accuracy_by_instance
    assert by_instance == {1: pytest.approx(1 / 3), 2: 1, 3: 1, 4: 1}
    assert evaluation.accuracy == pytest.approx(np.mean(list(by_instance.values())))
    assert evaluation.ci95_by_instance == {1: 0, 2: 0, 3: 0, 4: 0}


def test_what_was_not_shown_cannot_be_spelled(pool):
    """The oracle answers with labels: at first presentations it can name no string of the class."""
    source = EpisodeSampler(pool, STRINGS, episode_seed=1)
    evaluation = evaluate(Oracle(), source, 50)
    assert evaluation.accuracy_by_instance == {1: 0, 2: 1, 3: 1, 4: 1}
    assert evaluation.episodes_digest == source.digest(50)
    answers = np.concatenate(evaluation.answers["answers"].to_pylist())
    assert set(answers) == {-1, 0, 1, 2}
    first = np.asarray(evaluation.answers["presentation"]) == 1
    named_at_first = np.concatenate(evaluation.answers.filter(first)["answers"].to_pylist())
    assert set(named_at_first) == {-1, 0}, "the lowest of equals, once it was shown"


def test_links_of_chains_have_classes_and_accuracies_of_their_own(pool):
    """The oracle never forgets: where a class comes back under another label, it may give the older one."""
    source = EpisodeSampler(pool, PROTOCOLS[4], episode_seed=1)
    evaluation = evaluate(Oracle(), source, 50)
    right, asked = dict.fromkeys(range(1, 5), 0), dict.fromkeys(range(1, 5), 0)
    for row in evaluation.answers.to_pylist():
        assert 1 <= row["presentation"] <= 4
        assert all(answer // 3 == row["label"] // 3 for answer in row["answers"]), "of the link asked about"
        if row["presentation"] > 1:
            right[row["label"] // 3 + 1] += row["correct"]
            asked[row["label"] // 3 + 1] += row["count"]
    assert evaluation.answers.num_rows == 50 * 4 * 3 * 4
    assert set(asked.values()) == {50 * 9}
    assert evaluation.accuracy_by_link == {link: right[link] / asked[link] for link in asked}
    assert evaluation.accuracy_by_link[1] == 1 > evaluation.accuracy_by_link[4] > 0.5
    assert str(evaluation).startswith("3-way stream of 12, exact counts, chain of 4 episodes  ")
    for protocol in PROTOCOLS[:4]:
        assert evaluate(Oracle(), EpisodeSampler(pool, protocol, 1), 5).accuracy_by_link == {}


def test_the_guesser_counts_on_through_a_chain(pool):
    """After a whole link all labels were shown equally often: it can guess what it can in any link."""
    guesser = build_learner("count_guesser", (1, 4, 4), 3)
    chain = evaluate(guesser, EpisodeSampler(pool, Stream(3, 12, chain=4), episode_seed=1), 500)
    single = evaluate(guesser, EpisodeSampler(pool, Stream(3, 12), episode_seed=1), 2000)
    for k, accuracy in single.accuracy_by_instance.items():
        assert chain.accuracy_by_instance[k] == pytest.approx(accuracy, abs=0.04)


class Speller(Oracle):
    """Remembers which class has which string."""

    labels = "string"

    def start(self, batch, way):
        return torch.zeros(batch, LETTERS * VALUES, 16)

    def observe(self, state, image, label):
        spelled = F.one_hot(label, VALUES).flatten(1)
        return torch.maximum(state, spelled.unsqueeze(2) * image.flatten(1).unsqueeze(1))


def test_a_learner_of_strings_is_right_where_all_letters_are(pool):
    source = EpisodeSampler(pool, STRINGS, episode_seed=1)
    evaluation = evaluate(Speller(), source, 50)
    assert evaluation.accuracy_by_instance == {1: 0, 2: 1, 3: 1, 4: 1}
    assert evaluate(Speller(), source, 50, batch_size=7).answers.equals(evaluation.answers)
    assert str(evaluation).startswith("3-way stream of 12, exact counts, string labels  75.0 ± 0.0 %")
    for protocol in PROTOCOLS:
        with pytest.raises(LearnerError, match="Speller answers with strings: ask it in streams"):
            evaluate(Speller(), EpisodeSampler(pool, protocol, episode_seed=1), 2)


def test_the_lowest_of_equal_logits_is_the_answer(pool):
    for protocol in (PROTOCOLS[0], PROTOCOLS[2]):
        evaluation = evaluate(Constant(), EpisodeSampler(pool, protocol, episode_seed=1), 20)
        assert evaluation.accuracy == 1 / protocol.way
        assert set(np.concatenate(evaluation.answers["answers"].to_pylist())) == {0}


def test_guessing_is_at_chance_within_its_interval(pool):
    evaluation = evaluate(Guesser(), EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1), 400)
    # The standard error of 400 episodes of 15 independent guesses at one in five.
    assert evaluation.ci95 == pytest.approx(1.96 * np.sqrt(0.2 * 0.8 / 6000), rel=0.15)
    assert abs(evaluation.accuracy - 0.2) <= 2 * evaluation.ci95


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_answers_do_not_depend_on_the_batch_size(pool, protocol):
    source = EpisodeSampler(pool, protocol, episode_seed=1)
    whole = evaluate(Oracle(), source, 23)
    for batch_size in (1, 5, 23, 100):
        parts = evaluate(Oracle(), source, 23, batch_size=batch_size)
        assert parts.answers.equals(whole.answers)
        assert parts.accuracy == whole.accuracy
        assert parts.ci95_classes == whole.ci95_classes


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_answers_are_those_of_the_learner_row_by_row(pool, protocol):
    source = EpisodeSampler(pool, protocol, episode_seed=1)
    answers = evaluate(Guesser(), source, 9, batch_size=2).answers
    assert answers.schema.equals(ANSWERS_SCHEMA)
    learner, expected, episode = Guesser().eval(), {}, 0
    for batch in source.batches(0, 9, 2):
        with torch.no_grad():
            named = learner.answer(batch).argmax(2)
        stream = isinstance(protocol, Stream)
        labels = batch.labels if stream else batch.query_labels
        for b in range(len(labels)):
            for position, label in enumerate(labels[b].tolist()):
                k = int(batch.presentation[b, position]) if stream else 0
                first = position // 12 * 3 if stream else 0  # of the link
                class_id = int(batch.class_ids[b, first + label])
                row = expected.setdefault((episode + b, first + label, k, class_id), [])
                row.append(first + int(named[b, position]))
        episode += len(labels)
    rows = answers.to_pylist()
    assert [(r["episode"], r["label"], r["presentation"], r["class_id"]) for r in rows] == sorted(expected)
    for row in rows:
        given = expected[row["episode"], row["label"], row["presentation"], row["class_id"]]
        assert row["answers"] == given
        assert row["count"] == len(given)
        assert row["correct"] == given.count(row["label"])


def test_presentations_that_were_not_asked_have_no_row(pool):
    evaluation = evaluate(NowAndThen(), EpisodeSampler(pool, PROTOCOLS[2], episode_seed=1), 20)
    assert set(evaluation.answers["presentation"].to_pylist()) == {1, 3}
    assert evaluation.accuracy_by_instance == {1: pytest.approx(1 / 3), 3: 1}
    assert evaluation.accuracy == pytest.approx(2 / 3)


def test_evaluation_changes_nothing(pool):
    learner = Oracle()
    learner.train()
    learner.dropout.eval()  # a part that its owner keeps in another mode
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    evaluate(learner, EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1), 3)
    assert learner.training
    assert learner.norm.training
    assert not learner.dropout.training
    assert torch.is_grad_enabled()
    assert before.keys() == learner.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


def test_the_mode_is_restored_after_an_error(pool):
    class Failing(Oracle):
        def predict(self, state, images):
            raise RuntimeError("out of memory")

    learner = Failing().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(learner, EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1), 3)
    assert learner.training


def test_batches_are_bounded_by_pixels(pool, monkeypatch):
    monkeypatch.setattr("fewshot.harness.evaluate.PIXELS_AT_ONCE", 2 * 20 * 16)
    learner = Oracle()
    evaluate(learner, EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1), 5)  # 20 images of 16 pixels
    assert learner.batch_sizes == [2, 2, 1]


def test_episodes_are_a_thousand_by_default_and_their_digest_is_kept(pool):
    source = EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1)
    progress = []
    evaluation = evaluate(
        Constant(), source, batch_size=400, on_progress=lambda done, total: progress.append((done, total))
    )
    assert evaluation.episodes == 1000
    assert evaluation.episodes_digest == source.digest(1000)
    assert progress == [(400, 1000), (800, 1000), (1000, 1000)]


@pytest.mark.parametrize(
    ("logits", "problem"),
    [
        (torch.zeros(2, 15, 4), r"shape \(2, 15, 4\); \(2, 15, 5\) \(episode, answer, unit\) were asked"),
        (torch.full((2, 15, 5), torch.nan), "NaN for logits in episodes 0 to 1"),
    ],
)
def test_answers_that_are_none_are_refused(pool, logits, problem):
    class Broken(Oracle):
        def predict(self, state, images):
            return logits

    with pytest.raises(LearnerError, match=problem):
        evaluate(Broken(), EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1), 2)


def test_what_is_no_learner_or_no_source_is_refused(pool):
    source = EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1)
    for given, says in (
        (("mann", source), "learner should be of the type Learner; got a str: give an instance, as "),
        ((Oracle, source), "learner should be of the type Learner; got the class Oracle: "),
        ((Oracle(), pool), "source should be of the type NumberedEpisodes; got a ClassPool: give a fewshot."),
        ((Oracle(), source, "9"), "episodes should be of the type Integral; got a str: "),
    ):
        with pytest.raises(FewshotError) as caught:
            evaluate(*given)
        assert str(caught.value).startswith(says)


@pytest.mark.parametrize("name", ["prototypical", "maml", "nearest_neighbour", "mann"])
def test_images_of_another_shape_or_type_are_refused(pool, name):
    source = EpisodeSampler(pool, KShot(5, 1, 2), episode_seed=1)
    options = {} if name == "nearest_neighbour" else {"widths": [4]}
    other = build_learner(name, (3, 8, 8), 5, options)
    says = r"^\w+ reads images of \(channel, height, width\) \(3, 8, 8\) in float32; got \(1, 4, 4\) in float"
    with pytest.raises(LearnerError, match=says):
        evaluate(other, source, 2)
    batch = source.batch(0, 2)
    with pytest.raises(LearnerError, match=says):
        other.adapt(batch.support)
    with pytest.raises(LearnerError, match=says):
        other.answer(EpisodeSampler(pool, Stream(5, 5), 0).batch(0, 2))
    if name != "nearest_neighbour":  # which has no weights, of no type
        as_doubles = with_each(batch, lambda part: part.double() if part.is_floating_point() else part)
        fitting = build_learner(name, (1, 4, 4), 5, options)
        with pytest.raises(LearnerError, match=r"in float32; got \(1, 4, 4\) in float64: convert them"):
            fitting.answer(as_doubles)


def test_no_episodes_are_refused(pool):
    with pytest.raises(EpisodeError, match="at least 1 episode"):
        evaluate(Oracle(), EpisodeSampler(pool, PROTOCOLS[0], episode_seed=1), 0)


def test_printing_gives_the_line_that_people_quote(pool):
    def line(learner, protocol):
        return str(evaluate(learner, EpisodeSampler(pool, protocol, episode_seed=1), 50))

    assert line(Constant(), PROTOCOLS[0]) == "5-way 1-shot  20.0 ± 0.0 % (95 % CI over 50 episodes)"
    assert line(Oracle(), PROTOCOLS[1]).startswith("3-5-way 1-2-shot  100.0")
    assert line(Oracle(), PROTOCOLS[2]) == (
        "3-way stream of 12, exact counts  83.3 ± 0.0 % "
        "(95 % CI over 50 episodes; 1st presentation 33.3 %; 2nd presentation 100.0 %)"
    )


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_episodes_follow_the_learner_to_its_device(pool, protocol):
    class Elsewhere(Oracle):
        def answer(self, batch):
            kshot = isinstance(protocol, KShot)
            tensors = [*batch.support[:2], *batch[1:]] if kshot else batch[:4]
            raise RuntimeError({tensor.device.type for tensor in tensors}, type(batch), batch.way)

    learner = Elsewhere().to("meta")  # a device that every machine has
    source = EpisodeSampler(pool, protocol, episode_seed=1)
    batch = source.batch(0, 1)
    with pytest.raises(RuntimeError) as arrived:
        evaluate(learner, source, 1)
    assert arrived.value.args == ({"meta"}, type(batch), batch.way)


# --- Answers from features ----------------------------------------------------------------------------------

SMALL = {
    "prototypical": {"widths": (4, 6)},
    "mann": {"widths": (4,), "hidden_size": 8, "num_slots": 12, "word_size": 4, "read_heads": 2},
    "mann_dnc": {"widths": (4,), "hidden_size": 8, "num_slots": 12, "word_size": 4, "read_heads": 2},
    "mann_ntm": {"widths": (4,), "hidden_size": 8, "num_slots": 12, "word_size": 4},
    "mann_paper": {"hidden_size": 8},
    "mann_sparse": {"widths": (4,), "hidden_size": 8, "num_slots": 12, "word_size": 4},
    "lstm": {"widths": (4,), "hidden_size": 8},
    "attention": {"widths": (4,), "hidden_size": 8},
    "key_value": {"widths": (4,), "num_slots": 12},
    "nearest_feature": {"widths": (4,)},
    "nearest_neighbour": {},
    "count_guesser": {},
}


class Embedding(EmbeddingLearner):
    """Class means of pixels; counts what it is given to embed."""

    def __init__(self):
        super().__init__((1, 4, 4), 5)
        self.embedded = []

    def start(self, batch, way):
        return torch.zeros(batch, way, 16)

    def embed(self, images):
        self.embedded += images.flatten(0, -4)
        return images.flatten(-3)

    def observe_features(self, state, features, label):
        return state + F.one_hot(label, state.shape[1]).unsqueeze(2) * features.unsqueeze(1)

    def predict_features(self, state, features):
        return features @ state.mT


def spelled_with_noise(pool):
    """Every image is another one, and turning it shows."""
    images = pool.image_set.images
    noise = torch.randint(0, 100, images.shape, generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    return dataclasses.replace(
        pool, image_set=dataclasses.replace(pool.image_set, images=images // 2 + noise)
    ).with_rotations()


def image_by_image(learner):
    """The same learner, to whom evaluation shows the images."""
    learner.answer = lambda batch: type(learner).answer(learner, batch)
    assert not learner.answers_from_features
    return learner


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("protocol", [KShot(5, 1, 3), Stream(5, 20, counts="random")], ids=str)
def test_answers_from_features_are_those_to_the_images(pool, name, protocol):
    torch.manual_seed(0)
    learner = build_learner(name, (1, 4, 4), 5, SMALL[name])
    source = EpisodeSampler(spelled_with_noise(pool), protocol, episode_seed=1)
    embedded = evaluate(learner, source, 60, batch_size=7)
    shown = evaluate(image_by_image(learner), source, 60, batch_size=7)
    assert embedded.answers.equals(shown.answers)
    assert embedded.episodes_digest == shown.episodes_digest == source.digest(60)
    assert vars(embedded).keys() == vars(shown).keys()
    assert embedded.ci95_classes == shown.ci95_classes


def test_each_drawing_is_embedded_once_and_no_others(pool):
    learner = Embedding()
    source = EpisodeSampler(spelled_with_noise(pool), KShot(5, 1, 3), episode_seed=1)
    evaluate(learner, source, 9, batch_size=2)
    drawn = source.indices(0, 9)
    drawings = torch.stack([drawn.turns, drawn.images]).flatten(1).unique(dim=1)
    assert len(learner.embedded) == drawings.shape[1] < len(source.pool) * PER_CLASS / 4
    shown = torch.cat([source.batch(0, 9).support.images, source.batch(0, 9).query_images], dim=1)
    expected = {image.numpy().tobytes() for image in shown.flatten(0, 1)}
    assert {image.numpy().tobytes() for image in learner.embedded} == expected


def test_features_too_large_to_keep_are_computed_whenever_they_are_shown(pool, monkeypatch):
    source = EpisodeSampler(pool, KShot(5, 1, 3), episode_seed=1)
    kept = evaluate(Embedding(), source, 20)
    monkeypatch.setattr("fewshot.harness.features.FEATURE_BYTES", 1000)
    learner = Embedding()
    assert evaluate(learner, source, 20).answers.equals(kept.answers)
    assert len(learner.embedded) > 20 * 20


def test_distorted_images_are_shown_as_they_are(pool):
    source = EpisodeSampler(
        pool, KShot(5, 1, 3), episode_seed=1, augment=Augment(angle_degrees=90, shift=0.5)
    )
    learner = Embedding()
    evaluate(learner, source, 20)
    assert len(learner.embedded) == 20 * 20
    assert len({image.numpy().tobytes() for image in learner.embedded}) > PER_CLASS * CLASSES


def test_a_source_that_makes_its_batches_in_its_own_way_is_shown_as_it_is(pool):
    class Blank(EpisodeSampler):
        def batch(self, start, count):
            batch = super().batch(start, count)
            return batch._replace(query_images=torch.zeros_like(batch.query_images))

    answers = evaluate(Embedding(), Blank(pool, KShot(5, 1, 3), episode_seed=1), 20).answers
    assert set(np.concatenate(answers["answers"].to_pylist())) == {0}


def test_any_source_of_numbered_episodes_will_do(pool):
    class Wrapped:
        def __init__(self, sampler):
            self.pool, self.protocol = sampler.pool, sampler.protocol
            self.batches, self.digest = sampler.batches, sampler.digest

    source = EpisodeSampler(pool, KShot(5, 1, 3), episode_seed=1)
    expected = evaluate(Embedding(), source, 20)
    assert evaluate(Embedding(), Wrapped(source), 20).answers.equals(expected.answers)


def test_features_may_take_part_in_gradients_of_the_answer(pool):
    class FitsAHead(Embedding):
        def predict_features(self, state, features):
            with torch.enable_grad():
                head = state.clone().requires_grad_()
                (gradient,) = torch.autograd.grad((features @ head.mT).square().sum(), head)
            return features @ (state - 0.01 * gradient).mT

    source = EpisodeSampler(pool, KShot(5, 1, 3), episode_seed=1)
    expected = evaluate(image_by_image(FitsAHead()), source, 20)
    assert evaluate(FitsAHead(), source, 20).answers.equals(expected.answers)
