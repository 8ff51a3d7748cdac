"""`mann`, its relatives and `lstm`: streams in one piece, states as values, and what each is made of."""

import itertools
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from fewshot.episodes.batch import KShotBatch, StreamBatch, Support
from fewshot.errors import LearnerError
from fewshot.learners.base import Learner
from fewshot.learners.lstm import Lstm
from fewshot.learners.mann import Mann
from fewshot.learners.mann_dnc import MannDnc
from fewshot.learners.mann_ntm import MannNtm
from fewshot.learners.mann_paper import MannPaper
from fewshot.learners.mann_sparse import MannSparse
from fewshot.learners.registry import telling_options
from fewshot.memory.search import SearchKind

SHAPE = (1, 12, 12)
SMALL: dict[str, Any] = {"widths": (4, 8), "embedding_size": 6, "hidden_size": 10}


def build(name: str, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    makers: dict[str, Any] = {
        "mann": lambda: Mann(SHAPE, 3, **SMALL, num_slots=12, word_size=5),
        "mann_no_tie": lambda: Mann(SHAPE, 3, **SMALL, num_slots=12, word_size=5, tie=False),
        "mann_no_batch_norm": lambda: Mann(SHAPE, 3, **SMALL, num_slots=12, word_size=5, batch_norm="none"),
        "mann_key": lambda: Mann(SHAPE, 3, **SMALL, num_slots=12, word_size=5, add_vector="key", tie=False),
        "mann_address_first": lambda: Mann(
            SHAPE, 3, **SMALL, num_slots=12, word_size=5, order="address_first"
        ),
        "mann_dnc": lambda: MannDnc(SHAPE, 3, **SMALL, num_slots=12, word_size=5, read_heads=3),
        "mann_dnc_links": lambda: MannDnc(SHAPE, 3, **SMALL, num_slots=12, word_size=5, links=True),
        "mann_dnc_gru": lambda: MannDnc(SHAPE, 3, **SMALL, num_slots=12, controller="gru", tie=False),
        "mann_ntm": lambda: MannNtm(
            SHAPE, 3, **SMALL, num_slots=12, word_size=5, read_heads=3, write_heads=2
        ),
        "mann_ntm_gru": lambda: MannNtm(SHAPE, 3, **SMALL, controller="gru", tie=False),
        "mann_paper": lambda: MannPaper(SHAPE, 3),
        "mann_paper_feedforward": lambda: MannPaper(SHAPE, 3, controller="feedforward"),
        "mann_sparse": lambda: MannSparse(SHAPE, 3, **SMALL, num_slots=12, word_size=5, slots_per_head=3),
        "mann_sparse_filled": lambda: MannSparse(
            SHAPE, 3, **SMALL, num_slots=40, word_size=5, slots_per_head=3, filled=True
        ),
        "lstm": lambda: Lstm(SHAPE, 3, **SMALL),
    }
    learner: Learner = makers[name]()
    return learner.eval()


NAMES = [
    "mann",
    "mann_no_tie",
    "mann_no_batch_norm",
    "mann_key",
    "mann_address_first",
    "mann_dnc",
    "mann_dnc_links",
    "mann_dnc_gru",
    "mann_ntm",
    "mann_ntm_gru",
    "mann_paper",
    "mann_paper_feedforward",
    "mann_sparse",
    "mann_sparse_filled",
    "lstm",
]
every_learner = pytest.mark.parametrize("name", NAMES)


def stream_batch(batch: int, length: int = 9, seed: int = 0) -> StreamBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, length, *SHAPE, generator=generator)
    labels = torch.randint(3, (batch, length), generator=generator)
    nothing = torch.zeros_like(labels)
    return StreamBatch(images, labels, nothing, nothing[:, :3], 3)


