"""Golden traces: the first losses of each learner that is trained, on a small pinned image set.

A loss that moves means that recorded figures may move: then the learner's `version` (or SAMPLER_VERSION) is
raised by hand, which is what records are keyed by, and the new trace is recorded by running this file:

    python tests/harness/test_golden_traces.py
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot.data.image_set import ImageSet
from fewshot.data.split import Split
from fewshot.data.splits import split_by_fraction
from fewshot.episodes.sampler import SAMPLER_VERSION
from fewshot.harness import train as training
from fewshot.harness.config import TrainSettings
from fewshot.learners.registry import build_learner, learner_class, learner_names

TRACES = Path(__file__).with_name("golden_traces.json")
TOLERANCE = 2e-5
"""Of a loss and one nat together. Weights changed by a millionth move losses by a fifth of it; a usage decay
of 0.98 instead of 0.99 moves those of `mann` by fifty times it."""

IMAGE_SHAPE = (1, 12, 12)
CLASSES, PER_CLASS, WAY, STEPS = 20, 8, 5, 20
KSHOT = {"episodes": {"protocol": "kshot", "way": WAY, "shot": 1, "query": 2}}
STREAM = {"episodes": {"protocol": "stream", "way": WAY, "length": 20}}
LONG = {"episodes": STREAM["episodes"] | {"length": 40}}
"""With four heads, long enough to use up the paper's 128 slots."""
GROWN = {"episodes": STREAM["episodes"] | {"labels": "string"}, "curriculum": {"first_way": 3, "every": 5}}
"""Of 3 classes, from step 5 on 4, from step 10 on 5."""
SMALL = {"widths": [4, 8]}
MANN = SMALL | {"embedding_size": 8, "hidden_size": 16, "num_slots": 24, "word_size": 6, "read_heads": 2}
BY_CLASS = SMALL | {"classes": 40}
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "anil": ("anil", SMALL, KSHOT),
    "attention": ("attention", SMALL | {"embedding_size": 8, "hidden_size": 16}, STREAM),
    "baseline": ("baseline", BY_CLASS, KSHOT),
    "baseline_pp": ("baseline_pp", BY_CLASS, KSHOT),
    "feedforward": ("feedforward", SMALL | {"embedding_size": 8, "hidden_size": 16}, STREAM),
    "fomaml": ("fomaml", SMALL, KSHOT),
    "key_value": ("key_value", SMALL | {"embedding_size": 8, "num_slots": 12}, STREAM),
    "logistic": ("logistic", SMALL, KSHOT),
    "lstm": ("lstm", SMALL | {"embedding_size": 8, "hidden_size": 16}, STREAM),
    "maml": ("maml", SMALL, KSHOT),
    "maml with all of MAML++": (
        "maml",
        SMALL | {"inner_steps": 2, "step_rates": True, "norms": "running", "multi_step_loss": 10},
        KSHOT,
    ),
    "mann": ("mann", MANN, STREAM),
    "mann with the encoder's own loss": ("mann", MANN | {"metric_weight": 1.0}, STREAM),
    "mann with strings and a curriculum": ("mann", MANN | {"labels": "string"}, GROWN),
    "mann_dnc": ("mann_dnc", MANN | {"links": True}, STREAM),
    "mann_ntm": ("mann_ntm", MANN, STREAM),
    "mann_paper": ("mann_paper", {"hidden_size": 16}, LONG),
    "mann_paper with a feedforward controller": (
        "mann_paper",
        {"hidden_size": 16, "controller": "feedforward"},
        LONG,
    ),
    "mann_sparse": ("mann_sparse", MANN, STREAM),
    "matching with full context": ("matching", SMALL | {"full_context": True}, KSHOT),
    "matching": ("matching", SMALL, KSHOT),
    "meta_baseline": ("meta_baseline", BY_CLASS | {"classification_steps": 10}, KSHOT),
    "metasgd": ("metasgd", SMALL, KSHOT),
    "nearest_feature": ("nearest_feature", SMALL | {"embedding_size": 8}, STREAM),
    "prototypical": ("prototypical", SMALL, KSHOT),
    "prototypical by cosine": ("prototypical", SMALL | {"distance": "cosine"}, KSHOT),
    "prototypical on streams": ("prototypical", SMALL, STREAM),
    "relation": ("relation", SMALL | {"relation_width": 4}, KSHOT),
    "reptile": ("reptile", SMALL, KSHOT),
    "ridge": ("ridge", SMALL, KSHOT),
    "siamese": ("siamese", SMALL | {"embedding_size": 8}, KSHOT),
    "simpleshot": ("simpleshot", BY_CLASS, KSHOT),
}
"""By name: the learner, its options, and how it is trained."""


