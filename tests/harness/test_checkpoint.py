"""Checkpoints: what is stored is what is loaded, and a damaged file is refused in one line."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.harness.checkpoint import (
    STEP,
    _digest,
    _metadata_digest,
    _restored,
    _stored,
    checkpoint_facts,
    file_sha256,
    load_learner,
    save_learner,
)
from fewshot.learners.base import Learner
from fewshot.learners.prototypical import Prototypical
from fewshot.learners.registry import build_learner

IMAGE_SHAPE = (1, 8, 8)
SMALL: dict[str, dict[str, Any]] = {
    "attention": {"widths": [4], "embedding_size": 4, "hidden_size": 4},
    "count_guesser": {},
    "lstm": {"widths": [4], "embedding_size": 4, "hidden_size": 4},
    "maml": {"widths": [4]},
    "mann": {"widths": [4], "embedding_size": 4, "hidden_size": 4, "num_slots": 6, "usage_decay": 0.95},
    "nearest_feature": {"widths": [4], "embedding_size": 4, "soft": False},
    "nearest_neighbour": {},
    "prototypical": {"widths": [2]},
}


def fresh(name: str = "prototypical") -> Learner:
    torch.manual_seed(0)
    learner = build_learner(name, IMAGE_SHAPE, 3, SMALL[name.partition(":")[0]])
    for tensor in learner.state_dict().values():  # away from the zeros and ones of fresh vectors
        if tensor.is_floating_point():
            tensor.add_(0.3 * torch.rand(tensor.shape))
    return learner


def stored(folder: Path, name: str = "prototypical", **facts: str) -> Path:
    path = folder / f"{name.replace(':', '.')}.safetensors"
    save_learner(fresh(name), path, name, SMALL[name.partition(":")[0]], **facts)
    return path


def refusal(path: Path, expect: str | None = None) -> str:
    with pytest.raises(LearnerError) as caught:
        load_learner(path, expect)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("name", [*SMALL, "mann:small"])
def test_a_learner_comes_back_as_it_was_stored(tmp_path: Path, name: str) -> None:
    path = stored(tmp_path, name)
    learner = load_learner(path, name)
    assert not learner.training
    assert type(learner) is type(fresh(name))
    assert (learner.image_shape, learner.way) == (IMAGE_SHAPE, 3)
    before, after = fresh(name).state_dict(), learner.state_dict()
    assert before.keys() == after.keys()
    for key, value in after.items():
        expected = before[key]
        assert value.dtype == expected.dtype
        assert torch.equal(value, _rounded(expected)), key
    again = tmp_path / "again.safetensors"
    save_learner(learner, again, name, SMALL[name.partition(":")[0]])
    assert checkpoint_facts(again) == checkpoint_facts(
        path
    )  # with the weights' digest: they are rounded once


def test_options_that_are_no_weights_come_back(tmp_path: Path) -> None:
    assert load_learner(stored(tmp_path, "mann")).cell.memory.usage_decay == 0.95


def test_matrices_are_stored_as_bytes_with_a_step_a_row_and_vectors_as_float32(tmp_path: Path) -> None:
    header = _header(stored(tmp_path, "mann"))
    steps = {name: entry for name, entry in header.items() if name.endswith(STEP)}
    plain = {name: entry for name, entry in header.items() if name not in steps}
    dimensions = {name: len(entry["shape"]) for name, entry in plain.items()}
    assert set(dimensions.values()) >= {0, 1, 2, 4}
    for name, entry in plain.items():
        if entry["dtype"] != "I64":  # batch norm's counter
            assert entry["dtype"] == ("I8" if dimensions[name] >= 2 else "F32"), name
    for name, entry in steps.items():
        assert entry["dtype"] == "BF16"
        assert entry["shape"] == plain[name.removesuffix(STEP)]["shape"][:1]


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_row_is_rounded_to_its_127th_part_and_only_once(row: list[float]) -> None:
    matrix = torch.tensor([row, [0.0] * len(row)])
    once = _restored(_stored("weight", matrix))["weight"]
    largest = matrix.abs().max()
    # Half a step, which a bfloat16 gives to 1 part in 256; and as much at the largest weight, cut at 127.
    assert (once - matrix).abs().max() <= largest / 127 * (0.5 + 1 / 256) * 1.01 + 1e-30
    assert torch.equal(_restored(_stored("weight", once))["weight"], once)
    assert once[1].eq(0).all()


def test_weights_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    tensors = {
        key: value.half() if value.is_floating_point() and value.dim() >= 2 else value
        for key, value in fresh().state_dict().items()
    }
    path = stored(tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "metadata_sha256"}
    metadata |= {"tensors_sha256": _digest(tensors)}
    save_file(tensors, path, metadata | {"metadata_sha256": _metadata_digest(metadata)})
    for key, value in load_learner(path).state_dict().items():
        assert torch.equal(value, tensors[key].float() if value.is_floating_point() else value), key


def test_facts_are_kept_without_the_weights(tmp_path: Path) -> None:
    facts = checkpoint_facts(stored(tmp_path, train_key="abc"))
    assert facts["train_key"] == "abc"
    assert facts["learner"] == "prototypical"


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = stored(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert save_learner(fresh(), path, "prototypical", SMALL["prototypical"]) == file_sha256(path)


def test_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Every byte of the header and every seventh of the weights: either one line, or nothing was lost."""
    path = stored(tmp_path, train_key="abc")
    content = path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    offsets = [*range(header), *range(header, len(content), 7), len(content) - 1]
    unnoticed = []
    for offset in offsets:
        damaged = bytearray(content)
        damaged[offset] ^= 0x80 if offset % 5 == 0 else 0x01  # out of ASCII, or another letter
        path.write_bytes(damaged)
        try:
            loaded = load_learner(path)
        except LearnerError as error:
            assert "\n" not in str(error)  # noqa: PT017  (one of a thousand cases)
        else:
            unnoticed.append((offset, _same(loaded, fresh())))
    # What may be flipped is the blanks that fill up the header.
    filling = {offset for offset in range(header) if content[offset:header].strip() == b""}
    assert {offset for offset, _ in unnoticed} <= filling
    assert all(same for _, same in unnoticed)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = stored(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "is damaged or no checkpoint" in refusal(path)


def test_a_checkpoint_of_another_learner_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, "lstm")
    assert "holds 'lstm', not 'mann': choose the checkpoint of 'mann'" in refusal(path, "mann")
    assert "holds 'lstm', not 'lstm:wide'" in refusal(path, "lstm:wide")


