"""The command line: parse, call one function, print. What is heavy is imported where it is used.

Exit codes: 0 done; 1 a check failed; 2 wrong input, said in one line with the remedy.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fewshot.errors import FewshotError, LearnerError, RecordError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fewshot.data.split import ClassPool
    from fewshot.episodes.protocol import Protocol
    from fewshot.episodes.source import EpisodeSource
    from fewshot.harness.config import Suite

MOST_THREADS = 256
"""Of many thousands OpenMP makes a crash without a word."""

app = typer.Typer(
    name="fewshot",
    help="One-shot and few-shot learning benchmarks on audited episodes, every figure verifiable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Get, list, check and look at image sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

ProtocolName = Literal["kshot", "stream"]
Counts = Literal["exact", "random"]
Labels = Literal["one_hot", "string"]
Side = Literal["train", "val", "test"]

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Data directory; else $FEWSHOT_DATA, else datasets/ or the user's cache."),
]


def _of(protocol: ProtocolName, help: str) -> Any:
    """An option of one protocol alone: given with the other, it would be a setting that does nothing."""

    def check(context: typer.Context, option: typer.CallbackParam, value: Any) -> Any:
        asked = context.params.get("protocol", protocol)
        source = context.get_parameter_source(option.name or "")
        if asked != protocol and source is not None and source.name == "COMMANDLINE":
            raise RecordError(
                f"--{option.name} is of the protocol {protocol}, and {asked} is asked for: leave it out, or "
                f"add --protocol {protocol}"
            )
        return value

    return typer.Option(help=f"{help} ({protocol}).", callback=check)


ProtocolOption = Annotated[  # read before the options of the one or the other
    ProtocolName, typer.Option(help="kshot (support and query) or stream.", is_eager=True)
]
WayOption = Annotated[int, typer.Option(help="Classes per episode.")]
ShotOption = Annotated[int, _of("kshot", "Support images per class")]
QueryOption = Annotated[int, _of("kshot", "Query images per class")]
LengthOption = Annotated[int, _of("stream", "Images per episode")]
CountsOption = Annotated[Counts, _of("stream", "How often each class comes")]
LabelsOption = Annotated[Labels, _of("stream", "Units, or strings of five letters")]
ChainOption = Annotated[int, _of("stream", "Streams one after the other, as one episode")]
GroupOption = Annotated[bool, typer.Option("--within-group", help="All classes from one alphabet.")]
SplitOption = Annotated[str | None, typer.Option(help="Class split; the first of `data list` by default.")]
LearnerOption = Annotated[
    list[str] | None, typer.Option(help="A learner's option as name=value (TOML), repeatable.")
]
DeviceOption = Annotated[
    Literal["cpu", "cuda"] | None, typer.Option(help="The GPU where there is one, by default.")
]
FormatOption = Annotated[
    str, typer.Option("--format", help="text, md, latex, html, or csv (the long table).")
]
JobsOption = Annotated[int | None, typer.Option(min=1, help="Processes side by side; one per core.")]


@app.command("list")
def list_all(data: DataOption = None) -> None:
    """List data sets, learners and suites."""
    from fewshot.learners.registry import learner_names

    print("data sets")
    _print_datasets(data)
    print("\nlearners")
    for name in learner_names():
        print(f"{name:<19}{_first_line(name)}")
    print("\nsuites")
    suites = sorted(Path("benchmarks").glob("*.toml"))
    print("\n".join(map(str, suites)) or "none in ./benchmarks")


@app.command()
def train(
    learner: Annotated[str, typer.Argument(help='A learner of `fewshot list`, or "package.module:Class".')],
    dataset: Annotated[
        str, typer.Option(help="Data set, or the path of a folder of class folders.")
    ] = "glyphs",
    split: SplitOption = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels of a side; the usual ones.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")] = Path("results/mine"),
    protocol: ProtocolOption = "kshot",
    way: WayOption = 5,
    shot: ShotOption = 1,
    query: QueryOption = 5,
    length: LengthOption = 50,
    counts: CountsOption = "exact",
    labels: LabelsOption = "one_hot",
    chain: ChainOption = 1,
    steps: Annotated[int, typer.Option(help="Optimiser updates.")] = 2000,
    batch: Annotated[int, typer.Option(help="Episodes per update.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Adam's, falling as a cosine.")] = 1e-3,
    option: LearnerOption = None,
    train_seed: Annotated[int, typer.Option(min=0, help="Seed of weights and training episodes.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Threads; figures repeat at the same number.")
    ] = 1,
    device: DeviceOption = None,
    data: DataOption = None,
) -> None:
    """Train one learner and keep the weights that are best on validation classes."""
    from fewshot.harness.config import parse_suite
    from fewshot.harness.run import train_learner

    suite = parse_suite(
        {
            "title": f"{learner} on {dataset}",
            "data": _data_settings(dataset, split, image_size, data),
            "test": [{"protocol": "kshot", "way": way}],
            "learner": [
                {
                    "id": learner,
                    "options": _options(option or []),
                    "train_seeds": [train_seed],
                    "train": {
                        "episodes": _protocol_settings(
                            protocol,
                            way,
                            {"shot": shot, "query": query},
                            {"length": length, "counts": counts, "labels": labels, "chain": chain},
                        ),
                        "steps": steps,
                        "batch": batch,
                        "learning_rate": learning_rate,
                    },
                }
            ],
        },
        out.name,
    )
    from fewshot.harness.progress import show_updates

    with show_updates() as on_update:
        path, log = train_learner(
            suite, out, root=data, device=_device(device), threads=threads, on_update=on_update
        )
    if log.best_step:
        print(
            f"kept the weights of step {log.best_step}: {100 * log.best_accuracy:.1f} % on validation classes"
        )
    asked: dict[str, tuple[object, object]] = {"protocol": (protocol, "kshot"), "way": (way, 5)}
    if protocol == "stream":
        asked |= {"length": (length, 50), "counts": (counts, "exact"), "labels": (labels, "one_hot")}
        asked["chain"] = (chain, 1)
    else:
        asked |= {"shot": (shot, 1), "query": (query, 5)}
    given = "".join(f" --{name} {value}" for name, (value, default) in asked.items() if value != default)
    print(f"{path}\nmeasure it with: fewshot evaluate {path}{given}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file of `fewshot train` or `run`.")],
    learner: Annotated[str | None, typer.Option(help="Refuse a checkpoint of any other learner.")] = None,
    option: LearnerOption = None,
    dataset: Annotated[str | None, typer.Option(help="Data set; that of the training by default.")] = None,
    split: SplitOption = None,
    side: Annotated[Side, typer.Option(help="Side of the split.")] = "test",
    rotated: Annotated[bool, typer.Option("--rotated", help="Count turned classes as classes.")] = False,
    protocol: ProtocolOption = "kshot",
    way: WayOption = 5,
    shot: ShotOption = 1,
    query: QueryOption = 15,
    length: LengthOption = 50,
    counts: CountsOption = "exact",
    labels: LabelsOption = "one_hot",
    chain: ChainOption = 1,
    within_group: GroupOption = False,
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 1000,
    episode_seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes.")] = 0,
    episode_file: Annotated[
        Path | None, typer.Option(help="Episodes from a file of image lists instead of drawn ones.")
    ] = None,
    device: DeviceOption = None,
    data: DataOption = None,
) -> None:
    """Measure a checkpoint on episodes of unseen classes."""
    from fewshot.data.progress import progress
    from fewshot.episodes.image_lists import read_image_lists
    from fewshot.episodes.sampler import EpisodeSampler
    from fewshot.episodes.source import EpisodeSource
    from fewshot.harness import evaluate as measuring
    from fewshot.harness.checkpoint import load_learner

    place = _device(device)
    loaded = load_learner(checkpoint, learner, _options(option or [])).to(place)
    name, pool = _classes(checkpoint, loaded.image_shape, dataset, split, side, rotated, data)
    source: EpisodeSource
    if episode_file:
        source = read_image_lists(episode_file, pool)
        episodes = min(episodes, len(source))
    else:
        wanted = _protocol(
            protocol,
            way,
            {"shot": shot, "query": query},
            {"length": length, "counts": counts, "labels": labels, "chain": chain},
            within_group,
        )
        source = EpisodeSampler(pool, wanted, episode_seed, device=place)
    with progress(f"testing {checkpoint.stem}", episodes) as advance:
        done = 0

        def on_progress(now: int, _total: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        result = measuring.evaluate(loaded, source, episodes, on_progress=on_progress)
    turned = ", rotated classes" if rotated else ""
    manner = "transductive" if loaded.transductive and protocol == "kshot" else "inductive"
    print(f"{checkpoint.stem}  {name}/{pool.split}/{side}{turned}  {manner}  {result}")


@app.command("inspect")
def inspect_memory(
    run: Annotated[
        Path, typer.Argument(help="A checkpoint of a learner with a memory, or a results folder.")
    ],
    learner: Annotated[
        str | None, typer.Option(help="Learner of the results folder; its first with a memory by default.")
    ] = None,
    option: LearnerOption = None,
    dataset: Annotated[str | None, typer.Option(help="Data set; that of the training by default.")] = None,
    split: SplitOption = None,
    side: Annotated[Side, typer.Option(help="Side of the split.")] = "test",
    rotated: Annotated[bool, typer.Option("--rotated", help="Count turned classes as classes.")] = False,
    way: Annotated[int | None, typer.Option(help="Classes per stream; as trained by default.")] = None,
    length: Annotated[int | None, typer.Option(help="Images per stream; 10 per class by default.")] = None,
    counts: CountsOption = "exact",
    within_group: GroupOption = False,
    episode: Annotated[int, typer.Option(min=0, help="Number of the episode to draw.")] = 0,
    episode_seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes.")] = 0,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes that the score is averaged over.")] = 100,
    out: Annotated[
        Path | None, typer.Option(help="PNG file; <checkpoint>-episode-<number>.png by default.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the same as one page that stands alone.")] = None,
    data: DataOption = None,
) -> None:
    """Look into the memory of a learner: what it stored, where, and what it read to answer one stream."""
    from fewshot.data.progress import progress
    from fewshot.episodes.protocol import Stream
    from fewshot.episodes.sampler import EpisodeSampler
    from fewshot.harness.evaluate import describe
    from fewshot.harness.microscope import find_learner_with_memory, measure_attribution, watch_episode
    from fewshot.harness.record import replace_file
    from fewshot.report.figure import save
    from fewshot.report.microscope import draw_microscope
    from fewshot.report.microscope_page import microscope_page

    checkpoint, loaded = find_learner_with_memory(run, learner, _options(option or []))
    name, pool = _classes(checkpoint, loaded.image_shape, dataset, split, side, rotated, data)
    way = way or loaded.way
    stream = Stream(way, length or 10 * way, counts, within_group, loaded.labels)
    source = EpisodeSampler(pool, stream, episode_seed)
    watched = watch_episode(loaded, source, episode)
    with progress(f"watching {checkpoint.stem}", episodes) as advance:
        score = measure_attribution(loaded, source, episodes, on_progress=advance)
    place = f"{checkpoint.stem}, {name}/{pool.split}/{side}"
    title = f"{place}: what the memory did in episode {episode}"
    lines = (f"{describe(stream)}: {watched}", str(score))
    figure = draw_microscope(watched, title, *lines)
    print(f"{place}, {describe(stream)}\n{score}")
    print(
        f"the stored image that is read most is of the right class in {100 * score.foremost:.1f} %, the "
        f"answer is right in {100 * score.accuracy:.1f} %, where the class was known"
    )
    print(save(figure, out or Path(f"{checkpoint.stem}-episode-{episode}.png"), colors=256))
    if html:
        page = microscope_page(watched, figure, title=title, lines=lines, command=_typed())
        replace_file(html, page.encode())
        print(html)


@app.command()
def run(
    suite: Annotated[
        Path, typer.Argument(help="A TOML file of benchmarks/, or a folder of class folders of images.")
    ],
    out: Annotated[Path | None, typer.Option(help="Results folder; results/<suite> by default.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="For a folder: a file of ResNet-18's weights, or published.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this learner; repeatable.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what is there and train again.")] = False,
    jobs: JobsOption = None,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="Threads of each process.")] = 1,
    device: DeviceOption = None,
    data: DataOption = None,
) -> None:
    """Run a suite: train and measure what is missing, then print the table and draw the plots."""
    from fewshot.harness.progress import show_updates
    from fewshot.harness.run import run_suite

    parsed = _suite(suite, weights)
    folder = out or Path("results") / parsed.name
    with show_updates() as on_update:
        made = run_suite(
            parsed,
            folder,
            root=data,
            device=_device(device),
            jobs=jobs,
            threads=threads,
            fresh=fresh,
            only=tuple(only or ()),
            on_update=on_update,
        )
    _write_table(folder)
    table(folder, "text")
    plot(folder)
    print(f"{len(made)} new records in {folder}; verify them with: fewshot verify {folder}")


def _suite(place: Path, weights: str | None) -> "Suite":
    """The suite of a file, or of a folder of images."""
    from fewshot.harness.config import no_suite, read_suite
    from fewshot.harness.own_images import suite_of_folder

    if not place.exists():
        raise RecordError(f"{no_suite(place)}; a folder of class folders of images may be given too")
    if place.is_dir():
        made = suite_of_folder(place, weights)
        if weights is None:
            print(
                f"{place}: a small network is trained from scratch; with --weights FILE, or published where "
                "they are on this machine, a frozen ResNet-18 takes its place",
                file=sys.stderr,
            )
        return made
    if weights is not None:
        raise RecordError(f"--weights is for a folder of images; {place} names its own: leave it out")
    return read_suite(place)


def _write_table(folder: Path) -> None:
    """The tables beside the records that they are made from; programs ask `fewshot table --format csv`."""
    from fewshot.harness.record import read_records, replace_file
    from fewshot.report.formats import write
    from fewshot.report.training_table import tables_and_training

    replace_file(folder / "table.md", write(tables_and_training(read_records(folder), folder), "md").encode())


@app.command()
def table(
    results: Annotated[Path, typer.Argument(help="A results folder.")],
    format: FormatOption = "text",
    training: Annotated[
        bool, typer.Option("--training", help="What the learners were trained on, and for how long.")
    ] = False,
) -> None:
    """Print the tables of a results folder, published figures beside ours."""
    from fewshot.harness.record import read_records
    from fewshot.report import table, training_table

    records = read_records(results)
    if training:
        print(training_table.render(records, format), end="")
    else:
        print(table.render(records, format, results), end="")


@app.command()
def compare(
    results: Annotated[Path, typer.Argument(help="A results folder.")],
    learner_a: Annotated[str, typer.Argument(help="A learner of it.")],
    learner_b: Annotated[str, typer.Argument(help="Another one, of it or of --against.")],
    against: Annotated[Path | None, typer.Option(help="The results folder of LEARNER_B.")] = None,
    presentation: Annotated[
        list[int] | None, typer.Option(min=1, help="Of streams; repeatable. 1, 2, 3, 5, 10 by default.")
    ] = None,
    format: FormatOption = "text",
    data: DataOption = None,
) -> None:
    """Compare two learners on the same test episodes: differences, intervals, p-values."""
    from fewshot.harness.pairing import PRESENTATIONS, Contender, compare_learners
    from fewshot.report.comparison_table import render

    a, b = Contender(results, learner_a), Contender(against or results, learner_b)
    compared = compare_learners(a, b, presentation or PRESENTATIONS, root=data)
    print(render(compared, format), end="")


@app.command()
def ledger(
    results: Annotated[Path, typer.Argument(help="The folder of the results folders.")] = Path("results"),
) -> None:
    """Write README.md of all results: which published figures were rerun, and which are matched."""
    from fewshot.harness.record import replace_file
    from fewshot.report.ledger import ledger_page, read_results

    page = results / "README.md"
    replace_file(page, ledger_page(read_results(results)).encode())
    print(page)


@app.command()
def plot(results: Annotated[Path, typer.Argument(help="A results folder.")]) -> None:
    """Draw the plots of a results folder: streams, K-shot, learning curves."""
    from fewshot.report.plot import plot_suite

    for path in plot_suite(results):
        print(path)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="A results folder.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; RESULTS/report.html by default.")] = None,
) -> None:
    """Write the tables and plots of a results folder as one page that stands alone."""
    from fewshot.harness.record import replace_file
    from fewshot.report.results_page import results_page

    page = out or results / "report.html"
    replace_file(page, results_page(results, _typed()).encode())
    print(page)


@app.command()
def verify(
    results: Annotated[Path, typer.Argument(help="A results folder.")],
    full: Annotated[bool, typer.Option("--full", help="All recorded episodes, not the first 200.")] = False,
    jobs: JobsOption = None,
    data: DataOption = None,
) -> None:
    """Measure recorded figures again from their stored weights; exit code 1 where one does not agree.

    Exit code 2 where none disagrees, and one cannot be measured here: its learner's own code is missing.
    """
    from fewshot.data.progress import progress
    from fewshot.harness.record import read_records
    from fewshot.harness.verify import verify_records

    total = len(read_records(results))
    differ = unmeasured = 0
    with progress("verifying", total) as advance:
        for verdict in verify_records(results, root=data, full=full, jobs=jobs):
            advance(1)
            unmeasured += not verdict.measured
            differ += verdict.measured and verdict.problem is not None
            print(verdict)
    agree = total - differ - unmeasured
    rest = f"; {unmeasured} could not be measured here" if unmeasured else ""
    print(f"{agree} of {total} records of {results} agree with their stored weights{rest}")
    raise typer.Exit(1 if differ else 2 if unmeasured else 0)


@app.command()
def audit(
    what: Annotated[
        Path, typer.Argument(help="A results folder, or a suite of benchmarks/ before it is run.")
    ],
    jobs: JobsOption = None,
    data: DataOption = None,
) -> None:
    """Look for leaks in episodes, logs of draws, learners and answers; exit code 1 where a guard fails."""
    from fewshot.data.progress import progress
    from fewshot.harness.audit.tasks import carry_out, plan_audit
    from fewshot.report.audit import lines

    tasks = plan_audit(what, data)
    with progress(f"auditing {what}", len(tasks)) as advance:
        findings = carry_out(tasks, jobs, advance)
    print("\n".join(lines(findings)))
    failed = {finding.guard for finding in findings if not finding.holds}
    fail = "1 guard fails" if len(failed) == 1 else f"{len(failed)} guards fail"
    print(f"{what}: {fail if failed else 'all guards hold'}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def bench(
    out: Annotated[
        Path, typer.Option(help="Folder for speed.csv and the plots; the recorded one is results/speed.")
    ] = Path("results/mine/speed"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Shorter rounds, without the measures that train to an accuracy.")
    ] = False,
) -> None:
    """Measure speed beside other packages and the machine's limits: ten minutes on two cores."""
    from fewshot.harness.bench import run_bench

    run_bench(out, quick)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="Data set.")],
    source: Annotated[Path | None, typer.Option("--from", help="Take what you have from here.")] = None,
    data: DataOption = None,
) -> None:
    """Download a data set (says source, licence and size first), or take it from where you have it."""
    from fewshot.data.obtain import get_dataset

    for path in get_dataset(name, data, source):
        print(path)