def kshot_batch(batch: int, query: int = 4) -> KShotBatch:
    shown, asked = stream_batch(batch, 6, seed=1), stream_batch(batch, query, seed=2)
    return KShotBatch(Support(shown.images, shown.labels, 3), asked.images, asked.labels, shown.class_ids)


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return list(itertools.chain.from_iterable(tensors(part) for part in state))


@every_learner
def test_stream_in_one_piece_equals_observe_and_predict(name: str) -> None:
    learner, batch = build(name), stream_batch(2)
    with torch.no_grad():
        torch.testing.assert_close(learner.stream(batch), Learner.stream(learner, batch), atol=1e-5, rtol=0)


@every_learner
def test_adapt_in_one_piece_equals_observe(name: str) -> None:
    learner, support = build(name), kshot_batch(2).support
    with torch.no_grad():
        whole, stepwise = learner.adapt(support), Learner.adapt(learner, support)
    for fast, slow in zip(tensors(whole), tensors(stepwise), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)


@every_learner
def test_a_batch_equals_its_episodes_one_by_one(name: str) -> None:
    learner, stream, kshot = build(name), stream_batch(3), kshot_batch(3)
    with torch.no_grad():
        together, answers = learner.stream(stream), learner.answer(kshot)
        for i in range(3):
            one = slice(i, i + 1)
            alone = StreamBatch(*(part[one] for part in stream[:4]), way=3)
            torch.testing.assert_close(learner.stream(alone), together[one], atol=1e-5, rtol=0)
            support = Support(kshot.support.images[one], kshot.support.labels[one], 3)
            logits = learner.predict(learner.adapt(support), kshot.query_images[one])
            torch.testing.assert_close(logits, answers[one], atol=1e-5, rtol=0)


@every_learner
def test_no_query_learns_from_another_and_the_state_is_left_as_it_was(name: str) -> None:
    learner, batch = build(name), kshot_batch(2)
    with torch.no_grad():
        state = learner.adapt(batch.support)
        copies = [tensor.clone() for tensor in tensors(state)]
        together = learner.predict(state, batch.query_images)
        for i in range(4):
            alone = learner.predict(state, batch.query_images[:, i : i + 1])
            torch.testing.assert_close(alone, together[:, i : i + 1], atol=1e-5, rtol=0)
        learner.observe(state, batch.query_images[:, 0], batch.query_labels[:, 0])
    assert all(torch.equal(now, then) for now, then in zip(tensors(state), copies, strict=True))


@every_learner
def test_a_label_is_seen_after_its_image_and_not_before(name: str) -> None:
    learner, batch = build(name), stream_batch(1)
    other = batch.labels.clone()
    other[:, 4] = (other[:, 4] + 1) % 3
    with torch.no_grad():
        difference = (learner.stream(batch) - learner.stream(batch._replace(labels=other))).abs().amax(-1)
    assert difference[0, :5].max() == 0
    assert difference[0, 5:].min() > 0


@every_learner
def test_every_parameter_is_trained_and_the_loss_starts_near_chance(name: str) -> None:
    learner = build(name).train()
    loss = learner.loss(stream_batch(4))
    assert loss.item() == pytest.approx(math.log(3), abs=0.2)
    loss.backward()
    for key, parameter in learner.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@every_learner
def test_kshot_loss_trains_too(name: str) -> None:
    learner = build(name).train()
    learner.loss(kshot_batch(2)).backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())


