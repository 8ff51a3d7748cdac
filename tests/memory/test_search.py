"""Nearest rows: the exact search against NumPy, faiss against the exact search."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.memory.search import BLOCK, ExactSearch, FaissSearch


def clusters(count: int, word: int, rows: int) -> Tensor:
    """Rows around `count` directions, as the embeddings of so many classes lie."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(count, word, generator=generator)
    spread = 0.5 * torch.randn(rows, word, generator=generator)
    return centres[torch.randint(count, (rows,), generator=generator)] + spread


def test_the_exact_search_equals_numpy_across_blocks() -> None:
    rows, keys = clusters(7, 6, BLOCK + 300), torch.randn(5, 6)
    found = ExactSearch(rows).nearest(keys, 9)
    unit = rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)
    cosines = (keys.numpy() / np.linalg.norm(keys.numpy(), axis=1, keepdims=True)) @ unit.T
    order = np.argsort(-cosines, axis=1)[:, :9]
    assert found.rows.tolist() == order.tolist()
    np.testing.assert_allclose(found.cosines.numpy(), np.take_along_axis(cosines, order, 1), atol=1e-6)


def test_length_of_rows_and_keys_does_not_matter() -> None:
    rows, keys = clusters(7, 6, 100), torch.randn(5, 6)
    lengths = torch.rand(100, 1) + 0.1
    assert torch.equal(
        ExactSearch(rows).nearest(keys, 4).rows, ExactSearch(lengths * rows).nearest(7 * keys, 4).rows
    )


def test_where_there_are_fewer_rows_than_asked_for_the_rest_is_none() -> None:
    found = ExactSearch(torch.eye(3)).nearest(torch.tensor([[3.0, 2.0, 1.0]]), 5)
    assert found.rows.tolist() == [[0, 1, 2, -1, -1]]
    assert found.cosines[0, 3:].eq(-torch.inf).all()


def test_what_is_found_passes_no_gradient() -> None:
    rows, keys = torch.eye(3).requires_grad_(), torch.ones(1, 3).requires_grad_()
    assert not ExactSearch(rows).nearest(keys, 2).cosines.requires_grad


class TestFaiss:
    @pytest.fixture(autouse=True)
    def needs_faiss(self) -> None:
        pytest.importorskip("faiss", reason="needs faiss: pip install 'fewshot[ann]'")

    def test_finds_nine_in_ten_of_the_nearest_and_their_cosines(self) -> None:
        rows = clusters(300, 40, 6000)
        keys = rows[::100] + 0.3 * torch.randn(60, 40, generator=torch.Generator().manual_seed(1))
        found, exact = FaissSearch(rows).nearest(keys, 4), ExactSearch(rows).nearest(keys, 4)
        same = (found.rows.unsqueeze(2) == exact.rows.unsqueeze(1)).any(2)
        assert same.float().mean() >= 0.9
        torch.testing.assert_close(found.cosines[:, 0][same[:, 0]], exact.cosines[:, 0][same[:, 0]])
        assert (found.cosines.diff(dim=1) <= 0).all()

    def test_where_its_lists_hold_fewer_the_rest_is_none(self) -> None:
        found = FaissSearch(clusters(5, 6, 300)).nearest(torch.randn(2, 6), 400)
        assert found.rows[:, -1].tolist() == [-1, -1]
        assert found.cosines[:, -1].eq(-torch.inf).all()
        assert all(len(set(row)) == len(row) for row in (r[r >= 0].tolist() for r in found.rows))

    def test_the_same_rows_give_the_same_answers(self) -> None:
        rows, keys = clusters(50, 8, 1000), torch.randn(9, 8)
        assert torch.equal(FaissSearch(rows).nearest(keys, 4).rows, FaissSearch(rows).nearest(keys, 4).rows)

    def test_too_few_rows_are_one_line(self) -> None:
        with pytest.raises(LearnerError, match=r"^an index needs 256 .* got 10: search them exactly$"):
            FaissSearch(torch.randn(10, 4))


def test_without_faiss_one_line_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "faiss", missing)
    with pytest.raises(
        LearnerError, match=r"needs faiss, .*: pip install 'fewshot\[ann\]', or search exactly$"
    ):
        FaissSearch(torch.randn(300, 4))
