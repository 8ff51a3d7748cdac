"""Every command: what it prints and leaves, exit code 0, 1 or 2, and one clear line for wrong input."""

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from fewshot.cli import main
from fewshot.errors import unknown
from fewshot.harness import own_images
from fewshot.harness.checkpoint import save_learner
from fewshot.harness.record import RECORDS_FILE, read_records
from fewshot.learners.pretrained import TorchvisionResNet
from fewshot.learners.registry import build_learner

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = ["--way", "3", "--query", "2"]
OWN_LEARNER = """
import torch
from fewshot import Learner

class Brightness(Learner):
    trainable = False

    def start(self, batch, way):
        return torch.zeros(batch, way)

    def observe(self, state, image, label):
        return state.scatter(1, label.unsqueeze(1), image.flatten(1).mean(1, keepdim=True))

    def predict(self, state, images):
        return -(images.flatten(2).mean(2, keepdim=True) - state.unsqueeze(1)).abs()
"""


class Outcome(NamedTuple):
    code: int | str | None
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def fewshot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command as the console script does, in an empty folder, with an empty data directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "no_data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("FEWSHOT_DATA", str(tmp_path / "no_data"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fewshot", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return Outcome(caught.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def results(tiny_results: Path, tmp_path: Path) -> Path:
    """A copy of recorded results, to change at will."""
    return shutil.copytree(tiny_results, tmp_path / "tiny")


def refused(outcome: Outcome) -> str:
    """The one line that wrong input is answered with."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("fewshot: ")
    return line.removeprefix("fewshot: ")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 classes of 20 images: JPEG and PNG of several sizes, a colour for each class, and noise."""
    folder = tmp_path_factory.mktemp("own") / "photographs"
    generator = np.random.default_rng(0)
    for number in range(20):
        place = folder / f"kind_{number:02}"
        place.mkdir(parents=True)
        colour = generator.integers(0, 200, 3)
        for index in range(20):
            size = (12 + index, 30 - index, 1)
            pixels = (colour + generator.integers(0, 56, size)).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{index}.{'jpg' if index % 2 else 'png'}")
    return folder


@pytest.fixture
def some_photographs(photographs: Path, tmp_path: Path) -> Path:
    """A copy of them, to change at will."""
    return shutil.copytree(photographs, tmp_path / "some")


# --- Commands that work -------------------------------------------------------------------------------------


def test_help_needs_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from fewshot.cli import main\n"
        "sys.argv = ['fewshot', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'pandas', 'matplotlib', 'pydantic', 'scipy', 'pyarrow'}\n"
        "print('heavy:', sorted(heavy & sys.modules.keys()))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("heavy: []\n")
    commands = ("list", "data", "train", "evaluate", "inspect", "run", "table", "compare", "ledger", "plot")
    for command in (*commands, "verify"):
        assert f" {command} " in ended.stdout


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fewshot", "table", "absent"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    text = refused(Outcome(ended.returncode, ended.stdout, ended.stderr))
    assert text == "no results in absent: there is no records.jsonl; make them with `fewshot run`"


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["data", "list"], ["data", "get"], ["train"], ["evaluate"], ["inspect"], ["run"], ["verify"]],
)
def test_each_command_has_help(fewshot: Command, arguments: list[str]) -> None:
    outcome = fewshot(*arguments, "--help")
    assert outcome.code == 0
    assert f"fewshot {' '.join(arguments)} [OPTIONS]" in outcome.out


def test_list_says_what_there_is(fewshot: Command) -> None:
    Path("benchmarks").mkdir()
    Path("benchmarks/mine.toml").touch()
    outcome = fewshot("list")
    assert outcome.code == 0
    for name in (
        "glyphs",
        "omniglot",
        "mini_imagenet",
        "cifar_fs",
        "fc100",
        "cub",
        "tiered_imagenet",
        "prototypical",
        "count_guesser",
        "benchmarks/mine.toml",
    ):
        assert name in outcome.out
    assert "omniglot" in fewshot("data", "list").out


def test_train_then_evaluate(fewshot: Command, image_folder: Path) -> None:
    outcome = fewshot(
        *("train", "prototypical", "--dataset", image_folder, "--out", "mine", *SMALL),
        *("--steps", 4, "--batch", 2, "--option", "widths=[4, 4]", "--train-seed", 3),
    )
    assert outcome.code == 0
    path = Path("mine/checkpoints/prototypical-3.safetensors")
    first, *rest = outcome.out.splitlines()
    assert re.fullmatch(r"kept the weights of step 4: \d+\.\d % on validation classes", first)
    assert rest == [str(path), f"measure it with: fewshot evaluate {path} --way 3 --query 2"]
    assert "prototypical: training 4 of 4" in outcome.err

    measured = [
        fewshot("evaluate", path, "--learner", "prototypical", "--episodes", 20, *SMALL, *where)
        for where in (["--dataset", image_folder], ["--data", image_folder.parent])
    ]
    assert [one.code for one in measured] == [0, 0]
    for one, name in zip(measured, (image_folder, image_folder.name), strict=True):
        line = one.out.removesuffix("\n")
        assert line.startswith(f"prototypical-3  {name}/folders/test  inductive  3-way 1-shot  ")
        assert line.endswith("(95 % CI over 20 episodes)")
    assert measured[0].out.rpartition("  ")[2] == measured[1].out.rpartition("  ")[2]

    stream = fewshot(
        *("evaluate", path, "--dataset", image_folder, "--side", "val", "--rotated", "--episodes", 5),
        *("--protocol", "stream", "--way", 3, "--length", 9, "--counts", "random"),
    )
    assert "/folders/val, rotated classes  inductive  3-way stream of 9, random counts  " in stream.out
    assert "2nd presentation" in stream.out


