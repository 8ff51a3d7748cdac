"""Checkpoints: what is stored is what is loaded, and a damaged file is refused in one line."""

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.harness.checkpoint import (
    PACKED_ALONE,
    STEP,
    _digest,
    _metadata_digest,
    _read,
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
    facts = checkpoint_facts(path)
    save_learner(learner, path, name, SMALL[name.partition(":")[0]])
    assert checkpoint_facts(path) == facts, "with the weights' digest: they are rounded once"


def test_what_changed_is_stored_anew_and_all_else_as_it_was(tmp_path: Path) -> None:
    path = stored(tmp_path, "mann")
    learner = load_learner(path)
    key, changed = next((k, v) for k, v in learner.state_dict().items() if v.dim() == 2)
    with torch.no_grad():
        changed.add_(1.0)
    expected = {name: value.clone() for name, value in learner.state_dict().items()}
    expected[key] = _rounded(expected[key])
    save_learner(learner, path, "mann", SMALL["mann"])
    for name, value in load_learner(path).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_another_learner_s_checkpoint_is_written_over(tmp_path: Path) -> None:
    path = stored(tmp_path, "mann")
    save_learner(fresh("prototypical"), path, "prototypical", SMALL["prototypical"])
    assert _same(load_learner(path), fresh("prototypical"))


def test_options_that_are_no_weights_come_back(tmp_path: Path) -> None:
    assert load_learner(stored(tmp_path, "mann")).cell.memory.usage_decay == 0.95


def test_a_file_is_one_compressed_safetensors_file_that_other_tools_read(tmp_path: Path) -> None:
    path = stored(tmp_path, "mann")
    with safe_open(path, framework="pt") as file:
        length = int(file.metadata()["unpacked_bytes"])
        packed = file.get_tensor("safetensors:brotli").numpy().tobytes()
        assert file.keys() == ["safetensors:brotli"]
    tensors = load(pa.decompress(packed, length, codec="brotli", asbytes=True))
    weights = fresh("mann").state_dict()
    assert {len(value.shape) for value in weights.values()} >= {0, 1, 2, 4}
    assert tensors.keys() == weights.keys() | {f"{key}:step" for key in weights if weights[key].dim() >= 2}
    for key, value in weights.items():
        if value.dim() < 2:
            assert torch.equal(tensors[key], value), key
        else:
            steps = tensors[f"{key}:step"]
            assert (tensors[key].dtype, tensors[key].shape) == (torch.int8, value.shape)
            assert (steps.dtype, steps.shape) == (torch.bfloat16, value.shape[:1])


def test_matrices_are_float16_where_that_is_asked_for_and_stay_so(tmp_path: Path) -> None:
    path, learner = tmp_path / "mann.safetensors", fresh("mann")
    save_learner(learner, path, "mann", SMALL["mann"], float16=True)
    loaded = load_learner(path)
    for key, value in learner.state_dict().items():
        expected = _five_bits(value.half().float()) if value.dim() >= 2 else value
        assert torch.equal(loaded.state_dict()[key], expected), key
    save_learner(loaded, path, "mann", SMALL["mann"])
    for key, value in load_learner(path).state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), f"{key} stays as it is stored there"


def _five_bits(value: torch.Tensor) -> torch.Tensor:
    """The nearest number of five significant bits; of two, the one further from zero."""
    exponent = torch.frexp(value).exponent.clamp(min=-13)  # float16's least normal number is 2 ** -14
    scaled = torch.ldexp(value, 5 - exponent)
    return torch.ldexp(scaled.sign() * (scaled.abs() + 0.5).floor(), exponent - 5)


@example([65504.0, -65504.0, 64512.0, 64480.0])
@example([33.0, -33.0, 35.0])
@example([2.0**-24, -(2.0**-19), 2.0**-14])
@given(st.lists(st.floats(-65504, 65504, width=16), min_size=2, max_size=8))
@settings(max_examples=100, deadline=None)
def test_float16_has_five_significant_bits(row: list[float]) -> None:
    matrix = torch.tensor([row])
    stored = _stored("weight", matrix, float16=True)["weight"]
    expected = _five_bits(matrix)
    expected = torch.where(expected.abs() < 65536, expected, matrix)  # would be infinite: stays as it is
    assert stored.dtype == torch.float16
    assert torch.equal(stored.float(), expected)


