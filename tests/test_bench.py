"""`fewshot bench`: what it writes and prints, and that a peer which cannot be had leaves empty cells.

How fast anything is, is no test's business.
"""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.speed import __main__ as bench
from benchmarks.speed import cost, peers, plots, sparse_step, time_to_accuracy
from benchmarks.speed.cost import Cost
from benchmarks.speed.dnc_step import Network, interface_rows, peer_weights
from benchmarks.speed.evaluation import class_by_class
from benchmarks.speed.lrua_step import plain_weights
from benchmarks.speed.measure import COLUMNS, Rounds, Row, interleave, to_csv
from benchmarks.speed.peer_worker import conv4
from benchmarks.speed.peers import CHECKOUT, PeerEnvironment, PeerError, Worker, peer_environment
from benchmarks.speed.plots import plot_costs
from benchmarks.speed.prototypical_step import block_weights
from benchmarks.speed.setting import CHECKPOINTS, Place, Setting, pool_rows
from benchmarks.speed.steps import compare_step, operations, training_step
from benchmarks.speed.table import to_text
from fewshot.data.image_folder import load_image_folder
from fewshot.episodes.batch import StreamBatch
from fewshot.episodes.protocol import KShot, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.source import presentation
from fewshot.errors import RecordError
from fewshot.harness.bench import run_bench
from fewshot.learners.mann import Mann
from fewshot.learners.mann_paper import MannPaper
from fewshot.learners.prototypical import Prototypical
from fewshot.memory.search import ExactSearch

FAST = Row("episodes_5w1s", "cpu, 1 thread", "episodes/s", 4000.0, "learn2learn", 1000.0, 5000.0)
SLOW = Row("maml_step", "cpu, 2 threads", "ms", 250.0, "learn2learn", 1000.0, 200.0, "first losses agree")
ABSENT = Row(
    "episodes_5w1s", "cpu, 1 thread", "episodes/s", 4000.0, "torchmeta", None, 5000.0, "it is not there"
)


@pytest.fixture
def setting(image_folder: Path, tmp_path: Path) -> Setting:
    """A small image folder, and no peer at all."""
    nothing = PeerEnvironment(None, dict.fromkeys(peers.VERSIONS, "no network"))
    return Setting(quick=True, peers=nothing, folder=tmp_path, images=load_image_folder(image_folder, 12))


# --- What is written and printed ----------------------------------------------------------------------------


def test_the_columns_of_speed_csv_are_these() -> None:
    first, *rows = to_csv([FAST, ABSENT, SLOW]).splitlines()
    assert first == "measure,device,ours,unit,peer,peer_value,ratio_to_peer,limit,fraction_of_limit"
    assert rows == [
        'episodes_5w1s,"cpu, 1 thread",4000,episodes/s,learn2learn,1000,4,5000,0.8',
        'episodes_5w1s,"cpu, 1 thread",4000,episodes/s,torchmeta,,,5000,0.8',
        'maml_step,"cpu, 2 threads",250,ms,learn2learn,1000,4,200,0.8',
    ]


def test_the_weights_that_are_measured_are_recorded() -> None:
    for learners in CHECKPOINTS.values():
        for learner, folder in learners.items():
            assert (CHECKOUT / folder / "checkpoints" / f"{learner}-0.safetensors").is_file(), folder


def test_a_figure_keeps_its_digits_whatever_its_size() -> None:
    for value in (0.00012345678, 1.5, 81214.3, 1234567.0):
        (line,) = csv.DictReader(io.StringIO(to_csv([Row("help", "cpu, 1 thread", "s", value)])))
        assert float(line["ours"]) == pytest.approx(value, rel=1e-3)
        assert set(line) == set(COLUMNS)


def test_the_table_names_each_device_once_and_fits_a_terminal() -> None:
    text = to_text([FAST, ABSENT, SLOW])
    assert text.count("cpu, 1 thread ") == 1
    assert max(map(len, text.splitlines())) <= 100
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["episodes_5w1s"].split() == [
        "episodes_5w1s", "learn2learn", "4,000", "/s", "1,000", "/s", "4.00×", "5,000", "/s", "80%",
    ]  # fmt: skip
    assert lines["torchmeta"].split() == ["torchmeta"]
    assert "episodes_5w1s, cpu, 1 thread: it is not there" in text


def test_a_plot_is_drawn_for_each_axis_that_was_measured(tmp_path: Path) -> None:
    costs = [Cost("length", length, "mann_paper", 2.0 * length) for length in (10, 50)]
    (path,) = plot_costs(costs, tmp_path, "a machine")
    assert path.name == "cost_by_length.png"
    with Image.open(path) as picture:
        assert picture.size[0] > 600


