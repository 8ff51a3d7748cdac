"""Learners are compared on the episodes that both answered, and on no others."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import norm

from fewshot.errors import RecordError
from fewshot.harness.comparison import compare, holm
from fewshot.harness.pairing import Contender, Pair, compare_learners, compare_pairs
from fewshot.harness.record import RECORDS_FILE, add_answers, read_answers, read_records
from fewshot.harness.statistics import crossed_deviation
from tests.conftest import SIDES


@pytest.fixture
def folder(tiny_results, image_folder, tmp_path, monkeypatch):
    """A copy of recorded results, to change at will, and their images where they are looked for."""
    monkeypatch.setenv("FEWSHOT_DATA", str(image_folder.parent))
    return shutil.copytree(tiny_results, tmp_path / "tiny")


def change(folder, learner, protocol, **fields):
    """Change fields of the learner's records of one protocol."""
    lines = [json.loads(line) for line in (folder / RECORDS_FILE).read_text().splitlines()]
    for record in lines:
        if (record["learner"], record["protocol"]) == (learner, protocol):
            record |= fields
    (folder / RECORDS_FILE).write_text("".join(f"{json.dumps(record)}\n" for record in lines))


def upright(folder, a, b, **fields):
    """Rows of the settings without turned classes, by protocol and presentation."""
    found = compare_learners(Contender(folder, a), Contender(folder, b), **fields)
    return {(one.record.protocol, one.instance): one for one in found if not one.record.rotated_test_classes}


def test_all_that_both_answered_is_compared(folder):
    rows = compare_learners(Contender(folder, "prototypical"), Contender(folder, "lstm"), (2, 3))
    assert [(one.record.protocol, one.record.rotated_test_classes, one.instance) for one in rows] == [
        ("kshot", False, None),
        ("kshot", True, None),
        ("stream", False, None),
        ("stream", False, 2),
        ("stream", False, 3),
    ]
    for one in rows:
        assert (len(one.a), len(one.b), one.episodes) == (1, 2, 30)
        for records, accuracy in ((one.a, one.comparison.accuracy_a), (one.b, one.comparison.accuracy_b)):
            told = [r.accuracy_by_instance.get(one.instance, r.accuracy) for r in records]
            assert accuracy == pytest.approx(np.mean(told), abs=1e-6)
        assert one.comparison.ci95_methods is None
    assert [one.p_holm for one in rows] == holm([one.comparison.p_value for one in rows])


def test_a_learner_does_not_differ_from_itself(folder):
    for one in upright(folder, "lstm", "lstm").values():
        assert (one.comparison.difference, one.comparison.p_value, one.p_holm) == (0, 1, 1)


def test_two_ways_to_answer_with_the_same_weights_are_compared_seed_by_seed(folder, monkeypatch):
    asked = []

    def told(*given, same_trainings, **rest):
        asked.append(same_trainings)
        return compare(*given, same_trainings=same_trainings, **rest)

    monkeypatch.setattr("fewshot.harness.pairing.compare", told)
    for other, same in (("lstm", True), ("prototypical", False), ("nearest_neighbour", False)):
        compare_learners(Contender(folder, "lstm"), Contender(folder, other))
        assert asked, other
        assert all(here is same for here in asked), other
        asked.clear()
    compare_learners(Contender(folder, "nearest_neighbour"), Contender(folder, "prototypical"))
    assert not any(asked)


def test_a_class_and_its_turned_copies_are_resampled_together(folder):
    learners = ("prototypical", "nearest_neighbour")
    (turned,) = (
        one
        for one in compare_learners(*(Contender(folder, name) for name in learners))
        if one.record.rotated_test_classes
    )
    a, b = (read_answers(folder, side[0]) for side in (turned.a, turned.b))
    episode, class_id, count = (np.asarray(a[name]) for name in ("episode", "class_id", "count"))
    difference = np.asarray(a["correct"]).astype(int) - np.asarray(b["correct"])
    upright = SIDES["test"]
    assert class_id.max() >= upright
    together, apart = (
        norm.ppf(0.975) * crossed_deviation(episode, one, difference, count)
        for one in (class_id % upright, class_id)
    )
    assert turned.comparison.ci95_classes == pytest.approx(together)
    assert turned.comparison.ci95_classes != pytest.approx(apart)