@data_app.command("list")
def data_list(data: DataOption = None) -> None:
    """List data sets and where they are."""
    _print_datasets(data)


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="Data set, or the path of a folder of class folders.")],
    image_size: Annotated[int | None, typer.Option(help="Pixels of a side, of a folder.")] = None,
    data: DataOption = None,
) -> None:
    """Read a data set in whole and hold it against what is known of it; exit code 1 where it differs."""
    from fewshot.data.check import check_dataset

    report = check_dataset(name, data, image_size)
    print(report)
    raise typer.Exit(1 if report.problems else 0)


@data_app.command("show")
def data_show(
    name: Annotated[str, typer.Argument(help="Data set, or the path of a folder of class folders.")],
    split: SplitOption = None,
    side: Annotated[Side, typer.Option(help="Side of the split.")] = "train",
    rotated: Annotated[bool, typer.Option("--rotated", help="Count turned classes as classes.")] = False,
    image_size: Annotated[int | None, typer.Option(help="Pixels of a side.")] = None,
    protocol: ProtocolOption = "kshot",
    way: WayOption = 5,
    shot: ShotOption = 1,
    query: QueryOption = 15,
    length: LengthOption = 50,
    counts: CountsOption = "exact",
    labels: LabelsOption = "one_hot",
    chain: ChainOption = 1,
    within_group: GroupOption = False,
    episode: Annotated[int, typer.Option(min=0, help="Number of the episode.")] = 0,
    episode_seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes.")] = 0,
    out: Annotated[Path | None, typer.Option(help="PNG file; <data set>-<protocol>.png by default.")] = None,
    data: DataOption = None,
) -> None:
    """Draw one episode as a picture: support and query with their labels, or a stream."""
    from fewshot.data.catalogue import load_dataset
    from fewshot.episodes.sampler import EpisodeSampler
    from fewshot.report.figure import save

    image_set = load_dataset(name, data, image_size)
    pool = image_set.split(split or _usual_split(image_set)).side(side)
    pool = pool.with_rotations() if rotated else pool
    wanted = _protocol(
        protocol,
        way,
        {"shot": shot, "query": query},
        {"length": length, "counts": counts, "labels": labels, "chain": chain},
        within_group,
    )
    figure = _episode_figure(EpisodeSampler(pool, wanted, episode_seed), episode)
    print(save(figure, out or Path(f"{image_set.name.replace(':', '.')}-{protocol}.png")))