@every_learner
def test_another_way_is_refused(name: str) -> None:
    with pytest.raises(LearnerError, match=r"built for 3-way episodes .* train one with way 5"):
        build(name).start(2, 5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"embedding_size": 0}, "embedding_size must be at least 1; got 0"),
        ({"embedding_size": -1}, "embedding_size must be at least 1; got -1"),
        ({"hidden_size": 0}, "hidden_size must be at least 1; got 0"),
        ({"word_size": 0}, "word_size must be at least 1; got 0"),
        ({"read_heads": 0}, "read_heads must be at least 1; got 0"),
        ({"num_slots": 2}, "num_slots must be at least read_heads, .* got 2 and 4"),
        ({"usage_decay": 1.01}, "usage_decay must be from 0 to 1; got 1.01"),
        ({"usage_decay": -0.1}, "usage_decay must be from 0 to 1; got -0.1"),
        ({"widths": (4, 0)}, "widths must be at least 1; got 0"),
        ({"strength_offset": -0.5}, "strength_offset must be at least 0; got -0.5"),
        ({"add_vector": "key", "tie": True}, 'tie = true joins .* add_vector = "apart" or tie = false'),
        ({"intervention": "shuffle_keys", "tie": False}, 'intervention "shuffle_keys" .* needs tie = true'),
        (
            {"intervention": "zero_controller", "controller": "feedforward"},
            'intervention "zero_controller" .* keeps nothing: give controller = "lstm" or "gru"',
        ),
    ],
)
def test_options_that_make_no_network_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(LearnerError, match=f"^{says}$"):
        Mann(SHAPE, 3, **options)
    if options.keys() <= {"embedding_size", "hidden_size", "widths"}:
        with pytest.raises(LearnerError, match=f"^{says}$"):
            Lstm(SHAPE, 3, **options)
    if options.keys() <= {"hidden_size", "usage_decay", "strength_offset", "add_vector", "tie"}:
        with pytest.raises(LearnerError, match=f"^{says}$"):
            MannPaper(SHAPE, 3, **options)
    if not options.keys() & {"num_slots", "usage_decay", "widths", "add_vector"}:
        for kind in (MannNtm, MannDnc, MannSparse):
            with pytest.raises(LearnerError, match=f"^{says}$"):
                kind(SHAPE, 3, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"slots_per_head": 0}, "slots_per_head must be at least 1; got 0"),
        ({"num_slots": 3}, "num_slots must be at least read_heads .* got 3, 4 and 4"),
        ({"num_slots": 4, "slots_per_head": 5}, "num_slots must be at least read_heads .* got 4, 4 and 5"),
        ({"access_threshold": 1.5}, "access_threshold must be from 0 to 1; got 1.5"),
        ({"num_slots": 0, "filled": True}, "num_slots must be at least 1; got 0"),
        ({"num_slots": 3, "filled": True}, "num_slots must be at least read_heads .* got 3, 4 and 4"),
        (
            {"search": "approximate"},
            'search = "approximate" is for slots that are filled .* filled = true or search = "exact"',
        ),
    ],
)
def test_sparse_access_needs_slots_to_read(options: dict[str, Any], says: str) -> None:
    with pytest.raises(LearnerError, match=f"^{says}$"):
        MannSparse(SHAPE, 3, **options)


def test_slots_filled_beforehand_are_the_same_in_every_network_and_no_part_of_what_is_stored() -> None:
    one, other = (build("mann_sparse_filled", seed) for seed in (0, 1))
    empty = build("mann_sparse", 0)
    rows = one.cell.memory.store.base.rows
    assert rows.shape == (40, 5)
    assert torch.equal(rows, other.cell.memory.store.base.rows)
    assert one.state_dict().keys() == empty.state_dict().keys()
    for key, value in one.state_dict().items():
        assert torch.equal(value, empty.state_dict()[key]), "a seed gives the same weights"
    assert not torch.allclose(one.stream(stream_batch(2)), empty.stream(stream_batch(2)), atol=1e-3)
    assert one.double().cell.memory.store.base.rows.dtype == torch.double, "rows go where the network goes"
    assert telling_options(MannSparse, {"filled": True}) == telling_options(MannSparse) | {"filled": True}