def test_strings_are_trained_shown_and_measured(fewshot: Command, image_folder: Path) -> None:
    stream = ["--protocol", "stream", "--length", 9, "--labels", "string", "--way", 3]
    train = ["train", "lstm", "--dataset", image_folder, "--out", "mine", "--steps", 1, "--batch", 1, *stream]
    assert 'train one with the option labels = "string"' in refused(fewshot(*train))
    trained = fewshot(*train, "--option", "labels=string", "--option", "hidden_size=4")
    command = trained.out.splitlines()[-1].removeprefix("measure it with: ")
    path = "mine/checkpoints/lstm-0.safetensors"
    assert command == f"fewshot evaluate {path} --protocol stream --way 3 --length 9 --labels string"
    measured = fewshot(
        *command.split()[1:], "--dataset", image_folder, "--way", 4, "--length", 8, "--episodes", 2
    )
    assert "4-way stream of 8, exact counts, string labels  " in measured.out
    assert "answers with strings" in refused(fewshot("evaluate", path, "--dataset", image_folder, *SMALL))
    shown = fewshot("data", "show", image_folder, *stream, "--chain", 2)
    assert (shown.code, shown.out) == (0, "patterns-stream.png\n")
    chain = [*command.split()[1:], "--dataset", image_folder, "--length", 9, "--episodes", 2]
    assert "string labels, chain of 3 episodes  " in fewshot(*chain, "--chain", 3).out
    assert "got 0 links" in refused(fewshot(*chain, "--chain", 0))
    trained = fewshot(*train, "--option", "labels=string", "--chain", 2)
    assert trained.out.endswith(" --protocol stream --way 3 --length 9 --labels string --chain 2\n")


def test_a_learner_of_ones_own_is_found_where_one_stands(fewshot: Command, image_folder: Path) -> None:
    Path("own_cli_learner.py").write_text(OWN_LEARNER)
    outcome = fewshot(
        "train", "own_cli_learner:Brightness", "--dataset", image_folder, "--out", "mine", *SMALL
    )
    assert outcome.code == 0
    path = Path("mine/checkpoints/own_cli_learner.Brightness-0.safetensors")
    outcome = fewshot("evaluate", path, "--dataset", image_folder, "--episodes", 20, *SMALL)
    assert outcome.code == 0
    assert "own_cli_learner.Brightness-0" in outcome.out


def test_run_table_plot_and_verify(fewshot: Command, tiny_suite: Path, image_folder: Path) -> None:
    only = ["--only", "prototypical", "--only", "nearest_neighbour"]
    outcome = fewshot("run", tiny_suite, "--out", "results/tiny", "--jobs", 1, *only)
    assert outcome.code == 0
    assert "nearest_neighbour" in outcome.out
    assert "6 new records in results/tiny; verify them with: fewshot verify results/tiny" in outcome.out
    assert "prototypical: testing 3 of 3" in outcome.err
    again = fewshot("run", tiny_suite, "--out", "results/tiny", "--jobs", 1, *only)
    assert "0 new records in results/tiny" in again.out
    assert "prototypical: recorded" in again.err

    assert fewshot("table", "results/tiny").out in outcome.out
    rows = fewshot("table", "results/tiny", "--format", "csv").out.splitlines()
    assert rows[0].startswith(
        "suite,dataset,split,side,rotated_test_classes,image_size,backbone,protocol,way,"
    )
    assert sum(",kshot," in row for row in rows) >= 4
    for format in ("md", "latex", "html"):
        assert "prototypical" in fewshot("table", "results/tiny", "--format", format).out

    reported = fewshot("report", "results/tiny")
    assert (reported.code, reported.out) == (0, "results/tiny/report.html\n")
    page = Path("results/tiny/report.html").read_text(encoding="utf-8")
    assert "Page made by <code>fewshot report results/tiny</code>" in page
    assert fewshot("report", "results/tiny", "--out", "elsewhere/page.html").code == 0
    assert Path("elsewhere/page.html").read_text(encoding="utf-8").count("<img") == page.count("<img") > 0

    drawn = fewshot("plot", "results/tiny")
    assert drawn.code == 0
    pictures = [Path(line) for line in drawn.out.splitlines()]
    assert pictures
    assert all(picture.stat().st_size > 1000 for picture in pictures)

    verified = fewshot("verify", "results/tiny", "--jobs", 1, "--data", image_folder.parent)
    assert verified.code == 0
    assert verified.out.count("agrees   ") == 6
    assert verified.out.endswith("6 of 6 records of results/tiny agree with their stored weights\n")


