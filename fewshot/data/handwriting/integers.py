"""Random numbers and sines made of integers only."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Item = TypeVar("Item")

PIXEL = 256
TURN = 1 << 16
DEGREE = TURN // 360
ONE = 1024

# The sum of four uniform 16-bit numbers is nearly normal; this is its mean and its standard deviation.
LANES_MEAN = 131_070
LANES_DEVIATION = 37_837


def hash_words(key: int, counters: Words) -> Words:
    """One 64-bit word per counter: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), started at `key`."""
    word = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def child_key(key: int, index: int) -> int:
    """A key of its own for part `index` of whatever `key` stands for."""
    return int(hash_words(key, np.array([index], dtype=np.uint64))[0])


class Draws:
    """A sequence of random integers, decided by its key alone."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._used = 0

    def words(self, *shape: int) -> Words:
        """Uniform 64-bit words."""
        count = int(np.prod(shape, dtype=np.int64))
        counters = np.arange(self._used, self._used + count, dtype=np.uint64)
        self._used += count
        return hash_words(self._key, counters).reshape(shape)

    def uniforms(self, low: int, high: int, *shape: int) -> Ints:
        """Integers from low to high, both included."""
        return low + (self.words(*shape) % np.uint64(high - low + 1)).astype(np.int64)

    def normals(self, deviation: int, *shape: int) -> Ints:
        """Nearly normal integers of mean zero, at most 3.5 deviations from it."""
        words = self.words(*shape)
        total = np.zeros(shape, dtype=np.int64)
        for lane in range(4):
            total += ((words >> np.uint64(16 * lane)) & np.uint64(0xFFFF)).astype(np.int64)
        return (total - LANES_MEAN) * deviation // LANES_DEVIATION

    def between(self, low: int, high: int) -> int:
        """One integer from low to high, both included."""
        return int(self.uniforms(low, high, 1)[0])

    def normal(self, deviation: int) -> int:
        return int(self.normals(deviation, 1)[0])

    def chance(self, per_cent: int) -> bool:
        return self.between(0, 99) < per_cent

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.between(0, len(items) - 1)]

    def weighted(self, weights: Sequence[int]) -> int:
        """A position, with a probability in proportion to its weight."""
        return int(np.searchsorted(np.cumsum(weights), self.between(1, sum(weights))))


def sine(angle: Ints) -> Ints:
    """Sine in 1/1024, by Bhaskara's rational formula; off by 2/1024 at most."""
    half = TURN // 2
    inside = angle.astype(np.int64) & (half - 1)  # the products below need more than 32 bits
    product = inside * (half - inside)
    size: Ints = 16 * ONE * product // (5 * half * half - 4 * product)
    return np.where((angle & half) != 0, -size, size)


def cosine(angle: Ints) -> Ints:
    return sine(angle + TURN // 4)


def movements(headings: Ints) -> Ints:
    """(..., 2) steps of one pixel along the headings, in 1/1024 pixel."""
    return np.stack([cosine(headings), sine(headings)], axis=-1)


def heading_towards(dx: int, dy: int) -> int:
    """The direction, one of 1024, that goes furthest along the movement (dx, dy)."""
    angles = np.arange(0, TURN, TURN // 1024)
    return int(angles[np.argmax(dx * cosine(angles) + dy * sine(angles))])
