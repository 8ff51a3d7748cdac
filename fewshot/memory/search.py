"""Nearest rows by cosine: which rows of a long list point most nearly where a key points.

`ExactSearch` compares a key with every row: the oracle, and all that some thousands of rows need.
`FaissSearch` (the extra `ann`) sorts the rows into about sqrt(rows) lists of similar ones and looks into the
lists nearest to the key, where each number of a row takes 4 bits; what it finds is put in order by the rows.

Chosen by a measurement made once, in November 2026: 64 keys of a trained network among 1,000,000 rows of 40
numbers that it wrote, in milliseconds of one busy core. `sparse_step` of `fewshot bench` times the last, and
measures its recall, inside the network's step.

| index                             | milliseconds | recall@4 | bytes a row | seconds to build |
|-----------------------------------|--------------|----------|-------------|------------------|
| none: exact                       | 134          | 1        | 160         | 0                |
| graph (HNSW, 16 links, 128 tried) | 12.3         | 0.918    | 304         | 74               |
| 1,024 lists, 32 tried, float32    | 15.5         | 0.959    | 168         | 1.5              |
| 1,024 lists, 32 tried, float16    | 10.0         | 0.959    | 88          | 1.7              |
| 1,024 lists, 32 tried, 4 bits     | 5.3          | 0.959    | 28          | 4.3              |
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.errors import LearnerError

SearchKind = Literal["exact", "approximate"]

BLOCK = 2**12
"""Rows that an exact search compares at once: their cosines with some tens of keys stay in the cache."""
PROBED, CANDIDATES = 32, 2
"""Lists that are tried, and how many times as many rows as were asked for are put in order."""
LEARNED_FROM, FEWEST = 40, 256
"""Rows for each list that the lists are learned from, and how few rows are too few to learn from."""


class Nearest(NamedTuple):
    """rows: (key, count) int64, best first, -1 where there are no more; cosines: (key, count), there -inf."""

    rows: Tensor
    cosines: Tensor


class Search(nn.Module, ABC):
    """Rows that stay as they are, (row, word), and a way to find the nearest.

    They go where a network goes that they belong to, and are no part of what is stored of it.
    """

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.detach(), persistent=False)

    @property
    @abstractmethod
    def index_bytes(self) -> int:
        """What the search keeps beside the rows."""

    @abstractmethod
    def nearest(self, keys: Tensor, count: int) -> Nearest:
        """The `count` rows of largest cosine with each key, (key, word); passes no gradient."""


class ExactSearch(Search):
    """Compares every key with every row. It keeps the rows' directions, as large as the rows."""

    _directions: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__(rows)
        self.register_buffer("_directions", F.normalize(self.rows, dim=-1), persistent=False)

    @property
    def index_bytes(self) -> int:
        return self._directions.nbytes

    @torch.no_grad()
    def nearest(self, keys: Tensor, count: int) -> Nearest:
        keys = F.normalize(keys, dim=-1)
        rows, cosines = [], []
        for start in range(0, len(self.rows), BLOCK):
            block = keys @ self._directions[start : start + BLOCK].mT
            largest = block.topk(min(count, block.shape[1]))
            rows.append(largest.indices + start)
            cosines.append(largest.values)
        return best(Nearest(torch.cat(rows, dim=1), torch.cat(cosines, dim=1)), count)


class FaissSearch(Search):
    """Finds nearly all of the nearest rows, in a time that grows with the root of their number; on the CPU.

    Raises LearnerError where faiss is not installed, and for fewer than FEWEST rows.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__(rows)
        faiss = _faiss()
        count, word = rows.shape
        if count < FEWEST:
            raise LearnerError(f"an index needs {FEWEST} rows or more; got {count}: search them exactly")
        lists = 2 ** round(math.log2(count) / 2)
        index = faiss.index_factory(word, f"IVF{lists},PQ{word}x4fs", faiss.METRIC_INNER_PRODUCT)
        index.nprobe, index.cp.spherical = PROBED, True
        # The sample suffices; left to itself faiss warns of it.
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        directions = F.normalize(self.rows, dim=-1).float().cpu()
        sample = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: LEARNED_FROM * lists]
        index.train(directions[sample].numpy())
        index.add(directions.numpy())
        self._index = index

    @property
    def index_bytes(self) -> int:
        """Each row's code and number, and the lists' centres."""
        rows, word = self.rows.shape
        return rows * (int(self._index.code_size) + 8) + int(self._index.nlist) * word * 4

    @torch.no_grad()
    def nearest(self, keys: Tensor, count: int) -> Nearest:
        _faiss()
        directions = F.normalize(keys, dim=-1)
        _, found = self._index.search(directions.float().cpu().numpy(), CANDIDATES * count)
        rows = torch.from_numpy(found).to(keys.device)
        candidates = F.normalize(self.rows[rows], dim=-1)
        cosines = torch.bmm(candidates, directions.unsqueeze(-1)).squeeze(-1)
        return best(Nearest(rows, cosines.masked_fill(rows < 0, -torch.inf)), count)


SEARCHES: dict[SearchKind, type[ExactSearch] | type[FaissSearch]] = {
    "exact": ExactSearch,
    "approximate": FaissSearch,
}


def best(found: Nearest, count: int) -> Nearest:
    """The `count` best of what was found, (..., any), padded where there are fewer."""
    lacking = max(0, count - found.rows.shape[-1])
    cosines, order = F.pad(found.cosines, (0, lacking), value=-torch.inf).topk(count)
    return Nearest(F.pad(found.rows, (0, lacking), value=-1).gather(-1, order), cosines)


def _faiss() -> Any:
    """The package, which has threads of its own: as many at work as torch has."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise LearnerError(
            "an index needs faiss, which is not installed: pip install 'fewshot[ann]', or search exactly"
        ) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