def test_every_axis_of_the_cost_is_measured_and_explained(setting: Setting) -> None:
    measured = [(axis, method) for axis, method, *_ in cost._curves(setting)]
    assert {axis for axis, _ in measured} == {*get_args(cost.Axis)} == cost.HELD.keys() == plots.LABELS.keys()
    assert {method for _, method in measured} == plots.METHODS.keys()
    assert {("length", "mann_paper"), ("slots", "mann")} < {*measured}


def test_a_run_writes_the_figures_and_the_machine(
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "peer_environment", lambda: setting.peers)
    monkeypatch.setattr(bench, "images_at_hand", lambda: setting.images)
    monkeypatch.setattr(bench, "STAGES", (bench.Stage("first", lambda _: [FAST, ABSENT], 1, 1),))
    bench.run(tmp_path / "out", quick=True, names=["first"])
    assert (tmp_path / "out" / "speed.csv").read_text() == to_csv([FAST, ABSENT])
    facts = json.loads((tmp_path / "out" / "machine.json").read_text())
    assert facts["quick"] is True
    assert facts["machine"]["cores"] >= 1
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "learn2learn" not in facts["versions"]
    assert facts["notes"] == ["episodes_5w1s, cpu, 1 thread: it is not there"]
    printed = capsys.readouterr()
    assert str(tmp_path / "out") in printed.out
    assert "first (1 of 1)" in printed.err


def test_outside_of_a_checkout_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="needs benchmarks/speed of the source checkout"):
        run_bench(tmp_path / "out", quick=True, checkout=tmp_path)
    assert not (tmp_path / "out").exists()


def test_without_omniglot_the_time_to_an_accuracy_is_empty_and_says_why(setting: Setting) -> None:
    rows = time_to_accuracy.measure(setting)
    assert [row.measure for row in rows] == [
        "time_to_828_mann",
        "time_to_95_mann",
        "time_to_975_prototypical",
    ]
    assert all(row.ours is None and row.note for row in rows)


# --- How it is measured -------------------------------------------------------------------------------------


def test_sides_take_turns_and_the_median_is_of_one_piece_of_work() -> None:
    turns: list[str] = []

    def side(name: str, seconds: list[float]) -> Callable[[int], float]:
        def work(count: int) -> float:
            turns.append(name)
            return count * seconds.pop(0)

        return work

    slow, quick = [1.0, 3.0, 2.0, 9.0], [0.05, 0.05, 0.06, 0.07, 0.08]
    found = interleave({"slow": side("slow", slow), "quick": side("quick", quick)}, Rounds(3, 0.2))
    assert turns == ["slow", "quick", "quick", *["slow", "quick"] * 3]
    assert found == {"slow": pytest.approx(3.0), "quick": pytest.approx(0.07)}


def test_operations_are_those_of_the_plain_path() -> None:
    weight = torch.randn(8, 5, requires_grad=True)
    assert operations(lambda: (torch.randn(3, 8) @ weight).sum().backward()) == 2 * (2 * 3 * 8 * 5)


def test_an_absent_peer_leaves_its_cell_empty_and_says_why(setting: Setting) -> None:
    def nobody() -> Worker:
        return Worker(setting.peers.interpreter("learn2learn"), "learn2learn_maml", {})

    row = compare_step(
        setting, "maml_step", Place("cpu"), lambda: torch.zeros(()), 10, "learn2learn", nobody, 1e-5
    )
    assert row.peer == "learn2learn"
    assert row.peer_value is None
    assert row.ratio_to_peer is None
    assert row.ours is not None
    assert row.limit is not None
    assert row.note == "learn2learn: it could not be installed"


def test_a_peer_works_in_its_own_process_from_the_same_weights(setting: Setting) -> None:
    torch.manual_seed(0)
    learner = MannPaper((1, 3, 3), 3)
    images, labels = torch.rand(2, 6, 1, 3, 3), torch.randint(0, 3, (2, 6))
    batch = StreamBatch(images, labels, presentation(labels, 3), torch.zeros(2, 3, dtype=torch.int64), 3)
    path = setting.folder / "step.pt"
    given = {"weights": plain_weights(learner), "images": images.flatten(2), "labels": labels}
    torch.save(given, path)
    row = compare_step(
        setting,
        "lrua_step",
        Place("cpu"),
        training_step(learner, batch),
        10,
        "eager step",
        lambda: Worker(
            Path(sys.executable),
            "plain_lrua",
            {"step": str(path), "threads": 1, "device": "cpu", "cosine": "library"},
        ),
        1e-5,
    )
    assert "first losses differ by" in row.note
    assert row.peer_value is not None
    assert row.peer_value > 0


