"""Learners of strings: 25 units in and out, any way, in streams alone; and what their letters name."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewshot.episodes.batch import KShotBatch, StreamBatch, Support, with_each
from fewshot.episodes.codes import draw_codes
from fewshot.episodes.labels import LETTERS, VALUES, Labels
from fewshot.episodes.protocol import KShot, Protocol, Stream
from fewshot.episodes.source import presentation
from fewshot.errors import LearnerError
from fewshot.learners.base import Learner
from fewshot.learners.check import check_learner
from fewshot.learners.count_guesser import CountGuesser
from fewshot.learners.naming import named_labels
from fewshot.learners.registry import build_learner, learner_class, telling_options

SHAPE = (1, 8, 8)
SMALL: dict[str, dict[str, Any]] = {
    "attention": {"widths": (4, 4), "hidden_size": 12},
    "lstm": {"widths": (4, 4), "hidden_size": 12},
    "mann": {"widths": (4, 4), "hidden_size": 12, "num_slots": 8, "word_size": 5, "read_heads": 2},
    "mann_dnc": {"widths": (4, 4), "hidden_size": 12, "num_slots": 8, "word_size": 5, "read_heads": 2},
    "mann_ntm": {"widths": (4, 4), "hidden_size": 12, "num_slots": 8, "word_size": 5, "read_heads": 2},
    "mann_paper": {"hidden_size": 12},
    "mann_sparse": {"widths": (4, 4), "hidden_size": 12, "num_slots": 8, "word_size": 5, "read_heads": 2},
}
every_learner = pytest.mark.parametrize("name", SMALL)


def build(name: str, labels: Labels = "string") -> Learner:
    torch.manual_seed(0)
    return build_learner(name, SHAPE, 3, SMALL[name] | {"labels": labels}).eval()


def streams(batch: int, way: int, per_class: int = 3) -> StreamBatch:
    generator = torch.Generator().manual_seed(way)
    labels = torch.rand(batch, way * per_class, generator=generator).argsort(1) % way
    codes = draw_codes(torch.randint(2**62, (batch, 1), generator=generator), way)
    images = torch.randn(batch, way * per_class, *SHAPE, generator=generator)
    class_ids = torch.arange(way).expand(batch, -1)
    return StreamBatch(images, labels, presentation(labels, way), class_ids, way, codes)


@every_learner
def test_a_learner_of_strings_keeps_its_promises(name: str) -> None:
    check_learner(build(name))


@every_learner
def test_the_same_learner_answers_any_way(name: str) -> None:
    learner = build(name)
    for way in (2, 5, 9):
        batch = streams(2, way)
        assert learner.answer(batch).shape == (2, 3 * way, LETTERS * VALUES)


@every_learner
def test_the_loss_is_the_sum_over_the_letters(name: str) -> None:
    """By loops: the mean over all answers of five cross-entropies."""
    learner, batch = build(name), streams(2, 4)
    logits = learner.answer(batch).detach().double().numpy()
    assert batch.codes is not None
    total = 0.0
    for e, labels in enumerate(batch.labels.tolist()):
        for step, label in enumerate(labels):
            for letter, value in enumerate(batch.codes[e, label].tolist()):
                scores = logits[e, step, letter * VALUES : (letter + 1) * VALUES]
                total += math.log(np.exp(scores).sum()) - scores[value]
    expected = total / batch.labels.numel()
    assert learner.loss(batch).item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(LETTERS * math.log(VALUES), abs=0.5)


@every_learner
def test_a_string_is_seen_after_its_image_and_not_before(name: str) -> None:
    learner, batch = build(name), streams(1, 3)
    assert batch.codes is not None
    last = int(batch.labels[0, -1])
    first = int((batch.labels[0] == last).nonzero()[0])
    codes = batch.codes.clone()
    codes[0, last] = (codes[0, last] + 1) % VALUES
    with torch.no_grad():
        moved = (learner.answer(batch) - learner.answer(batch._replace(codes=codes))).abs().amax(-1)[0]
    assert moved[: first + 1].max() == 0
    assert moved[first + 1 :].min() > 0


@pytest.mark.parametrize("name", ["lstm", "mann", "mann_paper"])
def test_units_are_an_option_that_leaves_older_keys_alone(name: str) -> None:
    """Of the learners that had figures recorded before there were strings."""
    kind = learner_class(name)
    assert "labels" not in telling_options(kind, SMALL[name] | {"labels": "one_hot"})
    assert telling_options(kind, {"labels": "string"})["labels"] == "string"
    one_hot, plain = build(name, "one_hot"), build_learner(name, SHAPE, 3, SMALL[name])
    assert {k: v.shape for k, v in one_hot.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }


STRINGS = Stream(3, 9, labels="string")
UNITS = Stream(3, 9)


@pytest.mark.parametrize(
    ("name", "options", "protocol", "says"),
    [
        ("lstm", {"labels": "string"}, STRINGS, None),
        ("lstm", {"labels": "string"}, Stream(7, 14, labels="string"), None),
        ("lstm", {"labels": "string"}, UNITS, "Lstm answers with strings: ask it in streams"),
        ("lstm", {"labels": "string"}, KShot(3), "Lstm answers with strings: ask it in streams"),
        ("lstm", {}, UNITS, None),
        ("lstm", {}, KShot(3), None),
        ("lstm", {}, STRINGS, 'train one with the option labels = "string"'),
        ("lstm", {}, Stream(4, 8), "was built for 3-way episodes and cannot answer 4-way ones"),
        ("lstm", {}, KShot((3, 5)), "cannot answer 3- to 5-way ones"),
        ("maml", {"widths": (4,)}, STRINGS, 'train one with the option labels = "string"'),
        ("prototypical", {"widths": (4,)}, STRINGS, None),
        ("nearest_neighbour", {}, Stream(7, 14, labels="string"), None),
        ("count_guesser", {}, KShot(9), None),
    ],
)
def test_who_answers_what(name: str, options: dict[str, Any], protocol: Protocol, says: str | None) -> None:
    reason = build_learner(name, SHAPE, 3, options).refusal(protocol)
    assert (reason is None) == (says is None)
    assert says is None or says in str(reason)


def test_without_strings_a_learner_of_strings_is_lost() -> None:
    learner, batch = build("lstm"), streams(1, 3)
    with pytest.raises(LearnerError, match="reads strings, and these streams have none"):
        learner.answer(batch._replace(codes=None))
    kshot = KShotBatch(Support(batch.images, batch.labels, 3), batch.images, batch.labels, batch.class_ids)
    with pytest.raises(LearnerError, match="reads strings, and a support set has none"):
        learner.answer(kshot)


class ReadsAhead(Learner):
    """Answers with the string that is shown next."""

    labels: Labels = "string"
    label_equivariant: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(SHAPE, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def start(self, batch: int, way: int) -> Tensor:
        return torch.zeros(batch, LETTERS * VALUES)

    def observe(self, state: Tensor, image: Tensor, label: Tensor) -> Tensor:
        return self.scale * torch.nn.functional.one_hot(label, VALUES).flatten(1)

    def predict(self, state: Tensor, images: Tensor) -> Tensor:
        return state.unsqueeze(1).expand(-1, images.shape[1], -1)

    def stream(self, batch: StreamBatch) -> Tensor:
        return self.scale * torch.nn.functional.one_hot(self.shown(batch), VALUES).flatten(2)


class ReadsBehind(ReadsAhead):
    """Answers with the string shown last: nothing is wrong with that."""

    def stream(self, batch: StreamBatch) -> Tensor:
        return Learner.stream(self, batch)


def test_who_reads_strings_ahead_is_found_out() -> None:
    check_learner(ReadsBehind())
    with pytest.raises(LearnerError, match="an answer changes with labels not shown yet"):
        check_learner(ReadsAhead())


# ------------------------------------------------------------------ what an answer names


def slow_names(logits: NDArray[Any], codes: list[Any]) -> list[list[int]]:
    """The class whose string has the best value at each letter, -1 for none."""
    named = []
    for episode, book in zip(logits, codes, strict=True):
        named.append([])
        for row in episode:
            word = [int(np.argmax(row[5 * letter : 5 * letter + 5])) for letter in range(5)]
            named[-1].append(book.index(word) if word in book else -1)
    return named


def test_all_five_letters_have_to_be_right() -> None:
    learner, batch = build("lstm"), streams(4, 6)
    assert batch.codes is not None
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(*batch.labels.shape, LETTERS * VALUES, generator=generator)
    spelled = torch.nn.functional.one_hot(batch.strings, VALUES).flatten(2)
    logits[:2] += spelled[:2]  # half of the episodes are answered rightly
    names = named_labels(learner, batch, logits)
    assert names.tolist() == slow_names(logits.numpy(), batch.codes.tolist())
    assert torch.equal(names[:2], batch.labels[:2])
    assert (names[2:] == -1).any()
    one_letter_off = logits[:2].clone()
    one_letter_off[..., :VALUES] = spelled[:2, :, :VALUES].roll(1, -1)
    assert not (
        named_labels(learner, batch._replace(codes=batch.codes[:2]), one_letter_off) == names[:2]
    ).any()


def chained(batch: StreamBatch, chain: int) -> StreamBatch:
    """Streams one after the other as the links of chains."""
    whole = with_each(batch, lambda part: part.reshape(len(part) // chain, -1, *part.shape[2:]))
    return whole._replace(chain=chain)


@every_learner
def test_nothing_is_wiped_in_a_chain_and_the_last_string_arrives_with_the_next_link(name: str) -> None:
    learner, batch = build(name), chained(streams(4, 3), 2)
    assert batch.codes is not None
    codes = batch.codes.clone()
    last = int(batch.places[0, 8])  # of the first of two links of nine images
    assert int((batch.places[0] == last).nonzero()[-1]) == 8
    codes[0, last] = (codes[0, last] + 1) % VALUES
    first = int((batch.places[0] == last).nonzero()[0])
    with torch.no_grad():
        answers = learner.answer(batch)
        torch.testing.assert_close(answers, Learner.stream(learner, batch), atol=1e-5, rtol=0)
        moved = (answers - learner.answer(batch._replace(codes=codes))).abs().amax(-1)
    assert moved[0, : first + 1].max() == 0
    assert moved[0, first + 1 :].min() > 0, "in the next link too"
    assert moved[1].max() == 0


def test_an_answer_names_a_class_of_its_own_link() -> None:
    learner, apart = build("lstm"), streams(6, 4)
    batch = chained(apart, 3)
    assert apart.codes is not None
    right = torch.nn.functional.one_hot(apart.strings, VALUES).flatten(2).float()
    whole = right.reshape(2, 36, -1)
    assert torch.equal(named_labels(learner, batch, whole), batch.labels)
    of_the_link_before = whole.roll(12, dims=1)  # no string comes twice here
    assert len(set(map(tuple, apart.codes.flatten(0, 1).tolist()))) == 24
    assert (named_labels(learner, batch, of_the_link_before) == -1).all()
    guesser = CountGuesser(SHAPE, 4)
    logits = torch.rand(2, 36, 4, generator=torch.Generator().manual_seed(0))
    names = named_labels(guesser, batch, logits)
    assert torch.equal(names.flatten(), named_labels(guesser, apart, logits.reshape(6, 12, 4)).flatten())


def test_who_answers_with_labels_names_only_strings_shown() -> None:
    learner, batch = CountGuesser(SHAPE, 3), streams(5, 3)
    logits = learner.answer(batch)
    names = named_labels(learner, batch, logits)
    for e, labels in enumerate(batch.labels.tolist()):
        for step in range(len(labels)):
            best = int(logits[e, step].argmax())
            assert names[e, step] == (best if best in labels[:step] else -1)
    assert torch.equal(named_labels(learner, batch._replace(codes=None), logits), logits.argmax(-1))
