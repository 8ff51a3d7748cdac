"""Tables of comparisons say what was compared, over what the intervals are, and who is better."""

import io

import pandas as pd
import pytest

from fewshot.errors import RecordError
from fewshot.harness.comparison import Compared, Comparison
from fewshot.harness.record import Record
from fewshot.report.comparison_table import COLUMNS, long_table, render
from tests.report.test_table import NOT_TRAINED, kshot, stream


def compared(
    a: list[Record],
    b: list[Record],
    p: float,
    instance: int | None = None,
    accuracies: tuple[float, float] = (0.97, 0.9587),
    ci95_methods: float | None = None,
) -> Compared:
    found = Comparison(
        *accuracies, ci95=0.0021, ci95_classes=0.0042, ci95_methods=ci95_methods, p_value=p / 2
    )
    return Compared(tuple(a), tuple(b), instance, 1000, found, p)


def seeds(record: Record, count: int) -> list[Record]:
    return [record.model_copy(update={"train_seed": seed}) for seed in range(count)]


GOLDEN = """\
mann and prototypical · K-shot · omniglot 28×28, split vinyals (test), upright classes, 1,000
episodes
setting             A       B   A − B   ± episodes   ± classes   ± seeds        p     verdict
─────────────────────────────────────────────────────────────────────────────────────────────
5-way 1-shot    97.00   95.87   +1.13         0.21        0.42             <0.001    A better
20-way 5-shot   97.00   95.87   +1.13         0.21        0.42              0.050   undecided

mann and prototypical · Stream · 5-way, 50 images, exact counts · omniglot 28×28, split vinyals
(test), upright classes, 1,000 episodes
presented       A       B   A − B   ± episodes   ± classes   ± seeds       p    verdict
───────────────────────────────────────────────────────────────────────────────────────
all         97.00   95.87   +1.13         0.21        0.42             0.020   A better
2nd         97.00   95.87   +1.13         0.21        0.42             0.049   A better
A: mann, 3 training seeds; B: prototypical, 1 training seed. About these checkpoints only: for
methods it takes 3 training seeds of each.
All: at every presentation at which both were asked.
Accuracy in %, difference in points; ± half the 95 % interval of the difference: over episodes; over
test classes and episodes; over training seeds, test classes and episodes.
p: of no difference, two-sided, by the widest interval, corrected for 4 comparisons (Holm).
Undecided: not distinguishable, p of 0.05 or more.

"""
BY_INSTANCE = {1: 0.4, 2: 0.9}
STREAMS = seeds(stream("mann", BY_INSTANCE), 3), [stream("prototypical", BY_INSTANCE)]
ROWS = [
    compared(seeds(kshot("mann", 0.97), 3), [kshot("prototypical", 0.96)], 0.00001),
    compared(seeds(kshot("mann", 0.97, way=20, shot=5), 3), [kshot("prototypical", 0.96)], 0.05),
    compared(*STREAMS, 0.02),
    compared(*STREAMS, 0.049, instance=2),
]


def test_what_people_read() -> None:
    assert render(ROWS, "text") == GOLDEN
    for format in ("md", "latex", "html"):
        text = render(ROWS, format)
        assert text.count("undecided") == 1
        assert text.count("A better") == 3


def test_the_long_table_has_a_row_per_comparison() -> None:
    frame = pd.read_csv(io.StringIO(render(ROWS, "csv")))
    assert tuple(frame) == COLUMNS
    assert frame["instance"].astype("Int64").tolist() == [pd.NA, pd.NA, pd.NA, 2]
    assert frame["difference"].tolist() == [1.13] * 4
    assert frame["p_holm"].tolist() == [0.00001, 0.05, 0.02, 0.049]
    assert frame[["train_seeds_a", "train_seeds_b"]].values.tolist() == [[3, 1]] * 4


def test_the_long_table_says_what_else_tells_tests_apart() -> None:
    shown = [compared([kshot("mann", 0.9, query=query)], [kshot("maml", 0.9)], 0.5) for query in (5, 15)]
    given = ({"length": 20}, {"length": 50}, {"length": 50, "within_group": True})
    shown += [compared([stream("mann", BY_INSTANCE, **f)], [stream("maml", BY_INSTANCE)], 0.5) for f in given]
    frame = long_table(shown)
    assert list(frame) == [*COLUMNS, "length", "query", "within_group"]
    assert frame["query"].tolist() == [5, 15, pd.NA, pd.NA, pd.NA]
    assert frame["length"].tolist() == [pd.NA, pd.NA, 20, 50, 50]
    assert frame["within_group"].tolist() == [False, False, False, False, True]


def test_a_claim_about_methods_is_called_one() -> None:
    trained, untrained = (
        seeds(kshot("mann", 0.7), 3),
        [kshot("nearest_neighbour", 0.8).model_copy(update=NOT_TRAINED)],
    )
    one = compared(trained, untrained, 0.01, accuracies=(0.7, 0.8), ci95_methods=0.006)
    text = render([one], "text")
    assert "B: nearest_neighbour, not trained. This is about the methods." in " ".join(text.split())
    assert "−10.00         0.21        0.42      0.60   0.010   B better" in text


def test_what_is_transductive_carries_the_mark() -> None:
    text = render([compared([kshot("maml", 0.9, transductive=True)], [kshot("mann", 0.9)], 0.5)], "text")
    assert text.startswith("maml † and mann · K-shot")
    assert "† transductive: an answer may depend on the other queries" in text


def test_the_same_learner_of_two_suites_is_told_apart() -> None:
    sides = [kshot("mann", 0.9)], [kshot("mann", 0.9, suite="another")]
    assert render([compared(*sides, 0.5)], "text").startswith("mann (hand_made) and mann (another) · ")


def test_an_unknown_format_is_one_clear_line() -> None:
    with pytest.raises(RecordError, match="unknown format 'cvs': did you mean 'csv'"):
        render(ROWS, "cvs")
