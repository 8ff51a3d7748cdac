"""Training: bit for bit repeatable, goes on after a kill, selects on validation classes, never sees test."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from fewshot.data.image_folder import load_image_folder
from fewshot.data.split import Split
from fewshot.episodes.batch import EpisodeBatch, StreamBatch, with_images
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import EpisodeError, FewshotError, LearnerError
from fewshot.harness import train as training
from fewshot.harness.config import TrainSettings
from fewshot.harness.evaluate import Evaluation, evaluate
from fewshot.harness.train import (
    CALIBRATION_EPISODES,
    Progress,
    TrainLog,
    calibrate,
    check_askable,
    draw_rows,
    draws_digest,
    learning_rate,
    train,
    training_protocol,
    validation_protocol,
)
from fewshot.learners.base import Learner
from fewshot.learners.baseline import Baseline
from fewshot.learners.prototypical import Prototypical
from fewshot.learners.registry import build_learner

KSHOT = {"protocol": "kshot", "way": 3, "shot": 1, "query": 2}
STREAM = {"protocol": "stream", "way": 3, "length": 9}
GROWN = {"protocol": "stream", "way": 4, "length": 12, "labels": "string"}
STEPS = 8


class Noisy(Prototypical):
    """Draws from torch's random state in its loss, as dropout does."""

    def loss(self, batch: EpisodeBatch) -> Tensor:
        return super().loss(batch._replace(query_images=F.dropout(batch.query_images, 0.3)))


class Broken(Prototypical):
    def loss(self, batch: EpisodeBatch) -> Tensor:
        return super().loss(batch) * torch.nan


