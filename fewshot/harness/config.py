"""What a suite says: data, tests, learners and how they are trained, read from a TOML file.

The docstrings of the models and beneath their fields are the reference in benchmarks/README.md
(`benchmarks.suite_keys`).

Every model refuses unknown keys and names the nearest known one (design decision 9), so that a misspelt
setting can never be a setting that silently does nothing.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_serializer,
    model_validator,
)

from fewshot.episodes.augment import Augment
from fewshot.episodes.labels import Labels
from fewshot.episodes.protocol import Counts, KShot, Stream
from fewshot.errors import FewshotError, RecordError, unknown

Count = Annotated[StrictInt, Field(gt=0)]
Bounds = StrictInt | tuple[StrictInt, StrictInt]
Amount = Annotated[StrictFloat, Field(gt=0)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]

TRIAL_SEED = 1_000_081
"""Seed of the weights and the episodes of all trials, and of no training."""


class Settings(BaseModel):
    """Frozen settings without room for an unknown key.

    added: settings that came after figures were recorded, and whose defaults do what was done before; at its
    default such a setting is not written out, so that the keys of older results stay what they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
    added: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, **given: Any) -> None:
        """Made by hand; RecordError, in one line, names what does not fit."""
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise RecordError(f"{type(self).__name__}: {first_problem(error)}") from None

    # By this mark pydantic makes settings inside of others without it: their problem's place is the whole's.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        fields = type(self).model_fields
        usual = {name for name in self.added if getattr(self, name) == fields[name].default}
        return {name: value for name, value in written.items() if name not in usual}

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    raise ValueError(unknown("key", str(key), cls.model_fields))
        return given


class KShotSettings(Settings):
    """`fewshot.KShot` in a file: a support set to learn from, and queries to name; in training, way and shot
    may be [least, largest]."""

    protocol: Literal["kshot"]
    way: Bounds = 5
    """Classes of an episode."""
    shot: Bounds = 1
    """Support images of each class."""
    query: Count = 15
    """Images of each class to name."""
    within_group: StrictBool = False
    """Whether all classes of an episode are of one group (alphabet)."""

    def build(self) -> KShot:
        return KShot(self.way, self.shot, self.query, self.within_group)


class StreamSettings(Settings):
    """`fewshot.Stream` in a file: a sequence of images, each named before its label is shown."""

    added: ClassVar[frozenset[str]] = frozenset({"labels", "chain"})

    protocol: Literal["stream"]
    way: Count = 5
    """Classes of an episode."""
    length: Count = 50
    """Images of an episode, of all its classes."""
    counts: Counts = "exact"
    """exact gives each class as many images, which can be counted; random draws the class of each step."""
    within_group: StrictBool = False
    """Whether all classes of an episode are of one group (alphabet)."""
    labels: Labels = "one_hot"
    """Whether classes go by numbers or by strings of five letters."""
    chain: Count = 1
    """How many sequences follow one another, without wiping, as one episode."""

    def build(self) -> Stream:
        return Stream(self.way, self.length, self.counts, self.within_group, self.labels, self.chain)


ProtocolSettings = Annotated[KShotSettings | StreamSettings, Field(discriminator="protocol")]


class Measured(Settings):
    """On which episodes figures are measured; each has one way and one shot."""

    episodes: Count = 1000
    """How many; always the first ones of the episode seed."""
    episode_seed: Seed = 0
    """Of the drawn classes, images and order."""
    rotated: tuple[StrictBool, ...] = Field((False,), min_length=1)
    """Whether turned test classes count as classes of their own; one record each."""


class KShotTest(KShotSettings, Measured):
    """A K-shot test: its protocol and on which episodes. A figure has one way and one shot."""

    way: Count = 5
    shot: Count = 1


class StreamTest(StreamSettings, Measured):
    """A stream test: its protocol and on which episodes."""


Test = Annotated[KShotTest | StreamTest, Field(discriminator="protocol")]


