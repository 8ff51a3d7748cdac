"""Memory predicted before a run: near what runs take; refused where it does not fit; nothing is touched."""

import copy
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.speed import training_memory
from fewshot.data.image_folder import load_image_folder
from fewshot.data.split import Split
from fewshot.episodes.batch import EpisodeBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import LearnerError
from fewshot.harness import memory, system_memory
from fewshot.harness.config import TrainSettings
from fewshot.harness.memory import check_memory, predict_training_memory
from fewshot.harness.train import train
from fewshot.learners.base import Learner
from fewshot.learners.prototypical import Prototypical
from fewshot.learners.registry import build_learner

CPU = torch.device("cpu")
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def split(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_image_folder(image_folder).split("folders")


def settings(**changes: Any) -> TrainSettings:
    episodes = {"protocol": "kshot", "way": 3, "shot": 1, "query": 2}
    small = {"episodes": episodes, "batch": 2, "steps": 2, "validate_episodes": 6}
    return TrainSettings.model_validate(small | changes)


def sources(split: Split, chosen: TrainSettings) -> tuple[EpisodeSampler, EpisodeSampler]:
    protocol = chosen.episodes.build()
    return EpisodeSampler(split.train, protocol, 0), EpisodeSampler(split.val, protocol, 0)


def predicted(learner: Learner, split: Split, **changes: Any) -> int:
    chosen = settings(**changes)
    found = predict_training_memory(learner, chosen, *sources(split, chosen))
    assert found is not None
    return found


class Holds(Prototypical):
    """Holds a megabyte for each episode of a step until its gradient is computed, and uses every weight."""

    def loss(self, batch: EpisodeBatch) -> Tensor:
        episodes = len(batch.class_ids)
        weight = sum(weight.sum() for weight in self.parameters())
        held = torch.ones(episodes, MEGABYTE // 4) * weight
        return held.square().sum()


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux")
def test_predictions_are_within_a_quarter_of_what_runs_take() -> None:
    """Of sizes at which the steps, and not the libraries, decide."""
    runs = [("prototypical", 12), ("maml", 48), ("mann", 64)]
    for run, (told, taken) in zip(runs, training_memory.measure(runs), strict=True):
        assert 0.75 * taken < told < 1.25 * taken, f"{run}: predicted {told:,}, measured {taken:,}"


def test_what_grows_with_the_episodes_is_scaled_to_the_batch(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("OVERHEAD_KEPT", 1), ("OVERHEAD_KEPT_PLAIN", 1), ("OVERHEAD_RETURNED", 1)):
        monkeypatch.setattr(memory, name, value)
    for name in ("resident_bytes", "free_in_heap"):
        monkeypatch.setattr(memory, name, lambda: 0)
    learner = Holds((1, 12, 12), 3, widths=(4,))
    few, many, most = (predicted(learner, split, batch=batch) for batch in (100, 200, 400))
    # The ones, their product (saved for the square), and in the backward a gradient or two beside them.
    assert 200 * MEGABYTE <= many - few <= 500 * MEGABYTE
    assert most - many == pytest.approx(2 * (many - few), rel=0.01)


def test_the_largest_shape_counts(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    # The process as it stands, and what earlier tests left free in it, is not the matter here.
    for name in ("resident_bytes", "free_in_heap"):
        monkeypatch.setattr(memory, name, lambda: 0)

    def shapes(way: Any) -> dict[str, Any]:
        return {"protocol": "kshot", "way": way, "shot": 1, "query": 2}

    learner = Prototypical((1, 12, 12), 3, widths=(64,))
    sizes = {"batch": 16, "validate_on": shapes(3)}
    varying = predicted(learner, split, episodes=shapes((2, 4)), **sizes)
    small, large = (predicted(learner, split, episodes=shapes(way), **sizes) for way in (2, 4))
    assert small < large
    assert varying == pytest.approx(large, abs=0.1 * (large - small) + 4 * MEGABYTE)


def test_the_largest_look_counts(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resident_bytes", "free_in_heap", "unread_bytes"):
        monkeypatch.setattr(memory, name, lambda *_: 0)
    chosen = settings(validate_episodes=64)
    learner = build_learner("maml", (1, 12, 12), 3, {"widths": [64]})
    training, small = sources(split, chosen)
    large = EpisodeSampler(split.train, KShot(3, 1, 5), 0)
    told = [
        predict_training_memory(learner, chosen, training, *looks)
        for looks in ((small,), (large,), (small, large))
    ]
    assert told[0] is not None
    assert told[1] is not None
    assert told[0] < told[1] == told[2]


@pytest.mark.parametrize("name", ["prototypical", "maml", "lstm"])
def test_learner_and_random_state_stay_as_they_are(split: Split, name: str) -> None:
    torch.manual_seed(0)
    learner = build_learner(name, (1, 12, 12), 3, {"widths": [4]}).train()
    before, state = copy.deepcopy(learner.state_dict()), torch.random.get_rng_state()
    predicted(learner, split)
    assert all(torch.equal(before[key], value) for key, value in learner.state_dict().items())
    assert all(weight.grad is None for weight in learner.parameters())
    assert all(module.training for module in learner.modules())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_run_that_would_not_fit_is_refused_before_it_starts(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 10 * MEGABYTE)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 700 * MEGABYTE)
    learner = Prototypical((1, 12, 12), 3, widths=(4,))
    with pytest.raises(LearnerError) as refused:
        train(learner, split, settings(batch=50_000))
    message = str(refused.value)
    assert message.startswith("training Prototypical with 50000 episodes per step needs about ")
    assert message.endswith(
        " GB, and this process can have 0.7 GB: lower batch, or way, shot, query or length of the training "
        "episodes"
    )
    assert learner.new_score == -learner.backbone.output_size, "nothing was trained or calibrated"


def test_a_run_is_refused_where_not_even_two_episodes_fit(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Greedy(Prototypical):
        def loss(self, batch: EpisodeBatch) -> Tensor:
            held = []
            for _ in range(100):
                held.append(torch.zeros(MEGABYTE))
                made.append(1)
            return super().loss(batch)

    free = 10 * MEGABYTE
    monkeypatch.setattr(memory, "available_memory", lambda device: free)
    monkeypatch.setattr(memory, "free_in_heap", lambda: 0)
    chosen = settings(batch=1)
    with pytest.raises(LearnerError, match=r"with 1 episodes per step needs about .* lower batch"):
        check_memory(Greedy((1, 12, 12), 3, widths=(4,)), chosen, *sources(split, chosen))
    assert len(made) == 2, "broken off at the third tensor of four megabytes, before all memory is gone"


def test_what_goes_wrong_in_the_loss_is_raised_as_it_is(split: Split) -> None:
    class Failing(Prototypical):
        def loss(self, batch: EpisodeBatch) -> Tensor:
            raise RuntimeError("the learner's own")

    with pytest.raises(RuntimeError, match=r"^the learner's own$"):
        predicted(Failing((1, 12, 12), 3, widths=(4,)), split)


def test_nobody_is_refused_where_there_is_no_telling(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotToBeCopied(Prototypical):
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            raise TypeError("cannot pickle")

    chosen = settings(batch=10**9)
    monkeypatch.setattr(memory, "available_memory", lambda device: 0)
    check_memory(NotToBeCopied((1, 12, 12), 3, widths=(4,)), chosen, *sources(split, chosen))
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    check_memory(Prototypical((1, 12, 12), 3, widths=(4,)), chosen, *sources(split, chosen))


# --- The system's numbers -----------------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a file of a system of the test's own, which has no others."""
    monkeypatch.setattr(system_memory, "Path", lambda path: tmp_path / str(path).lstrip("/"))

    def write(path: str, text: str) -> None:
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


def test_where_the_system_does_not_say_there_is_no_telling(system: Callable[[str, str], None]) -> None:
    assert system_memory.available_memory(CPU) is None
    assert system_memory.resident_bytes() == 0
    assert system_memory.unread_bytes(torch.zeros(2)) == 0


def test_what_linux_calls_available(system: Callable[[str, str], None]) -> None:
    system("/proc/meminfo", "MemTotal:       2000 kB\nMemFree:  10 kB\nMemAvailable:    1500 kB\n")
    assert system_memory.available_memory(CPU) == 1500 * 1024


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/jobs/one\n", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:cpu,cpuacct:/\n4:memory:/jobs/one\n0::/\n",
            "/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_the_tightest_control_group_counts_and_its_cache_does_not(
    system: Callable[[str, str], None], line: str, folder: str, names: tuple[str, str, str]
) -> None:
    limit, usage, cache = names
    system("/proc/meminfo", "MemAvailable:    1500 kB\n")
    system("/proc/self/cgroup", line)
    for group, most, used, cached in (
        ("/jobs/one", "max", "400000", "0"),
        ("/jobs", "900000", "500000", "100000"),
        ("", "1000000", "100000", "0"),
    ):
        place = f"/sys/fs/cgroup{folder}{group}"
        system(f"{place}/{limit}", f"{most}\n")
        system(f"{place}/{usage}", f"{used}\n")
        system(f"{place}/memory.stat", f"anon 5\n{cache} {cached}\n")
    assert system_memory.available_memory(CPU) == 900000 - 500000 + 100000


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux")
def test_memory_in_use_is_resident() -> None:
    before = system_memory.resident_bytes()
    # Pages of its own: what is allocated may lie in memory that the process kept.
    with mmap.mmap(-1, 50 * MEGABYTE) as held:
        held.write(b"1" * (50 * MEGABYTE))
        assert system_memory.resident_bytes() - before > 30 * MEGABYTE
    assert system_memory.unread_bytes(torch.ones(4)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from Linux")
def test_a_mapped_file_is_unread_until_it_is_read(tmp_path: Path) -> None:
    size = 8 * MEGABYTE
    path = tmp_path / "images"
    path.write_bytes(bytes(size))
    mapped = torch.from_file(str(path), size=size, dtype=torch.uint8)
    assert system_memory.unread_bytes(mapped) > 0.7 * size
    assert mapped.sum() == 0
    assert system_memory.unread_bytes(mapped) < 0.1 * size