@pytest.fixture(scope="module")
def split(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_image_folder(image_folder).split("folders")


def settings(**changes: Any) -> TrainSettings:
    small = {"episodes": KSHOT, "batch": 2, "steps": STEPS, "validate_every": 4, "validate_episodes": 6}
    return TrainSettings.model_validate(small | changes)


def fresh(name: str, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    makers: dict[str, Callable[[], Learner]] = {
        "noisy": lambda: Noisy((1, 12, 12), 3, widths=(4, 4)),
        "prototypical": lambda: Prototypical((1, 12, 12), 3, widths=(4, 4)),
        "lstm": lambda: build_learner(
            "lstm", (1, 12, 12), 3, {"widths": [4], "embedding_size": 6, "hidden_size": 6}
        ),
        "maml": lambda: build_learner("maml", (1, 12, 12), 3, {"widths": [4, 4]}),
        "strings": lambda: build_learner(
            "lstm", (1, 12, 12), 3, {"widths": [4], "embedding_size": 6, "hidden_size": 6, "labels": "string"}
        ),
    }
    return makers[name]()


def outcome(learner: Learner, log: TrainLog) -> list[Any]:
    """All that a run gives but its wall-clock time."""
    weights = {name: value.tolist() for name, value in learner.state_dict().items()}
    curve = [(*row[:2], *row[3:]) for row in log.curve]
    draws = {side: counts.tolist() for side, counts in log.draws.items()}
    return [weights, curve, draws, log.best_step, log.best_accuracy]


class KilledError(Exception):
    """Raised in place of a process's end."""


def kill_at(step: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise KilledError

    return stop


RUNS = pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("noisy", {}),
        ("lstm", {"episodes": STREAM, "optimizer": "rmsprop"}),
        ("noisy", {"optimizer": "sgd", "weight_decay": 1e-3, "learning_rate": 0.01}),
        ("maml", {"augment": {"angle_degrees": 5.0}, "validate_on": KSHOT | {"way": 3, "shot": 2}}),
        ("lstm", {"episodes": STREAM, "generations": 2}),
        ("strings", {"episodes": GROWN, "curriculum": {"first_way": 2, "every": 3}, "watch_training": True}),
    ],
)


@RUNS
def test_the_same_run_twice_is_the_same_bit_for_bit(split: Split, name: str, changes: dict[str, Any]) -> None:
    results = []
    for clutter in range(2):
        learner = fresh(name)
        torch.rand(clutter * 7)  # what was drawn before does not matter
        results.append(outcome(learner, train(learner, split, settings(**changes))))
    assert results[0] == results[1]


def test_another_train_seed_is_another_run(split: Split) -> None:
    learners = [fresh("prototypical") for _ in range(2)]
    logs = [train(learner, split, settings(), train_seed=seed) for seed, learner in enumerate(learners)]
    assert outcome(learners[0], logs[0])[0] != outcome(learners[1], logs[1])[0]


def test_the_callers_random_state_is_left_alone(split: Split) -> None:
    learner = fresh("noisy")
    before = torch.get_rng_state()
    train(learner, split, settings(steps=2))
    assert torch.equal(torch.get_rng_state(), before)


@RUNS
@pytest.mark.parametrize("step", [1, 4, 7, STEPS])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: dict[str, Any],
    step: int,
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY_STEPS", 1)
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    whole = fresh(name)
    uninterrupted = outcome(whole, train(whole, split, settings(**changes)))

    path = tmp_path / "runs" / "run.state"
    with pytest.raises(KilledError):
        train(fresh(name), split, settings(**changes), state_path=path, on_progress=kill_at(step))
    seen: list[int] = []
    other = fresh(name, seed=1)  # its own weights do not matter: those of the file do
    log = train(
        other, split, settings(**changes), state_path=path, on_progress=lambda now: seen.append(now.step)
    )
    assert seen == list(range(step + 1, STEPS + 1))
    assert outcome(other, log) == uninterrupted
    assert [file.name for file in path.parent.iterdir()] == ["run.state"]


@RUNS
def test_with_two_threads_a_run_repeats_and_goes_on_too(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]
) -> None:
    """Two threads share the sums of a step, and batches are made in the background."""
    monkeypatch.setattr(training, "LOG_EVERY_STEPS", 1)
    path = tmp_path / "run.state"
    torch.set_num_threads(2)
    try:
        results = []
        for _ in range(2):
            learner = fresh(name)
            results.append(outcome(learner, train(learner, split, settings(**changes))))
        with pytest.raises(KilledError):
            train(fresh(name), split, settings(**changes), state_path=path, on_progress=kill_at(5))
        learner = fresh(name, seed=1)
        results.append(outcome(learner, train(learner, split, settings(**changes), state_path=path)))
    finally:
        torch.set_num_threads(1)
    assert results[1] == results[0]
    assert results[2] == results[0]