class AugmentSettings(Settings):
    """`fewshot.Augment` in a file: random affine change of each training image."""

    added: ClassVar[frozenset[str]] = frozenset({"mirror", "crop"})

    angle_degrees: StrictFloat = Field(11.25, ge=0, le=180)
    """Largest rotation."""
    shift: StrictFloat = Field(0.1, ge=0, le=1)
    """Largest translation, down and across, as a fraction of the side."""
    scale: StrictFloat = Field(0.0, ge=0, le=0.9)
    """Largest change of size, as a fraction."""
    shear: StrictFloat = Field(0.0, ge=0, le=1)
    """Largest slant, as the tangent of its angle."""
    mirror: StrictBool = False
    """Whether every other image, by chance, has left and right exchanged."""
    crop: Count | None = None
    """Side, in pixels, of the window in the middle that alone is left after the changes above, for learners
    that can be trained on windows (convolutions with averaged = true, ResNets); left out, the whole image."""

    def build(self) -> Augment:
        return Augment(**self.model_dump())


class CurriculumSettings(Settings):
    """Streams that grow while a learner is trained (Santoro et al. 2016): as many images of each class, and
    one class more every so many steps, until the way of `episodes` is reached."""

    first_way: StrictInt = Field(5, ge=2)
    """Classes of the first episodes."""
    every: Count = 500
    """Steps until there is one more."""


class TrialSettings(Settings):
    """What is tried before a learner is trained; it then trains with the candidate that was the best on
    validation classes (`fewshot.harness.trials`)."""

    steps: Count
    """Optimiser updates of each trial."""
    candidates: tuple[dict[str, Any], ...] = Field(min_length=2)
    """What each changes: training settings by name, and under "options" options of the learner."""


class TrainSettings(Settings):
    """How a learner is trained, and how the weights to keep are chosen (on validation classes only)."""

    added: ClassVar[frozenset[str]] = frozenset(
        {"curriculum", "trials", "watch_training", "float16", "generations", "weight_decay", "compiled"}
    )

    episodes: ProtocolSettings = KShotSettings(protocol="kshot", way=5, shot=1, query=5)
    """The protocol of the training episodes."""
    batch: Count = 16
    """Episodes per step."""
    steps: Count = 2000
    """Optimiser updates, of all generations together."""
    generations: Count = 1
    """Into how many equal parts the steps fall, each of which keeps the network of images of the one before
    and sets all else back: what stands on the network to its first weights, the optimiser, the schedule
    (after Zhou et al. 2022, "Fortuitous Forgetting in Connectionist Networks")."""
    optimizer: Literal["adam", "rmsprop", "sgd"] = "adam"
    """rmsprop has a momentum of 0.9 (Santoro et al. 2016, as far as their settings are known), sgd Nesterov's
    of 0.9 (what classifiers are trained with: Chen et al. 2021, "Meta-Baseline")."""
    weight_decay: StrictFloat = Field(default=0.0, ge=0)
    """How much of each weight, of biases and norms too, is added to its gradient, once that is clipped."""
    learning_rate: Amount = 1e-3
    """Of a first step; of all, where the schedule is constant."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """cosine falls from learning_rate to a hundredth of it over the steps, of a generation each."""
    clip_norm: Amount = 10.0
    """Largest norm of the whole gradient."""
    rotations: StrictBool = True
    """Whether training classes turned by 90, 180 and 270 degrees are classes of their own."""
    augment: AugmentSettings | None = None
    """How training images are distorted; left out, they are not."""
    validate_every: Count = 250
    """Steps between looks at the validation classes; the best look's weights are kept."""
    validate_episodes: Count = 200
    """Episodes of each look."""
    validate_on: ProtocolSettings | None = None
    """The protocol of validation episodes; left out, that of training."""
    watch_training: StrictBool = False
    """Whether each look is at as many episodes of training classes too, to see what is learned by heart."""
    curriculum: CurriculumSettings | None = None
    """How the training episodes grow up to `episodes`; left out, they are such from the first step on."""
    trials: TrialSettings | None = None
    """What is tried first; left out, the settings are what they are."""
    float16: StrictBool = False
    """Whether matrices of weights are stored as float16 of five significant bits, and not as whole steps in
    three fifths of the room."""
    compiled: StrictBool = False
    """Whether, on a GPU, the network of images is compiled and an update of K-shot episodes recorded once and
    replayed, by learners of which that can be. (Conv4-64 took half a minute for each shape of episodes on an
    H100, and was faster after that.)"""

    @property
    def measure(self) -> dict[str, Any]:
        """What trainings have in common whose validation accuracies can be compared."""
        names = ("steps", "rotations", "validate_episodes", "trials")
        asked = self.validate_on or self.episodes
        return {name: getattr(self, name) for name in names} | {"validate_on": asked}

    @model_validator(mode="after")
    def _generations_are_equal(self) -> Self:
        if self.steps % self.generations:
            raise ValueError(
                f"{self.steps} steps do not fall into {self.generations} equal generations: give a multiple"
            )
        if self.curriculum and self.generations > 1:
            raise ValueError("a curriculum grows once: leave out generations, or the curriculum")
        return self

    @model_validator(mode="after")
    def _curriculum_leads_to_episodes(self) -> Self:
        if self.curriculum is None:
            return self
        episodes = self.episodes
        if isinstance(episodes, KShotSettings) or episodes.length % episodes.way:
            raise ValueError(
                "a curriculum leads to streams: give episodes of a length that their way divides"
            )
        if self.curriculum.first_way > episodes.way:
            raise ValueError(
                f"a curriculum that begins with {self.curriculum.first_way} classes cannot lead to "
                f"{episodes.way}: lower first_way"
            )
        return self