def _classes(
    checkpoint: Path,
    image_shape: tuple[int, int, int],
    dataset: str | None,
    split: str | None,
    side: Side,
    rotated: bool,
    data: Path | None,
) -> tuple[str, "ClassPool"]:
    """The data set's name, and the classes to ask a checkpoint about; of the training's data by default."""
    import json

    from fewshot.data.catalogue import load_dataset
    from fewshot.harness.checkpoint import checkpoint_facts

    training = json.loads(checkpoint_facts(checkpoint).get("training", "{}"))
    name = dataset or training.get("train_dataset") or "glyphs"
    image_set = load_dataset(name, data, image_shape[-1])
    if image_set.image_shape != image_shape:
        raise LearnerError(
            f"{checkpoint} reads images of (channel, height, width) {image_shape}, {name} has "
            f"{image_set.image_shape}: choose another data set, or train on this one"
        )
    known = training.get("train_split") if name == training.get("train_dataset") else None
    pool = image_set.split(split or known or _usual_split(image_set)).side(side)
    return name, pool.with_rotations() if rotated else pool


def _episode_figure(source: "EpisodeSource", number: int) -> "Figure":
    """The picture of one episode: its pixels as they are in the image set, turned where the class is."""
    from fewshot.episodes.batch import KShotBatch
    from fewshot.episodes.labels import spelled
    from fewshot.report.episode_picture import draw_kshot, draw_stream

    indices, batch = source.indices(number, 1), source.batch(number, 1)
    pool = source.pool
    images, names = source.drawings(number).numpy(), source.class_names(number)
    title = f"{pool.image_set.name}/{pool.split}/{pool.side}, episode {number}"
    if isinstance(batch, KShotBatch):
        support, labels = indices.support, indices.labels[0].numpy()
        return draw_kshot(
            images[:support], labels[:support], images[support:], labels[support:], names, title
        )
    captions = [str(place % batch.way) for place in range(len(names))]
    if batch.codes is not None:
        captions = [spelled(code) for code in batch.codes[0].tolist()]
    return draw_stream(images, batch.places[0].numpy(), batch.presentation[0].numpy(), names, title, captions)