def test_between_two_saves_a_killed_run_goes_back_to_the_last(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY_STEPS", 1)
    whole = fresh("noisy")
    uninterrupted = outcome(whole, train(whole, split, settings()))
    path = tmp_path / "run.state"
    with pytest.raises(KilledError):  # saved at the validation of step 4 only: half a minute has not gone by
        train(fresh("noisy"), split, settings(), state_path=path, on_progress=kill_at(6))
    seen: list[int] = []
    learner = fresh("noisy")
    log = train(learner, split, settings(), state_path=path, on_progress=lambda now: seen.append(now.step))
    assert seen[0] == 5
    assert outcome(learner, log) == uninterrupted


def test_a_run_saved_before_a_column_was_added_goes_on(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    path = tmp_path / "run.state"
    with pytest.raises(KilledError):
        train(fresh("lstm"), split, settings(episodes=STREAM), state_path=path, on_progress=kill_at(4))
    state = torch.load(path, weights_only=True)
    ((*older, second, watched),) = state["log"]["curve"]
    assert second is not None
    assert watched is None
    state["log"]["curve"] = [tuple(older)]
    torch.save(state, path)
    log = train(fresh("lstm"), split, settings(episodes=STREAM), state_path=path)
    assert [row.val_second is None for row in log.curve] == [True, False]


def test_a_run_that_goes_on_elsewhere_says_where_it_was(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    path = tmp_path / "run.state"
    with pytest.raises(KilledError):
        train(fresh("prototypical"), split, settings(), state_path=path, on_progress=kill_at(4))
    state = torch.load(path, weights_only=True)
    assert state["log"]["devices"] == ["cpu"]
    state["log"]["devices"] = ["NVIDIA H100"]
    torch.save(state, path)
    log = train(fresh("prototypical"), split, settings(), state_path=path)
    assert log.devices == ["NVIDIA H100", "cpu"]


def test_the_second_presentation_is_looked_at_where_there_is_one(split: Split) -> None:
    seen: list[Evaluation] = []
    chosen = settings(validate_on=STREAM)
    log = train(fresh("prototypical"), split, chosen, stop_when=lambda look: bool(seen.append(look)))  # type: ignore[func-returns-value]
    assert [row.val_second for row in log.curve] == [look.accuracy_by_instance[2] for look in seen]
    assert [row.val_accuracy for row in log.curve] == [look.accuracy for look in seen]
    log = train(fresh("prototypical"), split, settings())
    assert {row.val_second for row in log.curve} == {None}


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_state_is_refused_in_one_line(split: Split, tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "run.state"
    train(fresh("prototypical"), split, settings(steps=1), state_path=path)
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(
        LearnerError, match=r"^cannot go on from \S+run.state \([^\n]+\): delete it to train afresh$"
    ):
        train(fresh("prototypical"), split, settings(steps=1), state_path=path)


def test_the_state_of_another_learner_is_refused(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "run.state"
    train(fresh("prototypical"), split, settings(steps=1), state_path=path)
    with pytest.raises(LearnerError, match=r"^cannot go on from [^\n]+$"):
        train(fresh("lstm"), split, settings(steps=1), state_path=path)


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.2, 0.9, 0.5, 0.9], 1), ([0.1, 0.2, 0.3, 0.4], 3), ([0.0] * 4, 0)]
)
def test_the_weights_of_the_best_look_at_validation_are_kept(
    split: Split, monkeypatch: pytest.MonkeyPatch, accuracies: list[float], best: int
) -> None:
    looks: list[dict[str, Tensor]] = []
    pools: list[str] = []

    def scripted(learner: Learner, source: Any, episodes: int) -> Any:
        assert episodes == 6
        pools.append(source.pool.side)
        looks.append({name: value.clone() for name, value in learner.state_dict().items()})
        return SimpleNamespace(accuracy=accuracies[len(looks) - 1], accuracy_by_instance={}, ci95=None)

    monkeypatch.setattr(training, "evaluate", scripted)
    learner = fresh("prototypical")
    log = train(learner, split, settings(validate_every=2))
    assert pools == ["val"] * 4
    assert (log.best_step, log.best_accuracy) == (2 * (best + 1), accuracies[best])
    assert [row.val_accuracy for row in log.curve] == accuracies
    assert not learner.training
    kept = {name: value.clone() for name, value in learner.state_dict().items() if name != "new_score"}
    assert all(torch.equal(value, looks[best][name]) for name, value in kept.items())
    assert not all(torch.equal(value, looks[best - 1][name]) for name, value in kept.items())


@pytest.mark.parametrize("rotations", [True, False])
def test_training_draws_train_and_validation_classes_and_logs_each(split: Split, rotations: bool) -> None:
    without_test = dataclasses.replace(split, test=None)  # type: ignore[arg-type]
    chosen = settings(rotations=rotations)
    log = train(fresh("prototypical"), without_test, chosen)
    rows = draw_rows(log, without_test, chosen)
    drawn = {side: sum(count for row_side, _, count in rows if row_side == side) for side in ("train", "val")}
    calibrated = CALIBRATION_EPISODES * len(split.val)  # of a way of at most five classes
    assert drawn == {"train": STEPS * 2 * 3, "val": STEPS // 4 * 6 * 3 + calibrated}
    assert all(name.partition("/")[0] == side for side, name, _ in rows)
    assert any("@" in name for _, name, _ in rows) is rotations
    assert len({(side, name) for side, name, _ in rows}) == len(rows)


@pytest.mark.parametrize("rotations", [True, False])
def test_training_classes_may_be_watched(split: Split, rotations: bool) -> None:
    """Their episodes are of the validation's protocol and undistorted, whatever training makes of them."""
    changes = {"rotations": rotations, "augment": {"shift": 0.5}, "validate_on": KSHOT | {"query": 3}}
    chosen = settings(**changes, watch_training=True)
    unwatched, watched = fresh("prototypical"), fresh("prototypical")
    before, log = train(unwatched, split, settings(**changes)), train(watched, split, chosen)
    plain, told = outcome(unwatched, before), outcome(watched, log)
    assert told[0] == plain[0], "the weights do not come out otherwise"
    assert [row._replace(seconds=0.0, train_accuracy=None) for row in log.curve] == [
        row._replace(seconds=0.0) for row in before.curve
    ]
    assert {row.train_accuracy for row in before.curve} == {None}
    assert [row.step for row in log.curve if row.train_accuracy is not None] == [4, 8]
    pool = split.train.with_rotations() if rotations else split.train
    sampler = EpisodeSampler(pool, validation_protocol(chosen), training._WATCHED_SEED)
    kept = next(row for row in log.curve if row.step == log.best_step)
    assert evaluate(watched, sampler, 6).accuracy == kept.train_accuracy
    more = {side: int((log.draws[side] - before.draws[side]).sum()) for side in log.draws}
    assert more == {"train": 2 * 6 * 3, "val": 0}, "what is watched is drawn, and logged"


def test_the_digest_of_the_draws_is_that_of_every_row() -> None:
    rows = [("train", "a", 3), ("val", "b", 1)]
    assert draws_digest(rows) == draws_digest(list(rows))
    assert len({draws_digest(rows), draws_digest(rows[:1]), draws_digest([*rows[:1], ("test", "b", 1)])}) == 3


def test_training_stops_when_that_is_enough(split: Split) -> None:
    asked: list[float] = []

    def enough(evaluation: Evaluation) -> bool:
        asked.append(evaluation.accuracy)
        return len(asked) == 2

    log = train(fresh("noisy"), split, settings(steps=50, validate_every=3), stop_when=enough)
    assert [row.step for row in log.curve if row.val_accuracy is not None] == [3, 6]
    assert log.best_accuracy == max(asked)


def test_divergence_is_one_clear_line(split: Split) -> None:
    with pytest.raises(
        LearnerError, match=r"^training of Broken diverged by step \d+ \(loss nan\): lower learning_rate"
    ):
        train(Broken((1, 12, 12), 3, widths=(4,)), split, settings())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"episodes": KSHOT | {"way": 40}}, "40-way needs 40 classes; patterns/folders/train has 32"),
        ({"episodes": KSHOT | {"shot": 7}}, "7-shot with 2 queries needs 9"),
        ({"validate_on": KSHOT | {"way": 17}}, "17-way needs 17 classes; patterns/folders/val has 16"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused_at_once(
    split: Split, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(EpisodeError) as caught:
        train(fresh("prototypical"), split, settings(**changes))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learner": "prototypical"}, "learner should be of the type Learner; got a str: give an instance"),
        ({"split": "folders"}, "split should be of the type Split; got a str: give one, as fewshot.load_"),
        (
            {"settings": {"steps": 3}},
            "settings should be of the type TrainSettings; got a dict: give them as",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(split: Split, change: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"learner": fresh("prototypical"), "split": split, "settings": settings()}
    with pytest.raises(FewshotError) as caught:
        train(**given | change)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("name", "options", "episodes"),
    [
        ("prototypical", {"backbone": {"averaged": True}}, KSHOT),
        ("baseline", {"backbone": {"averaged": True}, "classes": 64}, KSHOT),
        ("maml", {"averaged": True}, KSHOT),
        ("mann", {"backbone": {"averaged": True}}, STREAM),
    ],
)
def test_a_learner_of_averaged_maps_is_trained_on_windows(
    split: Split, name: str, options: dict[str, Any], episodes: dict[str, Any]
) -> None:
    learner = build_learner(name, (1, 12, 12), 3, {"widths": [4, 4]} | options)
    seen: list[tuple[int, ...]] = []
    asked = learner.loss

    def loss(batch: EpisodeBatch) -> Tensor:
        with_images(batch, lambda images: seen.append(tuple(images.shape[-2:])) or images)
        return asked(batch)

    learner.loss = loss  # type: ignore[method-assign]
    log = train(learner, split, settings(episodes=episodes, augment={"crop": 7}))
    assert log.best_step
    assert set(seen) == {(7, 7)}


def test_whole_images_alone_are_answered_and_are_those_that_a_learner_is_built_for(split: Split) -> None:
    """Also by one that is in training mode and could be trained on windows."""
    learner = build_learner("prototypical", (1, 16, 16), 3, {"backbone": {"averaged": True}}).train()
    episodes = EpisodeSampler(split.val, KShot(way=3, shot=1, query=2), 0)
    for ask in (
        lambda: train(learner, split, settings()),
        lambda: calibrate(learner, split),
        lambda: evaluate(learner, episodes, 2),
    ):
        with pytest.raises(LearnerError, match=r"reads images of .* \(1, 16, 16\) .*; got \(1, 12, 12\)"):
            ask()
    learner.check_images((1, 12, 9), windows=True)
    for shape in ((1, 17, 16), (1, 7, 12), (3, 12, 12), (12, 12)):
        with pytest.raises(LearnerError, match="reads images of"):
            learner.check_images(shape, windows=True)


def test_windows_are_refused_by_a_learner_of_one_size_and_where_they_do_not_fit(split: Split) -> None:
    averaged = build_learner("prototypical", (1, 12, 12), 3, {"backbone": {"averaged": True}})
    for learner, crop, says in (
        (fresh("prototypical"), 7, "Prototypical reads whole images .* leave out augment's crop"),
        (averaged, 7, "windows of 8 pixels and more; got crop 7"),
        (averaged, 13, "crop of 13 pixels does not fit images of 12x12"),
    ):
        with pytest.raises(FewshotError, match=says):
            check_askable(learner, split, settings(augment={"crop": crop}))


def test_too_few_upright_classes_to_calibrate_with_are_refused_at_once(split: Split) -> None:
    """With turned ones there would be enough for validation, and only the end would fail."""
    few = len(split.val)
    learner = build_learner(
        "lstm", split.train.image_set.image_shape, few + 1, {"widths": [4], "hidden_size": 4}
    )
    streams = {"protocol": "stream", "way": few + 1, "length": few + 1}
    with pytest.raises(EpisodeError, match=rf"has {few} upright ones for validation: lower way to {few}"):
        train(learner, split, settings(episodes=streams, rotations=True))


def test_one_class_for_validation_is_refused_as_such(split: Split) -> None:
    """And not as a way of one, which nobody asked for."""
    val = split.val
    alone = dataclasses.replace(val, class_index=val.class_index[:1], quarter_turns=val.quarter_turns[:1])
    with pytest.raises(EpisodeError, match="has 1 upright class for validation, where there is nothing to"):
        train(fresh("noisy"), dataclasses.replace(split, val=alone), settings())


def test_way_and_shot_may_vary_between_batches(split: Split) -> None:
    ways = set()

    class Watched(Prototypical):
        def loss(self, batch: EpisodeBatch) -> Tensor:
            ways.add(batch.way)
            return super().loss(batch)

    train(
        Watched((1, 12, 12), 4, widths=(4,)),
        split,
        settings(episodes=KSHOT | {"way": [2, 4], "shot": [1, 3]}, batch=3, steps=12, validate_episodes=40),
    )
    assert ways == {2, 3, 4}


def test_a_curriculum_adds_a_class_every_so_many_steps(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted: list[Any] = []
    monkeypatch.setattr(training, "check_memory", lambda *given: predicted.append(given[2].protocol.way))
    chosen = settings(episodes=GROWN, curriculum={"first_way": 2, "every": 3})
    learner = fresh("strings")
    shown: list[tuple[int, int]] = []
    loss = learner.loss

    def watched(batch: EpisodeBatch) -> Tensor:
        assert isinstance(batch, StreamBatch)
        shown.append((batch.way, batch.labels.shape[1]))
        return loss(batch)

    learner.loss = watched  # type: ignore[method-assign]
    log = train(learner, split, chosen)
    assert shown == [(2, 6)] * 3 + [(3, 9)] * 3 + [(4, 12)] * 2
    assert predicted == [4], "the largest stage says what memory the run takes"
    assert int(log.draws["train"].sum()) == 2 * (3 * 2 + 3 * 3 + 2 * 4), "of two episodes a step"
    assert int(log.draws["val"].sum()) == 2 * 6 * 4 + CALIBRATION_EPISODES * 4, "of validation's full way"
    assert [training_protocol(chosen, step).way for step in (0, 5, 6, 10**6)] == [2, 3, 4, 4]


def test_a_stage_has_episodes_of_its_own_that_the_step_decides(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a run without a curriculum would be shown at that step, if its episodes were of that way."""
    monkeypatch.setattr(training, "check_memory", lambda *given: None)
    shown: dict[str, list[Tensor]] = {"grown": [], "third": []}
    for kind, changes in (
        ("grown", {"episodes": GROWN, "curriculum": {"first_way": 2, "every": 3}}),
        ("third", {"episodes": GROWN | {"way": 3, "length": 9}}),
    ):
        learner = fresh("strings")
        loss = learner.loss

        def watched(batch: EpisodeBatch, kind: str = kind, loss: Any = loss) -> Any:
            shown[kind].append(batch.class_ids)
            return loss(batch)

        learner.loss = watched  # type: ignore[method-assign]
        train(learner, split, settings(**changes))
    assert all(torch.equal(*pair) for pair in zip(shown["grown"][3:6], shown["third"][3:6], strict=True))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"episodes": KSHOT}, "a curriculum leads to streams"),
        ({"episodes": GROWN | {"counts": "random", "length": 13}}, "a length that their way divides"),
        ({"episodes": GROWN | {"way": 3, "length": 9}, "curriculum": {"first_way": 4}}, "lower first_way"),
    ],
)
def test_a_curriculum_that_leads_nowhere_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(**{"curriculum": {"first_way": 2}} | changes)


def test_who_is_bound_to_a_way_does_not_grow(split: Split) -> None:
    chosen = settings(episodes=STREAM, curriculum={"first_way": 2, "every": 3})
    with pytest.raises(LearnerError, match=r"^Lstm answers only 3-way episodes and cannot grow [^\n]+$"):
        train(fresh("lstm"), split, chosen)


def test_a_generation_keeps_the_network_and_begins_all_else_afresh(split: Split) -> None:
    """Seen before each update of two generations of four: the head of the first is that of the fifth."""
    seen: list[dict[str, Tensor]] = []

    class Watched(Baseline):
        def loss(self, batch: EpisodeBatch) -> Tensor:
            if self.training:
                seen.append({name: value.detach().clone() for name, value in self.state_dict().items()})
            return super().loss(batch)

    torch.manual_seed(0)
    learner = Watched((1, 12, 12), 3, widths=(4, 4), classes=40)
    optimizers = []
    with pytest.MonkeyPatch.context() as patch:
        make = training.make_optimizer
        patch.setattr(training, "make_optimizer", lambda *of: optimizers.append(make(*of)) or optimizers[-1])
        train(learner, split, settings(generations=2))
    seen = seen[-STEPS:]  # without a look at what memory it takes
    first, last, second = seen[0], seen[3], seen[4]
    assert len(optimizers) == 2
    for name in first:
        kept = name.startswith("backbone.")
        assert torch.equal(second[name], first[name]) != kept, name
    moved = (second["backbone.blocks.0.0.weight"] - last["backbone.blocks.0.0.weight"]).abs().max()
    assert 0 < moved < 2 * settings().learning_rate, "one update, no more"


@pytest.mark.parametrize(
    ("optimizer", "moved"),
    [
        ("sgd", 0.5 * (0.1 + 0.9 * 0.1)),  # Nesterov's first step: the gradient, and the momentum of it
        ("adam", 0.5),  # a rate, whatever the size
        ("rmsprop", 0.5 / 0.05**0.5),
    ],
)
def test_weights_decay_by_a_part_of_themselves(optimizer: str, moved: float) -> None:
    """A weight of 1 with a gradient of 0, and a decay of 0.1, moves as by a gradient of 0.1."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    asked = settings(optimizer=optimizer, learning_rate=0.5, weight_decay=0.1)
    network.weight.grad = torch.zeros(1, 1)
    training.make_optimizer(network, asked).step()
    assert network.weight.item() == pytest.approx(1 - moved, abs=1e-5)


def test_a_decay_below_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        settings(weight_decay=-1.0)


def test_on_a_cpu_compiled_trains_the_same(split: Split) -> None:
    learners = [fresh("prototypical") for _ in range(2)]
    runs = zip(learners, (False, True), strict=True)
    results = [
        outcome(learner, train(learner, split, settings(compiled=compiled))) for learner, compiled in runs
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 8, "generations": 3}, "8 steps do not fall into 3 equal generations: give a multiple"),
        (
            {"episodes": GROWN, "curriculum": {"first_way": 2}, "generations": 2},
            "a curriculum grows once: leave out generations",
        ),
    ],
)
def test_generations_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(**changes)


def test_without_a_network_of_images_there_is_one_generation(split: Split) -> None:
    learner = build_learner("lstm", (1, 12, 12), 3, {"widths": [], "hidden_size": 4})
    with pytest.raises(LearnerError, match="Lstm has no network of images to begin with or to keep: leave"):
        train(learner, split, settings(episodes=STREAM, generations=2))


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    constant, cosine = (settings(schedule=schedule, steps=100) for schedule in ("constant", "cosine"))
    assert {learning_rate(constant, step) for step in range(100)} == {constant.learning_rate}
    rates = [learning_rate(cosine, step) for step in range(101)]
    assert rates[0] == cosine.learning_rate
    assert rates[50] == pytest.approx(0.505 * cosine.learning_rate)
    assert rates[100] == pytest.approx(0.01 * cosine.learning_rate)
    assert rates == sorted(rates, reverse=True)
    again = settings(steps=200, generations=2)
    assert [learning_rate(again, step) for step in range(200)] == 2 * rates[:100]


def test_calibration_sets_the_new_score_from_validation_streams(split: Split) -> None:
    learner = build_learner("nearest_neighbour", (1, 12, 12), 3)
    without_others = dataclasses.replace(split, train=None, test=None)  # type: ignore[arg-type]
    calibrate(learner, without_others)
    first = float(learner.new_score)
    assert first < 0
    log = TrainLog()
    calibrate(learner, without_others, log)
    assert float(learner.new_score) == first
    assert {side: int(counts.sum()) for side, counts in log.draws.items()} == {
        "val": CALIBRATION_EPISODES * 4
    }


def test_training_ends_with_calibration(split: Split) -> None:
    learner = fresh("prototypical")
    train(learner, split, settings(steps=1))
    trained = float(learner.new_score)
    assert trained != float(fresh("prototypical").new_score)
    calibrate(learner, split)
    assert float(learner.new_score) == trained


def test_there_must_be_something_to_train(split: Split) -> None:
    with pytest.raises(LearnerError, match=r"^NearestNeighbour has nothing to train: use fewshot.calibrate$"):
        train(build_learner("nearest_neighbour", (1, 12, 12), 3), split, settings())