def test_ledger_writes_the_page_of_all_results(tiny_results: Path, tmp_path: Path, fewshot: Command) -> None:
    results = tmp_path / "results"
    shutil.copytree(tiny_results, results / "tiny")
    outcome = fewshot("ledger", str(results))
    assert (outcome.code, outcome.out.strip()) == (0, str(results / "README.md"))
    assert "**0 published figures were rerun**" in (results / "README.md").read_text(encoding="utf-8")


def test_compare_says_whether_two_learners_differ(
    fewshot: Command, tiny_results: Path, image_folder: Path
) -> None:
    compare = ["compare", tiny_results, "prototypical", "lstm", "--data", image_folder.parent]
    printed = fewshot(*compare, "--presentation", 2)
    assert printed.code == 0
    assert printed.out.count("prototypical and lstm · ") == 3
    rows = [line.split()[0] for line in printed.out.splitlines() if line[:3] in ("3-w", "all", "2nd")]
    assert rows == ["3-way", "3-way", "all", "2nd"]
    assert "corrected for 4 comparisons (Holm)" in printed.out
    assert "About these checkpoints only" in printed.out
    header, *rows = fewshot(*compare, "--format", "csv").out.splitlines()
    assert "difference,ci95,ci95_classes,ci95_methods,p,p_holm" in header
    assert len(rows) == 2 + 4  # all, and the 1st to 3rd presentation of a stream of 9
    assert fewshot(*compare, "--against", tiny_results, "--format", "md").code == 0


@pytest.mark.parametrize("full", [[], ["--full"]])
def test_verify_ends_with_1_where_a_record_does_not_agree(
    fewshot: Command, results: Path, image_folder: Path, full: list[str]
) -> None:
    lines = (results / RECORDS_FILE).read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"accuracy": 0.5})
    (results / RECORDS_FILE).write_text("\n".join(lines) + "\n")
    outcome = fewshot("verify", results, "--jobs", 1, "--data", image_folder.parent, *full)
    assert outcome.code == 1
    assert outcome.out.count("DIFFERS  prototypical ") == 1
    assert f"11 of 12 records of {results} agree with their stored weights" in outcome.out


def test_verify_ends_with_2_where_code_of_ones_own_is_missing(
    fewshot: Command, tiny_suite: Path, image_folder: Path
) -> None:
    """It was not measured, which is no disagreement; one of another record counts more."""
    Path("gone_learner.py").write_text(OWN_LEARNER)
    suite = Path("gone.toml")
    content = tiny_suite.read_text(encoding="utf-8")
    suite.write_text(
        content.replace('id = "prototypical"', 'id = "gone_learner:Brightness"').replace(
            "options = { widths = [4, 4] }", ""
        )
    )
    only = ["--only", "gone_learner:Brightness", "--only", "nearest_neighbour"]
    assert fewshot("run", suite, "--out", "results", "--jobs", 1, *only).code == 0
    Path("gone_learner.py").unlink()
    sys.modules.pop("gone_learner")
    verify = ["verify", "results", "--jobs", 1, "--data", image_folder.parent]
    outcome = fewshot(*verify)
    assert outcome.code == 2
    told = [
        line
        for line in outcome.out.splitlines()
        if line.startswith("not measured  gone_learner:Brightness  ")
    ]
    assert len(told) == 3
    assert all(
        line.endswith("No module named 'gone_learner': go to where it lies, or install it") for line in told
    )
    assert outcome.out.endswith(
        "3 of 6 records of results agree with their stored weights; 3 could not be measured here\n"
    )
    lines = Path("results", RECORDS_FILE).read_text().splitlines()
    lines = [json.dumps(json.loads(line) | {"accuracy": 0.5}) for line in lines]
    Path("results", RECORDS_FILE).write_text("\n".join(lines) + "\n")
    assert fewshot(*verify).code == 1


@pytest.mark.parametrize("leak", [False, True])
def test_audit_ends_with_1_where_a_guard_fails(
    fewshot: Command, results: Path, image_folder: Path, leak: bool
) -> None:
    lines = (results / RECORDS_FILE).read_text().splitlines()
    first = json.loads(lines[0]) | ({"selection": "the best over test classes"} if leak else {})
    (results / RECORDS_FILE).write_text(f"{json.dumps(first)}\n")
    outcome = fewshot("audit", results, "--jobs", 1, "--data", image_folder.parent)
    assert outcome.code == leak
    assert "holds   1 of 1   test classes were never drawn before the end" in outcome.out
    told = f"{results}: 1 guard fails" if leak else f"{results}: all guards hold"
    assert outcome.out.splitlines()[-1] == told
    assert ("the best over test classes" in outcome.out) == leak


def test_audit_ends_with_2_where_there_is_nothing(fewshot: Command) -> None:
    outcome = fewshot("audit", "absent.toml")
    assert outcome.code == 2
    assert outcome.err.startswith("fewshot: no suite absent.toml")