def split() -> Split:
    """Bytes of a hash, the same everywhere and for ever: a coarse pattern for each class, with noise."""
    images = []
    for number in range(CLASSES):
        pattern = (
            _bytes(f"class {number}", 16).view(4, 4).repeat_interleave(3, 0).repeat_interleave(3, 1) // 4
        )
        images.append(pattern + _bytes(f"noise {number}", PER_CLASS * 144).view(-1, 1, 12, 12) // 2)
    image_set = ImageSet(
        name="hashed",
        images=torch.cat(images),
        class_names=tuple(f"all/{number:02}" for number in range(CLASSES)),
        class_start=torch.arange(0, CLASSES * PER_CLASS + 1, PER_CLASS),
        image_names=tuple(str(number) for number in range(CLASSES * PER_CLASS)),
        source="a hash",
        licence="none",
        mean=(0.0,),
        std=(1.0,),
        digest=hashlib.sha256(b"hashed").hexdigest(),
    )
    return split_by_fraction(image_set, 0.5, 0.25, 0.25, split_seed=0)


def _bytes(text: str, count: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(hashlib.shake_256(text.encode()).digest(count)), dtype=torch.uint8)


def trace(run: str, shift: float = 0.0) -> list[float]:
    """The losses of the first steps, in nats; shift: added to the weights before."""
    name, options, training_settings = RUNS[run]
    settings = TrainSettings.model_validate(
        {"batch": 4, "steps": STEPS, "validate_every": STEPS, "validate_episodes": 2} | training_settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = build_learner(name, IMAGE_SHAPE, WAY, options)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += shift
    losses: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LOG_EVERY_STEPS", 1)
        training.train(learner, split(), settings, on_progress=lambda progress: losses.append(progress.loss))
    return losses


def distance(loss: float, other: float) -> float:
    return abs(loss - other) / (1 + abs(other))


def versioned(run: str) -> str:
    return f"{run}, version {learner_class(RUNS[run][0]).version}, sampler {SAMPLER_VERSION}"


def test_every_learner_that_is_trained_has_a_trace() -> None:
    trained = {name for name in learner_names() if learner_class(name).trainable}
    assert {name for name, _, _ in RUNS.values()} == trained


@pytest.mark.parametrize("run", RUNS)
def test_the_first_losses_are_those_recorded(run: str) -> None:
    recorded = json.loads(TRACES.read_text(encoding="utf-8"))
    if versioned(run) not in recorded:
        pytest.fail(f"no trace of {versioned(run)}: record it by running this file")
    losses, golden = trace(run), recorded[versioned(run)]
    moved = [step for step in range(STEPS) if not distance(losses[step], golden[step]) <= TOLERANCE]
    assert not moved, (
        f"{run} has moved: loss {moved[0]} is {losses[moved[0]]:.6f}, was {golden[moved[0]]:.6f}. "
        "If that is meant, recorded figures are stale: raise the learner's version (or SAMPLER_VERSION) and "
        "record the new trace by running this file"
    )


@pytest.mark.parametrize("run", RUNS)
def test_rounding_alone_stays_within_the_tolerance(run: str) -> None:
    """Another machine rounds differently, by about 1e-7: a trace must not be so long that this shows."""
    assert max(map(distance, trace(run), trace(run, shift=1e-7))) < TOLERANCE / 4


def _record() -> None:
    """Add the traces of versions that have none; a trace once recorded is never replaced."""
    torch.set_num_threads(1)
    recorded = json.loads(TRACES.read_text(encoding="utf-8")) if TRACES.exists() else {}
    current = {versioned(run): run for run in RUNS}
    kept = {name: losses for name, losses in recorded.items() if name in current}
    made = {
        name: [round(loss, 6) for loss in trace(run)] for name, run in current.items() if name not in kept
    }
    traces = kept | made
    lines = [f"  {json.dumps(name)}: {json.dumps(traces[name])}" for name in sorted(traces)]
    TRACES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(made)} new traces in {TRACES}")


if __name__ == "__main__":
    _record()