def test_two_configurations_of_a_learner_are_refused(folder):
    change(folder, "prototypical", "kshot", rotated_test_classes=False)
    with pytest.raises(RecordError, match="two records of one test and train seed"):
        compare_learners(Contender(folder, "prototypical"), Contender(folder, "lstm"))


def test_other_images_are_refused(folder, tmp_path, image_folder):
    other = shutil.copytree(image_folder, tmp_path / "patterns")
    shutil.rmtree(other / "test" / "00")
    with pytest.raises(RecordError, match="are not those recorded"):
        compare_learners(Contender(folder, "prototypical"), Contender(folder, "lstm"), (), tmp_path)


def test_where_one_was_asked_fewer_the_first_episodes_are_compared(folder):
    full = upright(folder, "prototypical", "nearest_neighbour")["stream", None]
    (record,) = (
        r for r in read_records(folder) if (r.learner, r.protocol) == ("nearest_neighbour", "stream")
    )
    change(folder, "nearest_neighbour", "stream", episodes=12, episodes_digest="of twelve")
    fewer = upright(folder, "prototypical", "nearest_neighbour")["stream", None]
    assert (full.episodes, fewer.episodes) == (30, 12)
    answers = read_answers(folder, record)
    first = answers.filter(pc.less(answers["episode"], 12))
    expected = pc.sum(first["correct"]).as_py() / pc.sum(first["count"]).as_py()
    assert fewer.comparison.accuracy_b == pytest.approx(expected)


def test_what_was_not_asked_of_one_is_not_compared(folder):
    (record,) = (r for r in read_records(folder) if (r.learner, r.protocol) == ("prototypical", "stream"))
    answers = read_answers(folder, record)
    add_answers(folder, record.answers, record.key, answers.filter(pc.not_equal(answers["presentation"], 3)))
    rows = upright(folder, "prototypical", "nearest_neighbour", presentations=(2, 3))
    assert [k for protocol, k in rows if protocol == "stream"] == [None, 2]
    told = [record.accuracy_by_instance[k] for k in (1, 2)]
    assert rows["stream", None].comparison.accuracy_a == pytest.approx(np.mean(told))


def test_a_presentation_that_never_was_is_refused(folder):
    with pytest.raises(RecordError, match=r"^presentation 99 is in no stream that prototypical of [^\n]+$"):
        upright(folder, "prototypical", "nearest_neighbour", presentations=(99,))