def test_another_version_of_the_method_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path)
    old = Prototypical.version
    monkeypatch.setattr(Prototypical, "version", old + 1)
    assert (
        f"written by version {old} of 'prototypical', this is version {old + 1}: train it again"
        in refusal(path)
    )


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    save_learner(fresh(), path, "prototypical", {"widths": [3]})
    assert "does not fit 'prototypical': " in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.safetensors").startswith("no checkpoint ")
    assert refusal(tmp_path).startswith("no checkpoint ")


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>\n<html>\n</html>", bytes(1000), b"PK\x03\x04" * 99]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    assert "is damaged or no checkpoint" in refusal(path)


def test_somebody_elses_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, path)
    assert "is not a checkpoint of fewshot" in refusal(path)


def _header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    return header


def _rounded(value: Tensor) -> Tensor:
    """A slow twin of what storing does to a tensor."""
    if not value.is_floating_point() or value.dim() < 2:
        return value
    rounded = torch.zeros_like(value)
    for here, row in zip(rounded, value, strict=True):
        step = (row.abs().max() / 127).bfloat16().float()
        if step > 0:
            here.copy_((row / step).round().clamp(-127, 127) * step)
    return rounded


def _same(one: Learner, other: Learner) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][key], _rounded(states[1][key])) for key in states[1])
