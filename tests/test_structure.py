"""The shape of the project: who imports whom, what is public, what is tracked, and whether suites read."""

import ast
import importlib
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import fewshot
from fewshot.data.split import Split
from fewshot.errors import DataError
from fewshot.harness.checkpoint import file_sha256
from fewshot.harness.config import DataSettings, read_suite
from fewshot.harness.plan import Job, job_seeds, load_split, planned_tests, training_key
from fewshot.harness.record import DRAWS_FILE, answers_digest, read_answers, read_draws, read_records
from fewshot.harness.train import draws_digest
from fewshot.harness.trials import recorded_trials
from fewshot.harness.turns import makers, taken_files
from fewshot.learners.registry import learner_class, options_of
from fewshot.report.formats import write
from fewshot.report.training_table import tables_and_training

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fewshot"
ORDER = ("errors", "data", "kernels", "episodes", "memory", "learners", "harness", "interop", "cli")
"""Each may import itself and those before it."""
FACADES = {"fewshot", "fewshot.__main__"}
REPORT_READS = {"fewshot.errors", "fewshot.episodes.labels"} | {
    f"fewshot.harness.{name}"
    for name in ("audit.finding", "comparison", "pairing", "record", "statistics", "watched")
}

PUBLIC = [
    "Augment",
    "ClassPool",
    "ConvBackbone",
    "EpisodeSampler",
    "Evaluation",
    "FewshotError",
    "ImageSet",
    "KShot",
    "KShotBatch",
    "Learner",
    "Split",
    "Stream",
    "StreamBatch",
    "Support",
    "TrainSettings",
    "audit_episodes",
    "build_learner",
    "calibrate",
    "check_learner",
    "evaluate",
    "load_dataset",
    "load_image_folder",
    "load_learner",
    "read_image_lists",
    "register_backbone",
    "register_learner",
    "save_learner",
    "split_by_fraction",
    "split_by_lists",
    "train",
    "write_image_lists",
]

MEGABYTE = 2**20


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _nodes(node: ast.AST, only_at_import: bool) -> Iterator[ast.AST]:
    """All nodes below; only_at_import: without functions' bodies and what is there for type checkers."""
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(
            child
        )
        if only_at_import and lazy:
            continue
        yield child
        yield from _nodes(child, only_at_import)