def test_a_learner_of_another_folder_is_compared(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    change(other, "lstm", "stream", suite="other")
    found = compare_learners(Contender(folder, "lstm"), Contender(other, "lstm"), ())
    assert [one.b[0].suite for one in found] == ["tiny", "tiny", "other"]
    assert {one.p_holm for one in found} == {1}


def test_pairs_are_compared_as_learners_are(folder):
    """And corrected over as many as there are."""
    (compared,) = (
        row for key, row in upright(folder, "prototypical", "lstm").items() if key == ("stream", 2)
    )
    pairs = [
        Pair(compared.a, compared.b, 2),
        Pair(compared.b, compared.a, 2),
        Pair(compared.a, compared.a, 3),
    ]
    one, turned_round, itself = compare_pairs(folder, pairs)
    assert one.comparison == compared.comparison
    assert turned_round.comparison.difference == -one.comparison.difference
    assert itself.comparison.p_value == 1
    assert [row.p_holm for row in (one, turned_round, itself)] == holm(
        [row.comparison.p_value for row in (one, turned_round, itself)]
    )


def test_pairs_need_no_images_but_a_list_of_the_classes_that_are_turned(folder, monkeypatch):
    records = {r.learner: r for r in read_records(folder) if r.rotated_test_classes}
    pair = Pair((records["prototypical"],), (records["nearest_neighbour"],), None)
    with pytest.raises(
        RecordError, match=r"no committed list says which turned classes of patterns, split fol"
    ):
        compare_pairs(folder, [pair])
    expected = next(
        one
        for one in compare_learners(
            *(Contender(folder, name) for name in ("prototypical", "nearest_neighbour"))
        )
        if one.record.rotated_test_classes
    )
    monkeypatch.setattr("fewshot.harness.pairing.listed_splits", lambda dataset: ("folders",))
    monkeypatch.setattr("fewshot.harness.pairing.class_list", lambda *given: ["a class"] * SIDES["test"])
    monkeypatch.delenv("FEWSHOT_DATA")
    (found,) = compare_pairs(folder, [pair])
    assert found.comparison == expected.comparison


def test_pairs_that_share_no_answer_are_refused(folder):
    tests = {
        r.learner: r for r in read_records(folder) if r.protocol == "stream" and not r.rotated_test_classes
    }
    with pytest.raises(RecordError, match="they share no answer at presentation 9"):
        compare_pairs(folder, [Pair((tests["prototypical"],), (tests["nearest_neighbour"],), 9)])


# --- What is refused ----------------------------------------------------------------------------------------


def test_other_episodes_are_refused_in_one_line(folder):
    change(folder, "lstm", "stream", episodes_digest="another")
    with pytest.raises(
        RecordError, match=r"^prototypical of .* the digests of their episodes differ; run"
    ) as e:
        upright(folder, "prototypical", "lstm")
    assert "\n" not in str(e.value)


def test_another_sampler_is_refused(folder):
    change(folder, "lstm", "stream", episodes=12, method_versions={"sampler": 99})
    with pytest.raises(RecordError, match="different versions of the sampler"):
        upright(folder, "prototypical", "lstm")


def test_answers_about_other_classes_are_refused(folder):
    (record,) = (r for r in read_records(folder) if (r.learner, r.protocol) == ("prototypical", "stream"))
    answers = read_answers(folder, record)
    shifted = pc.add(answers["class_id"], 1).cast(pa.int32())
    add_answers(
        folder,
        record.answers,
        record.key,
        answers.set_column(1, answers.schema.field("class_id"), shifted),
    )
    with pytest.raises(RecordError, match="the classes of their answers differ"):
        upright(folder, "prototypical", "lstm")


def test_other_tests_are_refused(folder):
    for protocol in ("kshot", "stream"):
        change(folder, "lstm", protocol, episode_seed=7)
    with pytest.raises(RecordError, match="give both the same tests in a suite"):
        upright(folder, "prototypical", "lstm")


def test_images_of_another_size_are_another_test(folder):
    change(folder, "lstm", "stream", image_size=20)
    assert {protocol for protocol, _ in upright(folder, "prototypical", "lstm")} == {"kshot"}
    change(folder, "lstm", "kshot", image_size=20)
    with pytest.raises(RecordError, match=r"\(image_size \d+ and 20\): .* on images of one size$") as e:
        upright(folder, "prototypical", "lstm")
    assert "\n" not in str(e.value)


def test_chains_are_another_test_than_single_streams(folder):
    change(folder, "lstm", "stream", chain=4)
    assert {protocol for protocol, _ in upright(folder, "prototypical", "lstm")} == {"kshot"}


def test_an_unknown_learner_is_answered_with_all_there_are(folder):
    with pytest.raises(
        RecordError, match=r"unknown learner of .* 'lst': did you mean 'lstm'\? there is lstm"
    ):
        upright(folder, "lst", "lstm")


def test_a_record_without_answers_is_refused(folder):
    change(folder, "lstm", "stream", answers=None)
    with pytest.raises(RecordError, match="keeps no answers: run it again"):
        upright(folder, "lstm", "prototypical")