class DataSettings(Settings):
    """Which images, at which size, and which split of their classes."""

    dataset: str
    """One of `fewshot data list`, or the path of a folder of class folders; with ":rgb" behind it, grey
    images have three channels."""
    split: str
    """One that `fewshot data list` names, or parts as "fraction:0.6/0.2/0.2@0"; of a folder also "folders" or
    "default"."""
    image_size: Count | None = None
    """Pixels of a side; left out, the size as published."""


class LearnerSettings(Settings):
    """One row of the comparison."""

    id: str
    """A learner id of `fewshot list`, with an optional ":variant"; or your own as "package.module:Class"."""
    options: dict[str, Any] = {}
    """Those of the learner by name, which are the arguments of its class."""
    train: TrainSettings = TrainSettings()
    """Unused by learners that have nothing to train."""
    train_seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    """One training each, of weights and episodes of its own."""
    weights: str | None = None
    """A recorded checkpoint to answer with under this row's options, instead of training, or that of another
    row of the suite, "results/SUITE/checkpoints/ID-SEED.safetensors" (":" as "."), which is run first;
    "{seed}" in its path stands for the train seed."""
    start_from: str | None = None
    """A recorded checkpoint whose network of images the training begins with, trained on the same split, or
    that of another row, as for weights; all train seeds begin with the one."""
    stream_episodes: Count | None = None
    """Fewer test streams than the tests ask for, where answering is expensive; the record says so."""

    @model_validator(mode="after")
    def _each_seed_has_weights_of_its_own(self) -> Self:
        """One checkpoint under several seeds would pass for as many trainings."""
        if self.weights and len(self.train_seeds) > 1 and "{seed}" not in self.weights:
            raise ValueError(
                f"{len(self.train_seeds)} train seeds need as many checkpoints: write {{seed}} in the path "
                f"of the weights (got {self.weights!r}), or name one seed"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_not_trained(self) -> Self:
        for name in ("weights", "start_from"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} names no checkpoint: give its path, or leave {name} out")
        if self.weights and self.start_from:
            raise ValueError("weights are answered with as they are: leave out start_from, or weights")
        return self

    @model_validator(mode="after")
    def _candidates_can_be_compared(self) -> Self:
        trials = self.train.trials
        if trials and TRIAL_SEED in self.train_seeds:
            raise ValueError(f"train seed {TRIAL_SEED} is that of trials: choose another")
        for number, candidate in enumerate(trials.candidates if trials else (), 1):
            if not isinstance(candidate.get("options", {}), dict):
                raise ValueError(f"candidate {number} of the trials: options is a table of names and values")
            try:
                measure = self.under(candidate).train.measure
            except ValidationError as error:
                raise ValueError(f"candidate {number} of the trials: {first_problem(error)}") from None
            for name, value in self.train.measure.items():
                if measure[name] != value:
                    raise ValueError(
                        f"candidate {number} of the trials changes {name}, by which all are compared: leave "
                        f"it out{', or give validate_on' if name == 'validate_on' else ''}"
                    )
        return self

    def under(self, candidate: Mapping[str, Any]) -> Self:
        """The row with what a candidate changes."""
        changes = {name: value for name, value in candidate.items() if name != "options"}
        train = TrainSettings.model_validate(self.train.model_dump() | changes)
        options = self.options | candidate.get("options", {})
        return self.model_copy(update={"train": train, "options": options})


class Suite(Settings):
    """A committed configuration: every record of `results/<name>` comes from one of these."""

    name: str
    """The file's stem, and the results folder's name."""
    title: str
    """What is asked, for who reads the file."""
    data: DataSettings
    """What the tests read, and the training too unless train_data is given."""
    train_data: DataSettings | None = None
    """What the training reads."""
    train: dict[str, Any] = {}
    """Training settings shared by all learners; a learner's own [learner.train] overrides key by key."""
    test: tuple[Test, ...] = Field(min_length=1)
    """The columns: under which protocols, and on which episodes."""
    learner: tuple[LearnerSettings, ...] = Field(min_length=1)
    """The rows."""

    @model_validator(mode="after")
    def _each_learner_and_seed_once(self) -> Self:
        """A learner's files are named by its id and seed: two of one name would overwrite each other."""
        seen: set[str] = set()
        for learner in self.learner:
            if learner.id in seen:
                raise ValueError(
                    f"learner {learner.id!r} is there twice: tell them apart as in '{learner.id}:b'"
                )
            if len(set(learner.train_seeds)) < len(learner.train_seeds):
                raise ValueError(f"learner {learner.id!r} names a train seed twice")
            seen.add(learner.id)
        return self

    @property
    def training_data(self) -> DataSettings:
        return self.train_data or self.data


def read_suite(path: Path) -> Suite:
    """Read and check a suite; RecordError, in one line, names the file, the place and the remedy."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(no_suite(path)) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecordError(f"{path} is not a readable TOML file: {error}") from None
    return parse_suite(content, path.stem, str(path))


def no_suite(path: Path) -> str:
    """What to say where there is none, in one line."""
    there = ", ".join(sorted(str(other) for other in path.parent.glob("*.toml"))) or "no TOML file there"
    return f"no suite {path}; there is: {there}"


def parse_suite(content: dict[str, Any], name: str, origin: str = "") -> Suite:
    """Check a suite's content; `origin` is how errors name it, if they should."""
    before = f"{origin}: " if origin else ""
    shared = content.get("train")
    learners = content.get("learner")
    if isinstance(shared, dict) and isinstance(learners, list):
        content = content | {"learner": [_with_shared_training(learner, shared) for learner in learners]}
    try:
        suite = Suite.model_validate(content | {"name": name})
    except ValidationError as error:
        raise RecordError(f"{before}{first_problem(error, content)}") from None
    for place, protocol in _protocols(suite):
        try:
            protocol.build()
        except FewshotError as error:
            raise RecordError(f"{before}{place}: {error}") from None
    return suite


def first_problem(error: ValidationError, content: Mapping[str, Any] | None = None) -> str:
    """The first problem that pydantic found, in one line: where, what. content: of a suite, by whose ids
    learners are named."""
    problem = error.errors()[0]
    place = _place([part for part in problem["loc"] if part not in ("kshot", "stream")], content or {})
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "union_tag_not_found":
        message = 'give a table with protocol = "kshot" or "stream" and the keys of that one'
    given = problem.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float) else ""
    return f"{place}: {message}{shown}" if place else f"{message}{shown}"


def _with_shared_training(learner: Any, shared: dict[str, Any]) -> Any:
    if isinstance(learner, dict) and isinstance(learner.get("train", {}), dict):
        return learner | {"train": shared | learner.get("train", {})}
    return learner


def _place(path: Sequence[str | int], content: Mapping[str, Any]) -> str:
    """Where a setting stands: "[[test]] 2: way", "learner 'mann': train.steps"."""
    match path:
        case ["test" | "learner" as section, int(number), *inside]:
            row = content[section][number] if section == "learner" else {}
            named = isinstance(row, dict) and row.get("id")
            within = f"learner {named!r}" if named else f"[[{section}]] {number + 1}"
            return f"{within}: {_place(inside, {})}" if inside else within
    return ".".join(map(str, path))


def _protocols(suite: Suite) -> Iterator[tuple[str, KShotSettings | StreamSettings]]:
    """All protocols of a suite, and where each stands."""
    for number, test in enumerate(suite.test, 1):
        yield f"[[test]] {number}", test
    for learner in suite.learner:
        for name in ("episodes", "validate_on"):
            if asked := getattr(learner.train, name):
                yield f"learner {learner.id!r}: train.{name}", asked
