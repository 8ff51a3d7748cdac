"""Random numbers as a pure function of a key and a counter, the same on every device.

A generator with state would make an episode depend on what was drawn before it. Here a number is the hash
of (key, counter): the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom
number generators", figure 14 with the constants of Stafford's variant 13), computed in int64 tensors, whose
multiplication wraps, so that CPU and GPU agree bit for bit.
"""

import hashlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """The logical shift; torch has only the arithmetic one, whose copies of the sign are masked out."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 in which every output bit depends on every input bit."""
    value = (value ^ _shift_right(value, 30)) * _FIRST
    value = (value ^ _shift_right(value, 27)) * _SECOND
    return value ^ _shift_right(value, 31)


def key_of(*parts: object) -> int:
    """An int64 key from texts and numbers, by SHA-256 of their lines."""
    text = "\n".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def fold(key: Tensor | int, counter: Tensor) -> Tensor:
    """The key's random int64 for each counter; shapes broadcast.

    Under one key, different counters give different numbers, because `mix` is a bijection.
    """
    return mix(counter * _GOLDEN + key)


def uniform_below(random: Tensor, limit: Tensor | int) -> Tensor:
    """Integers uniform in 0..limit-1 (limit below 2^31), from int64 hashes; shapes broadcast.

    Scaling 32 bits favours a value by at most limit / 2^32, which is 4e-7 for Omniglot's 1,623 classes.
    """
    return (_shift_right(random, 32) * limit) >> 32


def uniform(random: Tensor) -> Tensor:
    """float32 uniform in [0, 1), from int64 hashes: 24 bits, which float32 holds exactly."""
    return _shift_right(random, 40).to(torch.float32) * 2.0**-24


def draw_distinct(random: Tensor, limit: Tensor | int) -> Tensor:
    """Ordered draws without replacement from 0..limit-1, uniform over all ordered tuples.

    random: (draw, ...) int64 hashes; limit: (...) or a number. Returns (draw, ...). Where a limit is below
    the number of draws, its first `limit` draws are valid and the others mean nothing.

    This is a partial Fisher-Yates shuffle without its array, so the cost does not grow with `limit`: draw j
    is first a rank among what the draws before it left over, and each of these, latest first, makes room for
    itself below the ranks that follow.
    """
    count = len(random)
    drawn_before = torch.arange(count, device=random.device).view(-1, *[1] * (random.dim() - 1))
    left = limit - drawn_before
    draws = uniform_below(random, left.clamp(min=1))
    for j in range(count - 2, -1, -1):
        later = draws[j + 1 :]
        later += later >= draws[j]
    return draws