def test_a_folder_of_photographs_becomes_a_table(
    fewshot: Command, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_images, "STEPS", 4)
    monkeypatch.setattr(own_images, "EPISODES", 30)
    outcome = fewshot("run", photographs, "--jobs", 1)
    assert outcome.code == 0, outcome.err
    note = f"{photographs}: a small network is trained from scratch; with --weights FILE, or published where "
    assert outcome.err.startswith(note)
    assert "K-shot · photographs 32×32, split fraction:0.34/0.33/0.33@0 (test)" in outcome.out
    stream = outcome.out.split("Stream · 5-way, 25 images, random counts · photographs")[1]
    assert "\ncount_guesser " in stream, "a row of every stream table"
    assert "9 new records in results/photographs" in outcome.out
    assert "results/photographs/plots/kshot-photographs-fraction.0.34_0.33_0.33@0-test.png\n" in outcome.out
    accuracy = {r.learner: r.accuracy for r in read_records(Path("results/photographs")) if r.shot == 5}
    assert accuracy["nearest_neighbour"] > 0.5, "the colours tell the classes apart"
    verified = fewshot("verify", "results/photographs", "--jobs", 1, "--data", photographs.parent)
    assert verified.code == 0


def test_weights_of_ones_own_take_the_place_of_a_training_from_scratch(
    fewshot: Command, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_images, "STEPS", 2)
    monkeypatch.setattr(own_images, "EPISODES", 10)
    monkeypatch.setattr(own_images, "PHOTOGRAPH_SIZE", 16)
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pt")
    run = ["run", photographs, "--weights", tmp_path / "resnet18.pt", "--jobs", 1]
    outcome = fewshot(*run)
    assert outcome.code == 0, outcome.err
    assert "from scratch" not in outcome.err
    records = read_records(Path("results/photographs"))
    assert {r.backbone for r in records} == {"ResNet-18 pretrained frozen", None}

    def never(*_: object) -> None:
        raise AssertionError("an image was embedded again")

    monkeypatch.setattr(TorchvisionResNet, "_features", never)
    Path("results/photographs", RECORDS_FILE).write_text("")
    again = fewshot(*run)
    assert again.code == 0, again.err
    assert [r.accuracy for r in read_records(Path("results/photographs"))] == [r.accuracy for r in records]


def test_data_check_ends_with_0_for_a_folder_that_reads(fewshot: Command, image_folder: Path) -> None:
    outcome = fewshot("data", "check", image_folder)
    assert outcome.code == 0
    assert "patterns" in outcome.out


def test_data_check_takes_the_size_of_a_folder_alone(fewshot: Command, image_folder: Path) -> None:
    outcome = fewshot("data", "check", image_folder, "--image-size", 8)
    assert outcome.code == 0
    assert "8 px a side" in outcome.out
    assert refused(fewshot("data", "check", "glyphs", "--image-size", 20)) == (
        "glyphs is checked at 28x28; got 20: leave the image size out"
    )


@pytest.mark.parametrize("protocol", ["kshot", "stream"])
def test_data_show_draws_an_episode(fewshot: Command, image_folder: Path, protocol: str) -> None:
    small = ["--way", 3, "--length", 9] if protocol == "stream" else SMALL
    outcome = fewshot("data", "show", image_folder, "--protocol", protocol, "--rotated", *small)
    assert outcome.code == 0
    assert outcome.out == f"patterns-{protocol}.png\n"
    with Image.open(f"patterns-{protocol}.png") as picture:
        assert min(picture.size) > 100
    fewshot("data", "show", image_folder, "--protocol", protocol, *small, "--out", "sub/own.png")
    assert Path("sub/own.png").is_file()


MEMORY = ("--option", "num_slots=12", "--option", "word_size=5", "--option", "hidden_size=8")