def test_an_index_answers_as_the_exact_search_does() -> None:
    """Of few rows it tries all lists: what is found is put in order exactly."""
    pytest.importorskip("faiss", reason="needs faiss: pip install 'fewshot[ann]'")
    answers = []
    for search in get_args(SearchKind):
        torch.manual_seed(0)
        learner = MannSparse(SHAPE, 3, **SMALL, num_slots=300, word_size=8, filled=True, search=search)
        answers.append(learner.eval().stream(stream_batch(2)))
    torch.testing.assert_close(answers[0], answers[1], atol=1e-3, rtol=0)
    with pytest.raises(LearnerError, match="an index needs 256 rows or more; got 200: search them exactly"):
        MannSparse(SHAPE, 3, num_slots=200, filled=True, search="approximate")


@pytest.mark.parametrize("option", ["write_heads", "shift_range", "num_slots"])
def test_a_turing_machine_needs_what_it_moves(option: str) -> None:
    with pytest.raises(LearnerError, match=f"^{option} must be at least 1; got 0$"):
        MannNtm(SHAPE, 3, **{option: 0})


def test_a_turing_machine_takes_no_negative_bias() -> None:
    with pytest.raises(LearnerError, match=r"^role_bias must be at least 0; got -0.5$"):
        MannNtm(SHAPE, 3, role_bias=-0.5)


def test_as_many_slots_as_heads_are_enough() -> None:
    learner = Mann(SHAPE, 3, **SMALL, num_slots=2, word_size=5, read_heads=2, usage_decay=1.0).eval()
    assert learner.stream(stream_batch(2)).isfinite().all()


def test_evaluation_moves_no_buffer() -> None:
    learner = build("mann")
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    with torch.no_grad():
        learner.stream(stream_batch(2))
        learner.answer(kshot_batch(2))
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())


@pytest.mark.parametrize(("controller", "hidden_width"), [("lstm", 200), ("feedforward", 0)])
def test_mann_paper_is_the_papers(controller: Any, hidden_width: int) -> None:
    learner = MannPaper((1, 20, 20), 5, controller=controller)
    assert not any(isinstance(module, nn.Conv2d) for module in learner.modules())
    start = learner.start(1, 5)
    assert start.cell.access.memory.shape == (1, 128, 40)
    assert start.cell.access.read_weights.shape == (1, 4, 128)
    assert start.cell.controller.hidden.shape == (1, hidden_width)
    assert start.cell.content.shape == (1, 0)  # no tied path
    shapes = {key: tuple(parameter.shape) for key, parameter in learner.named_parameters()}
    assert shapes["cell.interface.weight"] == (4 * 40 + 4, 200)  # keys and gates: no strength, no add vector
    assert shapes["output.weight"] == (5, 200 + 4 * 40)
    assert learner.cell.memory.usage_decay == 0.99
    assert learner.cell.memory.least_used == "shared"


@pytest.mark.parametrize(
    "change",
    [
        {"least_used": "per_head"},
        {"add_vector": "apart"},
        {"strength_offset": 5.0},
        {"order": "address_first"},
        {"add_vector": "apart", "tie": True},
    ],
    ids=str,
)
def test_one_departure_at_a_time_from_the_paper(change: dict[str, Any]) -> None:
    """Each changes the answers, and what results are keyed by; the paper's network keeps its key."""
    paper, changed = build("mann_paper"), MannPaper(SHAPE, 3, **change).eval()
    shared = {key: value for key, value in paper.state_dict().items() if "interface" not in key}
    keys = changed.load_state_dict(shared, strict=False)
    assert not keys.unexpected_keys
    rows = min(len(learner.cell.interface.weight) for learner in (paper, changed))
    with torch.no_grad():
        for name in ("weight", "bias"):
            ours, theirs = (getattr(learner.cell.interface, name) for learner in (changed, paper))
            ours[:rows] = theirs[:rows]
        assert not torch.allclose(changed.stream(stream_batch(2)), paper.stream(stream_batch(2)))
    told = {"controller": "lstm", "hidden_size": 200, "usage_decay": 0.99}
    assert telling_options(MannPaper, {}) == told
    assert telling_options(MannPaper, change) == told | change