def _protocol_settings(
    protocol: ProtocolName,
    way: int,
    kshot: dict[str, Any],
    stream: dict[str, Any],
    within_group: bool = False,
) -> dict[str, Any]:
    """A protocol as a suite has it; kshot, stream: what the one or the other has beside way and group."""
    own = kshot if protocol == "kshot" else stream
    return {"protocol": protocol, "way": way, "within_group": within_group} | own


def _protocol(*given: Any) -> "Protocol":
    """The protocol that `_protocol_settings` says."""
    from fewshot.episodes.protocol import KShot, Stream

    settings = _protocol_settings(*given)
    return KShot(**settings) if settings.pop("protocol") == "kshot" else Stream(**settings)


def _data_settings(dataset: str, split: str | None, size: int | None, data: Path | None) -> dict[str, Any]:
    from fewshot.data.catalogue import load_dataset, named_dataset

    if size is None and (known := named_dataset(dataset)):
        size = known.usual_size
    chosen = split or _usual_split(load_dataset(dataset, data, size))
    settings = {"dataset": dataset, "split": chosen, "image_size": size}
    return {name: value for name, value in settings.items() if value is not None}


def _usual_split(image_set: Any) -> str:
    from fewshot.data.catalogue import named_dataset
    from fewshot.data.splits import split_names
    from fewshot.errors import SplitError

    if known := named_dataset(image_set.name):
        return known.splits[0]
    names = split_names(image_set)
    if not names:
        raise SplitError(f"{image_set.name} has no named split: put its classes into train/, val/ and test/")
    return names[0]