@pytest.fixture(scope="module")
def memory_network(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a memory network that was hardly trained. Not to be changed."""
    folder = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(folder / "cache"))
        arguments = ("train", "mann", "--dataset", image_folder, "--out", folder / "mine", "--steps", 2)
        stream = ("--protocol", "stream", "--way", 3, "--length", 9, "--batch", 2, "--option", "widths=[4]")
        patch.setattr(sys, "argv", ["fewshot", *map(str, (*arguments, *stream, *MEMORY))])
        with pytest.raises(SystemExit) as caught:
            main()
    assert caught.value.code == 0
    return folder / "mine" / "checkpoints" / "mann-0.safetensors"


def test_inspect_draws_what_a_memory_did_and_scores_it(
    fewshot: Command, memory_network: Path, image_folder: Path
) -> None:
    setting = ("--dataset", image_folder, "--length", 9, "--episodes", 4)
    outcome = fewshot("inspect", memory_network, *setting, "--html", "sub/page.html", "--episode", 3)
    assert outcome.code == 0
    first, score, best, *paths = outcome.out.splitlines()
    assert first == f"mann-0, {image_folder}/folders/test, 3-way stream of 9, exact counts"
    assert re.fullmatch(
        r"attribution: \d+\.\d ± \d+\.\d % is read from the right class \(95 % CI over 4 episodes; "
        r"without preference \d+\.\d %; 2nd presentation \d+\.\d %\)",
        score,
    )
    assert best.startswith("the stored image that is read most is of the right class in ")
    assert paths == ["mann-0-episode-3.png", "sub/page.html"]
    with Image.open(paths[0]) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 900
    page = Path(paths[1]).read_text()
    assert score in page
    assert "fewshot inspect" in page
    assert "--episode 3" in page
    options = ("--option", "num_slots=20", "--counts", "random", "--out", "own.png")
    other = fewshot("inspect", memory_network, *setting, *options)
    assert other.out.endswith("\nown.png\n")
    assert "random counts" in other.out


@pytest.mark.parametrize("name", ["attention", "key_value", "nearest_feature"])
def test_inspect_serves_other_memories_than_networks(
    fewshot: Command, image_folder: Path, tmp_path: Path, name: str
) -> None:
    options, path = {"widths": (4,)}, tmp_path / f"{name}.safetensors"
    save_learner(build_learner(name, (1, 12, 12), 3, options), path, name, options)
    setting = ("--dataset", image_folder, "--length", 9, "--episodes", 2, "--html", "page.html")
    outcome = fewshot("inspect", path, *setting)
    assert outcome.code == 0
    assert "% is read from the right class" in outcome.out
    with Image.open(f"{name}-episode-0.png") as picture:
        assert min(picture.size) > 900
    assert "% is read from the right class" in Path("page.html").read_text()


def test_interrupted_it_says_how_to_go_on(fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fewshot.harness.config.read_suite", interrupt)
    Path("any.toml").touch()
    outcome = fewshot("run", "any.toml")
    assert (outcome.code, outcome.err) == (130, "fewshot: stopped; train, run and data get go on from here\n")


def test_bench_runs_the_scripts_of_the_checkout(
    fewshot: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Path, bool]] = []
    monkeypatch.setattr("benchmarks.speed.__main__.run", lambda out, quick, names: asked.append((out, quick)))
    assert fewshot("bench").code == 0
    assert fewshot("bench", "--quick", "--out", tmp_path / "own").code == 0
    assert asked == [(Path("results/mine/speed"), False), (tmp_path / "own", True)]


def test_bench_is_refused_where_it_could_not_write(fewshot: Command, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert refused(fewshot("bench", "--out", file)) == (
        f"cannot write {file}: {file} is a file; choose another results folder"
    )


# --- Wrong input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["learn"],
        ["train", "prototypical", "--train-seed", "-1"],
        ["evaluate", "any.safetensors", "--episode-seed", "-1"],
        ["run"],
        ["run", "x.toml", "--job", "3"],
        ["verify", "x", "--jobs", "0"],
        ["train", "lstm", "--threads", "100000"],
    ],
)
def test_a_wrong_command_line_ends_with_2(fewshot: Command, arguments: list[str]) -> None:
    outcome = fewshot(*arguments)
    assert outcome.code == 2
    assert "Usage: " in outcome.err
    assert "Traceback" not in outcome.err


READERS = pytest.mark.parametrize(
    "command",
    [
        ["data", "check", "omniglot"],
        ["data", "show", "omniglot"],
        ["train", "prototypical", "--dataset", "omniglot"],
        ["run", "omniglot.toml"],
    ],
    ids=lambda command: " ".join(command[:2]),
)


def omniglot(folder: Path, content: bytes) -> Path:
    """A data directory with `content` under the names of Omniglot's archives, and a suite that reads it."""
    for part in ("images_background", "images_evaluation"):
        (folder / f"{part}.zip").write_bytes(content)
    Path("omniglot.toml").write_text(
        'title = "x"\ndata = { dataset = "omniglot", split = "vinyals" }\n'
        '[[test]]\nprotocol = "kshot"\n[[learner]]\nid = "nearest_neighbour"\n'
    )
    return folder


@READERS
def test_a_truncated_archive_is_refused(fewshot: Command, tmp_path: Path, command: list[str]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images_background/Greek/character01/0394_01.png", bytes(5000))
    data = omniglot(tmp_path, buffer.getvalue()[:2000])
    text = refused(fewshot(*command, "--data", data))
    assert "images_background.zip" in text
    assert "delete it and run `fewshot data get omniglot`" in text


@READERS
def test_a_page_under_an_archives_name_is_refused(
    fewshot: Command, tmp_path: Path, command: list[str]
) -> None:
    data = omniglot(tmp_path, b"<!DOCTYPE html>\n<html><body>Please log in</body></html>")
    text = refused(fewshot(*command, "--data", data))
    assert "images_background.zip" in text
    assert "HTML" in text


@READERS
def test_data_that_is_not_there_is_refused(fewshot: Command, tmp_path: Path, command: list[str]) -> None:
    omniglot(tmp_path / "here", b"")
    assert "no omniglot in " in refused(fewshot(*command))


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"<html></html>"])
def test_what_is_no_data_set_is_not_taken(fewshot: Command, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine").mkdir()
    outcome = fewshot("data", "get", "omniglot", "--from", omniglot(tmp_path / "mine", content))
    assert outcome.code == 2
    assert "images_background.zip" in outcome.err.splitlines()[-1]
    assert "source: https://github.com/brendenlake/omniglot" in outcome.out
    assert list((tmp_path / "no_data").rglob("*.zip")) == []


def test_a_missing_split_class_is_refused(fewshot: Command, image_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_folder / "train", tmp_path / "of_names" / "mini_imagenet")
    text = refused(fewshot("train", "prototypical", "--dataset", folder, "--split", "ravi"))
    assert "side train of split ravi names the class " in text
    assert "which mini_imagenet does not have" in text
    folder = shutil.copytree(image_folder, tmp_path / "mini_imagenet")
    text = refused(fewshot("train", "prototypical", "--dataset", folder, "--split", "ravi"))
    assert "unknown split of mini_imagenet 'ravi': there is folders, fraction" in text
    shutil.rmtree(folder / "test")
    text = refused(fewshot("train", "prototypical", "--dataset", folder, "--split", "folders"))
    assert "has no test classes" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--way", "3", "--shot", "7", "--query", "2"], "has 8 images; 7-shot with 2 queries needs 9"),
        (["--way", "3", "--query", "8"], "has 8 images; 1-shot with 8 queries needs 9"),
        (["--way", "40", "--query", "2"], "40-way needs 40 classes; patterns/folders/"),
        (["--protocol", "stream", "--way", "3", "--length", "30"], "has 8 images; a stream of length 30"),
        (["--way", "1"], "way must be at least 2"),
        (["--protocol", "stream", "--way", "3", "--length", "10"], "choose length 9"),
    ],
)
@pytest.mark.parametrize(
    "command", [["train", "prototypical", "--option", "widths=[4]", "--dataset"], ["data", "show"]]
)
def test_classes_with_too_few_images_are_refused(
    fewshot: Command, image_folder: Path, command: list[str], arguments: list[str], says: str
) -> None:
    assert says in refused(fewshot(*command, image_folder, *arguments))