def test_sides_that_do_not_compute_the_same_are_not_compared(setting: Setting) -> None:
    class Other(Worker):
        def __enter__(self) -> Self:
            self.facts = {"loss": 2.5}
            return self

        def __exit__(self, *_: object) -> None:
            pass

    row = compare_step(
        setting,
        "maml_step",
        Place("cpu"),
        lambda: torch.tensor(2.0),
        10,
        "learn2learn",
        lambda: Other(Path(), "learn2learn_maml", {}),
        1e-5,
    )
    assert row.peer_value is None
    assert row.note == "learn2learn: not compared, as its first loss differs from ours by 0.5"


def test_what_a_peer_says_of_this_machine_is_printed_and_stands_in_no_note(
    setting: Setting, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = setting.folder / "no such file"
    asked = {"step": str(missing), "threads": 1, "device": "cpu", "cosine": "library"}
    row = compare_step(
        setting,
        "lrua_step",
        Place("cpu"),
        lambda: torch.zeros(()),
        10,
        "eager step",
        lambda: Worker(Path(sys.executable), "plain_lrua", asked),
        1e-5,
    )
    assert row.note == "eager step: it stopped with FileNotFoundError"
    assert (
        f"plain_lrua: FileNotFoundError: [Errno 2] No such file or directory: '{missing}'"
        in capfd.readouterr().err
    )


def test_a_peer_that_ends_says_so_in_one_line() -> None:
    false = shutil.which("false")
    if false is None:
        pytest.skip("there is no program that only fails")
    with pytest.raises(PeerError, match="it ended with exit code 1"), Worker(Path(false), "nobody", {}):
        pass


# --- What both sides are given ------------------------------------------------------------------------------


def test_peers_are_given_the_images_of_the_pool_and_the_same_episodes(setting: Setting) -> None:
    pool = setting.images.split("folders").test
    rows = pool_rows(pool)
    assert len(rows) == int(pool.images_per_class.sum())
    sampler = EpisodeSampler(pool, KShot(3, 2, 2), episode_seed=0)
    episodes = class_by_class(sampler, pool, 4, way=3)
    assert episodes.shape == (4, 3, 4)
    batch = sampler.indices(0, 4)
    for episode in range(4):
        for label in range(3):
            mine = batch.labels[episode] == label
            shown = rows[torch.from_numpy(episodes[episode, label])]
            assert shown.tolist() == batch.images[episode][mine].tolist()
            classes = np.searchsorted(pool.first_image.numpy(), shown.numpy(), "right") - 1
            assert set(classes) == {int(batch.class_ids[episode, label])}


def test_the_plain_network_is_ours(setting: Setting) -> None:
    learner = Prototypical((1, 28, 28), 5).eval()
    images = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(conv4(block_weights(learner)).eval()(images), learner.backbone(images))


def test_the_peers_computer_is_given_all_of_our_weights() -> None:
    """In the shapes that its class has; whether they mean the same there, the first losses say."""
    network = Network(7, hidden_size=5, num_slots=6, word_size=4, read_heads=2)
    interface = 2 * 4 + 3 * 4 + 5 * 2 + 3
    given = peer_weights(network)
    lstm = {name.rpartition(".")[2]: tuple(part.shape) for name, part in given.items() if "lstm" in name}
    assert (lstm["weight_ih_l0"], lstm["weight_hh_l0"]) == ((20, 7 + 8), (20, 5))
    assert lstm["bias_ih_l0"] == lstm["bias_hh_l0"] == (20,)
    assert given["rnn_layer_memory_shared.interface_weights.weight"].shape == (interface, 5)
    assert given["output.weight"].shape == (7, 5 + 8)
    rows = interface_rows(2, 4)
    assert rows.sort().values.tolist() == list(range(interface))
    places = rows.argsort().unsqueeze(0) / interface  # the least is the peer's first
    asked = network.cell.memory.asked(places)
    assert asked.read_keys.argmin() == 0
    assert asked.read_modes.argmax(-1).tolist() == [[1, 1]]  # the peer's content mode is its last


# --- A memory filled beforehand -----------------------------------------------------------------------------


def trained() -> Mann:
    torch.manual_seed(0)
    sizes = {"widths": (4,), "embedding_size": 6, "hidden_size": 8, "num_slots": 9, "word_size": 5}
    return Mann((1, 12, 12), 5, **sizes).eval().requires_grad_(False)


def streams() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 50, 6, generator=generator), torch.zeros(3, 50, 5)