def _options(given: list[str]) -> dict[str, Any]:
    """name=value pairs, the value as in TOML; a bare word is a string."""
    import tomllib

    options: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise RecordError(f"--option takes name=value; got {pair!r}")
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[name] = value
    return options


def _typed() -> str:
    """The command as a shell takes it."""
    return shlex.join(["fewshot", *sys.argv[1:]])


def _device(name: str | None) -> str:
    """The name of a device that is there; the GPU where there is one, by default."""
    import torch

    from fewshot.episodes.source import checked_device

    return str(checked_device(name or ("cuda" if torch.cuda.is_available() else "cpu")))


def _first_line(learner: str) -> str:
    """What a learner says of itself."""
    from fewshot.learners.registry import learner_class

    return (learner_class(learner).__doc__ or "").splitlines()[0]


def _print_datasets(data: Path | None) -> None:
    from fewshot.data.catalogue import list_datasets

    for row in list_datasets(data):
        dataset = row.dataset
        print(f"{dataset.name:<17}{dataset.classes:,} classes, {dataset.images:,} images")
        print(f"{'':<17}splits: {', '.join(dataset.splits)}; licence: {dataset.licence}")
        print(f"{'':<17}{row.where}")


def main() -> None:
    """The console script."""
    sys.path.insert(0, "")  # so that a learner of one's own is found as "module:Class" from where it lies
    try:
        app()
    except FewshotError as error:
        print(f"fewshot: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of an interrupt
            print("fewshot: stopped; train, run and data get go on from here", file=sys.stderr)
        raise