@pytest.mark.parametrize(
    ("command", "option", "its", "asked"),
    [
        (["train", "prototypical", "--labels", "string"], "--labels", "stream", "kshot"),
        (["evaluate", "any", "--shot", 1, "--protocol", "stream"], "--shot", "kshot", "stream"),
        (["data", "show", "glyphs", "--length", 9], "--length", "stream", "kshot"),
    ],
)
def test_a_setting_of_the_other_protocol_is_refused(
    fewshot: Command, command: list[object], option: str, its: str, asked: str
) -> None:
    assert refused(fewshot(*command)) == (
        f"{option} is of the protocol {its}, and {asked} is asked for: leave it out, or add --protocol {its}"
    )


def test_settings_of_a_training_are_named_as_a_suite_names_them(fewshot: Command, image_folder: Path) -> None:
    said = refused(fewshot("train", "prototypical", "--dataset", image_folder, "--steps", 0))
    assert said == "learner 'prototypical': train.steps: Input should be greater than 0 (got 0)"


def test_an_unknown_key_in_a_suite_names_the_nearest(fewshot: Command, tiny_suite: Path) -> None:
    Path("mine.toml").write_text(tiny_suite.read_text().replace("validate_every", "validate_evry"))
    text = refused(fewshot("run", "mine.toml"))
    assert text.startswith("mine.toml: ")
    assert "unknown key 'validate_evry': did you mean 'validate_every'?" in text
    Path("mine.toml").write_text(tiny_suite.read_text() + "[[learner]\n")
    assert refused(fewshot("run", "mine.toml")).startswith("mine.toml is not a readable TOML file: ")
    assert "there is: mine.toml" in refused(fewshot("run", "other.toml"))


def test_a_name_that_begins_another_is_taken_for_it() -> None:
    """Though "scale" has more letters in common with it."""
    text = unknown("key", "angle", ["angle_degrees", "mirror", "scale"])
    assert text.startswith("unknown key 'angle': did you mean 'angle_degrees'? ")


def test_an_unknown_learner_is_answered_with_all_there_are(
    fewshot: Command, image_folder: Path, tiny_suite: Path
) -> None:
    text = refused(fewshot("train", "protypical", "--dataset", image_folder, *SMALL))
    assert text.startswith("unknown learner 'protypical': did you mean 'prototypical'? there is anil, ")
    Path("mine.toml").write_text(tiny_suite.read_text().replace('"lstm"', '"gru"'))
    assert refused(fewshot("run", "mine.toml")).startswith("unknown learner 'gru': ")
    assert "suite tiny has no learner 'mann'" in refused(fewshot("run", tiny_suite, "--only", "mann"))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("width=[4]", "unknown option of Prototypical 'width': did you mean 'widths'?"),
        ("widths=wide", "option widths"),
        ("widths", "--option takes name=value; got 'widths'"),
    ],
)
def test_a_wrong_option_is_refused(fewshot: Command, image_folder: Path, option: str, says: str) -> None:
    assert says in refused(
        fewshot("train", "prototypical", "--dataset", image_folder, *SMALL, "--option", option)
    )