def test_with_sparse_access_a_network_keeps_its_weights_and_its_write_gates_are_open() -> None:
    learner = trained()
    cell = sparse_step.sparse_cell(learner, ExactSearch(torch.randn(40, 5)))
    hidden = torch.randn(2, 8)
    vectors, gates, others = cell.interface(hidden).tensor_split([40, 44], dim=1)
    torch.testing.assert_close(torch.cat([vectors, others], dim=1), learner.cell.interface(hidden))
    assert gates.sigmoid().min() > 0.999


def test_recall_is_one_of_the_exact_search_and_less_of_one_that_sees_half() -> None:
    rows = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    whole, same = (sparse_step.sparse_cell(trained(), ExactSearch(rows)) for _ in range(2))
    state, recall = sparse_step.follow(same, whole, *streams())
    assert recall == 1
    assert state.access.steps.eq(25).all()
    half = sparse_step.sparse_cell(trained(), ExactSearch(rows[:200]))
    assert 0 < sparse_step.follow(half, whole, *streams())[1] < 0.6


def test_the_rows_of_a_filled_memory_are_what_streams_wrote(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_step, "STREAM", Stream(5, 40))
    rows = sparse_step.written_rows(trained(), setting.images.split("folders").train, 1000)
    assert rows.shape == (1000, 5)
    assert len(rows.unique(dim=0)) > 900


@pytest.mark.parametrize("installed", [True, False])
def test_a_step_of_a_filled_memory_is_measured_or_says_why_not(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if installed:
        pytest.importorskip("faiss", reason="needs faiss: pip install 'fewshot[ann]'")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(sparse_step, "SIZES", {"small": 300, "large": 600})
    monkeypatch.setattr(sparse_step, "load_learner", lambda *_: trained())
    monkeypatch.setattr(sparse_step, "written_rows", lambda *_: torch.randn(600, 5))
    monkeypatch.setattr(sparse_step, "cell_inputs", lambda *_: streams())
    monkeypatch.setattr(Setting, "checkpoint", lambda *_: Path())
    monkeypatch.setattr(Setting, "train", None)
    monkeypatch.setattr(Setting, "test", None)
    small, large = sparse_step.measure(setting)
    assert (small.measure, large.measure) == ("small", "large")
    assert (small.ratio_to_peer is not None) == installed
    assert ("times as long as with 300" in large.note) == installed
    assert ("pip install 'fewshot[ann]'" in large.note) != installed


# --- The peers' environment ---------------------------------------------------------------------------------


def test_the_environment_is_built_once_and_again_where_it_lacks_a_peer(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[Path] = []
    absent = {"torchmeta": "no network"}

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
        (folder / "peers.json").write_text(json.dumps(absent))

    monkeypatch.setattr(peers, "_build", build)
    with pytest.raises(PeerError, match="it could not be installed"):
        peer_environment().interpreter("torchmeta")
    said = capsys.readouterr().err
    assert "torchmeta could not be installed: no network" in said
    assert str(own_cache) not in said
    absent["easyfsl"] = "no network any more"
    assert peer_environment().interpreter("easyfsl").is_file(), "what is worse is not kept"
    assert len(built) == 2, "an environment that lacks a peer is built again"
    absent.clear()
    python = peer_environment().interpreter("torchmeta")
    assert peer_environment().interpreter("torchmeta") == python
    assert len(built) == 3
    (python.parents[1] / "peers.json").unlink()  # as where a build was killed
    peer_environment()
    assert len(built) == 4
    assert [path.name for path in (own_cache / "peers").iterdir()] == [python.parents[1].name]


def test_what_cannot_be_built_leaves_no_peer_and_one_line(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(peers, "_build", fail)
    environment = peer_environment()
    for peer in peers.VERSIONS:
        with pytest.raises(PeerError, match="it could not be installed"):
            environment.interpreter(peer)
    assert capsys.readouterr().err.count("could not be installed: no space left") == len(peers.VERSIONS)


def test_an_interpreter_is_printed_if_all_that_are_asked_for_are_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = PeerEnvironment(Path("bin/python"), {"torchmeta": "no network"})
    monkeypatch.setattr(peers, "peer_environment", lambda: environment)
    monkeypatch.setattr(sys, "argv", ["peers", "learn2learn"])
    peers.main()
    assert capsys.readouterr().out == "bin/python\n"
    monkeypatch.setattr(sys, "argv", ["peers", "learn2learn", "torchmeta"])
    with pytest.raises(SystemExit, match="torchmeta: it could not be installed"):
        peers.main()