@pytest.mark.parametrize(("float16", "most"), [(False, 0.67), (True, 1.15)])
def test_a_checkpoint_has_so_few_bytes_a_weight(tmp_path: Path, float16: bool, most: float) -> None:
    learner = build_learner("mann", (1, 28, 28), 5)
    save_learner(learner, tmp_path / "mann.safetensors", "mann", {}, float16=float16)
    weights = sum(value.numel() for value in learner.state_dict().values())
    assert (tmp_path / "mann.safetensors").stat().st_size < most * weights


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_row_is_rounded_to_whole_steps(row: list[float]) -> None:
    matrix = torch.tensor([row, [0.0] * len(row)])
    once = _restored(_stored("weight", matrix, float16=False), {"weight": matrix})["weight"]
    step = max(0.15 * matrix[0].square().mean().sqrt(), matrix.abs().max() / 127)
    # Half a step, which a bfloat16 gives to 1 part in 256; and as much at the largest weight, cut at 127.
    assert (once - matrix).abs().max() <= step * (0.5 + 127 / 256) * 1.01 + 1e-30
    assert once[1].eq(0).all()


def test_whole_numbers_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    weights = fresh().state_dict()
    tensors, expected = {}, {}
    for key, value in weights.items():
        tensors[key] = expected[key] = value
        if value.dim() >= 2:
            steps = (value.flatten(1).abs().amax(dim=1) / 127).bfloat16()
            shaped = steps.float().view(-1, *[1] * (value.dim() - 1))
            whole = (value / shaped).round().clamp(-127, 127).to(torch.int8)
            tensors |= {key: whole, key + STEP: steps}
            expected[key] = whole.float() * shaped
    path = stored(tmp_path)
    _write_as(path, tensors)
    for key, value in load_learner(path).state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_matrices_that_an_earlier_version_compressed_one_by_one_are_read(tmp_path: Path) -> None:
    path = stored(tmp_path, "mann")
    expected = load_learner(path).state_dict()
    _write_as(path, _packed_alone(_read(path)[1]))
    learner = load_learner(path)
    assert all(torch.equal(value, expected[key]) for key, value in learner.state_dict().items())
    save_learner(learner, path, "mann", SMALL["mann"])
    assert all(torch.equal(value, expected[key]) for key, value in load_learner(path).state_dict().items())


def test_packed_numbers_of_another_shape_are_refused_in_one_line(tmp_path: Path) -> None:
    path = stored(tmp_path)
    tensors = _packed_alone(_read(path)[1])
    name = next(key for key in tensors if key.endswith(PACKED_ALONE))
    tensors[name] = tensors[name][:-5].clone()
    _write_as(path, tensors)
    assert "does not fit" in refusal(path)


def test_weights_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    tensors = {
        key: value.half() if value.is_floating_point() and value.dim() >= 2 else value
        for key, value in fresh().state_dict().items()
    }
    path = stored(tmp_path)
    _write_as(path, tensors)
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


def _packed_alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as an earlier version stored them: whole numbers compressed each by itself."""
    alone = {}
    for key, value in tensors.items():
        if value.dtype == torch.int8:
            packed = pa.compress(value.numpy().tobytes(), codec="brotli", asbytes=True)
            alone[key + PACKED_ALONE] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        else:
            alone[key] = value
    return alone


def _write_as(path: Path, tensors: dict[str, Tensor]) -> None:
    """Give a checkpoint other tensors, with digests that fit."""
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "metadata_sha256"}
    metadata |= {"tensors_sha256": _digest(tensors)}
    save_file(tensors, path, metadata | {"metadata_sha256": _metadata_digest(metadata)})


def _rounded(value: Tensor) -> Tensor:
    """A slow twin of what storing does to a tensor."""
    if not value.is_floating_point() or value.dim() < 2:
        return value
    rounded = torch.zeros_like(value)
    for here, row in zip(rounded, value, strict=True):
        step = torch.maximum(0.15 * row.square().mean().sqrt(), row.abs().max() / 127).bfloat16().float()
        if step > 0:
            here.copy_((row / step).round().clamp(-127, 127) * step)
    return rounded


def _same(one: Learner, other: Learner) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][key], _rounded(states[1][key])) for key in states[1])