@pytest.mark.parametrize(
    "command",
    [
        ["train", "prototypical", "--dataset", "omniglott"],
        ["data", "show", "omniglott"],
        ["data", "check", "omniglott"],
        ["data", "get", "omniglott"],
    ],
)
def test_an_unknown_data_set_is_answered_with_all_there_are(fewshot: Command, command: list[str]) -> None:
    text = refused(fewshot(*command))
    assert text.startswith(
        "unknown dataset 'omniglott': did you mean 'omniglot'? there is cifar_fs, cub, fc100, "
    )


def test_an_unknown_split_is_answered_with_all_there_are(fewshot: Command, image_folder: Path) -> None:
    text = refused(fewshot("data", "show", image_folder, "--split", "folder", *SMALL))
    assert text.startswith(
        "unknown split of patterns 'folder': did you mean 'folders'? there is folders, fraction"
    )


def test_results_that_cannot_be_written_are_refused(
    fewshot: Command, image_folder: Path, tiny_suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("results").touch()
    commands = [
        ["run", tiny_suite, "--out", "results/tiny"],
        [
            "train",
            "prototypical",
            "--dataset",
            image_folder,
            *SMALL,
            "--option",
            "widths=[4]",
            "--out",
            "results",
        ],
    ]
    for command in commands:
        text = refused(fewshot(*command))
        assert text.startswith("cannot write results")
        assert text.endswith(": results is a file; choose another results folder")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fewshot.harness.record.tempfile.TemporaryFile", denied)
    assert "cannot write locked: Permission denied" in refused(fewshot("run", tiny_suite, "--out", "locked"))


def test_a_wrong_checkpoint_is_refused(fewshot: Command, results: Path, image_folder: Path) -> None:
    path = results / "checkpoints" / "prototypical-0.safetensors"
    evaluate = ["evaluate", path, "--dataset", image_folder, *SMALL]
    assert refused(fewshot(*evaluate, "--learner", "mann")) == (
        f"{path} holds 'prototypical', not 'mann': choose the checkpoint of 'mann'"
    )
    intact = path.read_bytes()
    for offset in (3, 40, intact.index(b'"prototypical"') + 3, len(intact) - 2):
        damaged = bytearray(intact)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        assert "damaged" in refused(fewshot(*evaluate))
    path.write_bytes(intact[:-10])
    assert "damaged" in refused(fewshot(*evaluate))
    path.unlink()
    assert refused(fewshot(*evaluate)).startswith(f"no checkpoint {path}: ")


def test_a_learner_is_not_asked_what_it_cannot_answer(
    fewshot: Command, results: Path, image_folder: Path, tmp_path: Path
) -> None:
    folder = results / "checkpoints"
    text = refused(
        fewshot(
            "evaluate", folder / "lstm-0.safetensors", "--dataset", image_folder, "--way", 4, "--query", 2
        )
    )
    assert "built for 3-way episodes and cannot answer 4-way" in text
    for number in range(3):
        for side in ("train", "val", "test"):
            place = tmp_path / "coloured" / side / f"{number}"
            place.mkdir(parents=True)
            for index in range(4):
                colour = np.full((12, 12, 3), (80 * number, 200, 40 * index), np.uint8)
                Image.fromarray(colour).save(place / f"{index}.png")
    path = folder / "prototypical-0.safetensors"
    text = refused(fewshot("evaluate", path, "--dataset", tmp_path / "coloured", *SMALL))
    assert "reads images of (channel, height, width) (1, 12, 12)" in text
    assert "(3, 12, 12)" in text


def test_what_has_no_memory_is_not_inspected(
    fewshot: Command, results: Path, memory_network: Path, image_folder: Path
) -> None:
    path = results / "checkpoints" / "lstm-0.safetensors"
    assert refused(fewshot("inspect", path)) == (
        f"{path} has no learner with a memory to look into, only Lstm: choose one that has, mann for one"
    )
    assert refused(fewshot("inspect", "absent")).startswith("no checkpoint absent: ")
    assert refused(fewshot("inspect", ".")).startswith("no results in .: ")
    assert "only Prototypical, Lstm, Lstm, NearestNeighbour: " in refused(fewshot("inspect", results))
    text = refused(fewshot("inspect", results, "--learner", "man"))
    assert text.startswith(f"unknown learner of {results} 'man': there is lstm, ")
    setting = ["--dataset", image_folder]
    text = refused(fewshot("inspect", memory_network, *setting, "--way", 4, "--length", 8))
    assert "built for 3-way episodes and cannot answer 4-way" in text
    text = refused(fewshot("inspect", memory_network, *setting, "--length", 3))
    assert text == "no class comes twice, so there is nothing of it to read: ask for longer streams"
    assert "has 8 images; a stream of length 30" in refused(fewshot("inspect", memory_network, *setting))
    assert not list(Path().glob("*.png"))


def test_a_folder_that_makes_no_table_is_refused(fewshot: Command, some_photographs: Path) -> None:
    folder = some_photographs
    text = refused(fewshot("run", folder, "--weights", "absent.pt"))
    whose = "learner 'nearest_feature': "
    assert text.startswith(f"{whose}no file of weights absent.pt: give one that is there, or weights = ")
    for image in sorted((folder / "kind_03").iterdir())[7:]:
        image.unlink()
    assert refused(fewshot("run", folder)) == (
        f"class kind_03 of {folder} has 7 images, and 5-shot with 5 queries needs 10: add 3, or take its "
        "folder away"
    )
    for number in range(3, 10):
        shutil.rmtree(folder / f"kind_{number:02}")
    assert refused(fewshot("run", folder)) == (
        f"5-way needs 15 classes, 5 each to train on, to validate on and to test on; {folder} has 13: add 2, "
        "or write a suite with a lower way"
    )
    (folder / "kind_01" / "0.png").write_bytes(b"no image")
    assert refused(fewshot("run", folder)).startswith(f"{folder}/kind_01/0.png is not an image that reads (")
    Path("empty").mkdir()
    assert refused(fewshot("run", "empty")) == (
        "empty holds no images: point to a folder that holds one folder for each class"
    )
    assert refused(fewshot("run", folder / "kind_02")).endswith(
        "lies in no class folder: move it into the folder of its class"
    )
    assert refused(fewshot("run", "nosuchfolder")) == (
        "no suite nosuchfolder; there is: no TOML file there; a folder of class folders of images may be "
        "given too"
    )
    assert not Path("results").exists()


def test_a_folder_with_too_few_classes_on_one_side_is_refused(
    fewshot: Command, some_photographs: Path
) -> None:
    folder = some_photographs
    for number, place in enumerate(sorted(folder.iterdir())):
        side = "test" if number < 3 else "val" if number < 9 else "train"
        (folder / side).mkdir(exist_ok=True)
        place.rename(folder / side / place.name)
    assert refused(fewshot("run", folder)) == (
        f"5-way needs 5 classes to train on, to validate on and to test on; {folder / 'test'} has 3: move 2 "
        "there from another side, or write a suite with a lower way"
    )


def test_weights_are_for_a_folder_alone(fewshot: Command, tiny_suite: Path) -> None:
    text = refused(fewshot("run", tiny_suite, "--weights", "published"))
    assert text == f"--weights is for a folder of images; {tiny_suite} names its own: leave it out"


@pytest.mark.parametrize("command", ["table", "compare", "plot", "report", "verify"])
def test_without_records_there_is_nothing_to_show(fewshot: Command, command: str) -> None:
    learners = ["mann", "lstm"] if command == "compare" else []
    assert refused(fewshot(command, "absent", *learners)).startswith("no results in absent: ")
    Path("broken").mkdir()
    Path("broken", RECORDS_FILE).write_text("{\n")
    refusal = refused(fewshot(command, "broken", *learners))
    assert refusal.startswith(f"broken/{RECORDS_FILE}:1: not a JSON object")


def test_what_cannot_be_compared_is_refused(fewshot: Command, results: Path, image_folder: Path) -> None:
    compare = ["compare", results, "lstm", "--data", image_folder.parent]
    assert f"unknown learner of {results} 'mann': there is lstm, " in refused(fewshot(*compare, "mann"))
    *lines, last = (results / RECORDS_FILE).read_text().splitlines()
    lines.append(json.dumps(json.loads(last) | {"episodes_digest": "0" * 64}))
    (results / RECORDS_FILE).write_text("\n".join(lines) + "\n")
    assert "the digests of their episodes differ" in refused(fewshot(*compare, "nearest_neighbour"))
    text = refused(fewshot(*compare, "prototypical", "--format", "cvs"))
    assert text.startswith("unknown format 'cvs': did you mean 'csv'?")


def test_an_unknown_format_is_answered_with_all_there_are(fewshot: Command, tiny_results: Path) -> None:
    text = refused(fewshot("table", tiny_results, "--format", "cvs"))
    assert text.startswith("unknown format 'cvs': did you mean 'csv'? there is csv, html, latex, md, text")


def test_a_report_that_cannot_be_written_is_refused(fewshot: Command, tiny_results: Path) -> None:
    Path("taken").mkdir()
    assert refused(fewshot("report", tiny_results, "--out", "taken")).startswith("cannot write taken: ")
    assert list(Path("taken").iterdir()) == []


def test_records_of_images_that_are_gone_are_refused(fewshot: Command, tiny_results: Path) -> None:
    assert read_records(tiny_results)[0].dataset == "patterns"
    assert refused(fewshot("verify", tiny_results, "--jobs", 1)).startswith("unknown dataset 'patterns': ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(fewshot: Command, image_folder: Path) -> None:
    text = refused(fewshot("train", "prototypical", "--dataset", image_folder, *SMALL, "--device", "cuda"))
    assert text == "device cuda was asked for, and torch finds cpu here: name one that is there, or none"