def imports(module: str, only_at_import: bool = False) -> set[str]:
    """The modules that a module imports: those of this package in full, of others the package alone."""
    found = set()
    for node in _nodes(ast.parse(MODULES[module].read_text(encoding="utf-8")), only_at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            for alias in node.names:  # `from package import module` imports the module
                below = f"{node.module}.{alias.name}"
                found.add(below if below in MODULES else node.module)
    return {name if name in MODULES else name.partition(".")[0] for name in found}


def own_imports(module: str, only_at_import: bool = False) -> set[str]:
    return imports(module, only_at_import) & MODULES.keys()


def reached(module: str) -> set[str]:
    """All that importing a module imports, packages on the way included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            if name in MODULES:
                waiting += imports(name, only_at_import=True)
                waiting += [name.rpartition(".")[0]] if "." in name else []
    return seen


def part(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_its_place_in_the_order() -> None:
    assert {part(name) for name in MODULES.keys() - FACADES} == {*ORDER, "report"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - FACADES))
def test_imports_go_one_way(module: str) -> None:
    if part(module) == "report":
        allowed = {name for name in MODULES if name.startswith("fewshot.report")} | REPORT_READS
    elif part(module) == "memory":
        allowed = {name for name in MODULES.keys() - FACADES if part(name) in ("errors", "kernels", "memory")}
    else:
        known = ORDER[: ORDER.index(part(module)) + 1]
        allowed = {name for name in MODULES.keys() - FACADES if part(name) in known}
        if part(module) == "cli":
            allowed |= {name for name in MODULES if name.startswith("fewshot.report")}
    assert own_imports(module) <= allowed


def test_the_memory_knows_torch_and_its_kernels_and_nothing_else() -> None:
    for module in (name for name in MODULES if name.startswith("fewshot.memory")):
        others = imports(module) - MODULES.keys() - sys.stdlib_module_names
        assert others <= ({"torch", "faiss"} if module == "fewshot.memory.search" else {"torch"}), module


def test_reports_are_made_without_torch() -> None:
    for module in (name for name in MODULES if name.startswith("fewshot.report")):
        assert "torch" not in reached(module), module


def test_the_command_line_starts_without_what_is_heavy() -> None:
    heavy = {"torch", "torchvision", "numpy", "pandas", "matplotlib", "pydantic", "pyarrow", "scipy"}
    for module in ("fewshot.cli", "fewshot.__main__", "fewshot"):
        assert not reached(module) & heavy


def test_other_libraries_are_imported_where_they_are_used() -> None:
    """So that importing an adapter neither needs nor changes them."""
    apart = "fewshot.interop.torchmeta_classes"
    for module in MODULES:
        others = {"learn2learn", "torchmeta"} & imports(module, only_at_import=True)
        assert bool(others) == (module == apart), module
        assert apart not in imports(module, only_at_import=True), module


def test_no_modules_import_each_other() -> None:
    graph = {name: own_imports(name, only_at_import=True) - {name} for name in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError


# --- The public surface -------------------------------------------------------------------------------------


def test_the_public_surface_is_this() -> None:
    assert list(fewshot.__all__) == PUBLIC
    assert dir(fewshot) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_what_its_module_has(name: str) -> None:
    value = getattr(fewshot, name)
    home = importlib.import_module(f"fewshot.{fewshot._HOMES[name]}")
    assert value is getattr(home, name)
    assert value.__doc__ or typing.get_origin(value)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(MODULES["fewshot"].read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if _is_type_checking(node))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"fewshot.{home}.{name}" for name, home in fewshot._HOMES.items()}


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'fewshot' has no attribute 'learn'"):
        _ = fewshot.learn


# --- What is tracked ----------------------------------------------------------------------------------------


def tracked_files(*patterns: str) -> list[Path] | None:
    """The files that git tracks, as they are in the working tree; None where this is no git checkout."""
    command = ["git", "ls-files", "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return None if listed.returncode else [path for path in paths if path.is_file()]


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    files = tracked_files()
    if files is None:
        pytest.skip("not a git checkout")
    return files


def test_the_tracked_tree_is_small(tracked: list[Path]) -> None:
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked}
    assert [name for name, size in sizes.items() if size > 3 * MEGABYTE] == []
    assert sum(sizes.values()) < 20 * MEGABYTE


def test_no_tracked_text_names_a_machine(tracked: list[Path]) -> None:
    """No home or working directory of somebody's machine, and no address of a package registry."""
    hosts = r"pythonhosted\.org|pypi\.org|download\.pytorch\.org|/simple/"
    places = r"(?<![\w.])/(?:home|root|Users|work|mnt)/\w"
    named = re.compile(f"{places}|{hosts}|{re.escape(str(ROOT))}(?![\\w-])".encode())
    for path in tracked:
        content = path.read_bytes()
        if b"\0" in content[:4096] or path == Path(__file__):
            continue
        found = named.search(content)
        assert found is None, f"{path.relative_to(ROOT)}: {found.group() if found else b''!r}"


# --- Suites -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.toml")), ids=lambda path: path.stem)
def test_a_committed_suite_reads_and_its_learners_take_their_options(path: Path) -> None:
    suite = read_suite(path)
    assert path.read_text(encoding="utf-8").startswith("#"), "a suite begins by saying what it shows"
    for learner in suite.learner:
        options_of(learner_class(learner.id), learner.options)


def test_there_are_suites() -> None:
    assert (ROOT / "benchmarks" / "omniglot_first.toml").is_file()


def recorded() -> list[Path]:
    """The folders of results that come with the project; a user may have made others beside them."""
    found = tracked_files("results/*/records.jsonl")
    return sorted(path.parent for path in (ROOT.glob("results/*/records.jsonl") if found is None else found))


RECORDED = recorded()


def test_make_results_makes_them_all_and_weights_before_who_answers_with_them() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    suites = re.findall(r"^SUITES = (.*)$", makefile, re.MULTILINE)[0].split()
    assert sorted(suites) == [folder.name for folder in RECORDED]
    for place, name in enumerate(suites):
        rows = read_suite(ROOT / "benchmarks" / f"{name}.toml").learner
        there = suites[:place]
        made_here = makers(rows, ROOT / "results" / name)
        for path in (path for row in rows for path in taken_files(row) if path.parts[0] == "results"):
            assert path.parts[1] in there or (ROOT / path).resolve() in made_here, name


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_recorded_tables_are_those_of_the_records(folder: Path) -> None:
    written = (folder / "table.md").read_text(encoding="utf-8")
    shown = write(tables_and_training(read_records(folder), folder), "md")
    assert written == shown, "`fewshot run` of the suite writes it again"


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_what_records_name_is_there_as_it_was_recorded(folder: Path) -> None:
    """`fewshot verify` measures anew; this is what can be said without the images."""
    for record in read_records(folder):
        assert record.answers, record.learner
        assert record.checkpoint, record.learner
        assert answers_digest(read_answers(folder, record)) == record.answers_sha256, record.learner
        checkpoint = folder / record.checkpoint
        assert file_sha256(checkpoint) == record.checkpoint_sha256, record.learner
        assert draws_digest(read_draws(checkpoint)) == record.train_classes_digest, record.learner
        if record.train_start:
            assert file_sha256(folder / record.train_start) == record.train_start_sha256, record.learner
        recorded_trials(folder, record)  # raises where they, their digest or their log of draws do not agree
    named = {(record.answers, record.key) for record in read_records(folder)}
    kept = {
        (f"answers/{path.name}", key)
        for path in (folder / "answers").iterdir()
        for key in pq.read_table(path, columns=["record"])["record"].unique().to_pylist()
    }
    assert kept == named
    made = {path.name for place in ("checkpoints", "trials") for path in (folder / place).glob("*.*")}
    logs = folder / DRAWS_FILE
    assert made == (set(pq.read_table(logs)["file"].to_pylist()) if logs.exists() else set())


@cache
def _split(data: DataSettings) -> Split:
    """Read once for all suites; skips where the images are not at hand."""
    try:
        return load_split(data, None)
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_records_are_what_the_suite_asks_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, and nothing else: by their keys, which say the same as the committed settings."""
    monkeypatch.chdir(ROOT)  # rows that answer with another's weights name them from there
    suite = read_suite(ROOT / "benchmarks" / f"{folder.name}.toml")
    training, tested = _split(suite.training_data), _split(suite.data)
    jobs = [
        Job(suite, settings, seed, folder, None, "cpu", 1)
        for settings in suite.learner
        for seed in job_seeds(settings)
    ]
    asked = {test.key for job in jobs for test in planned_tests(job, tested, training_key(job, training))}
    assert asked == {record.key for record in read_records(folder)}
