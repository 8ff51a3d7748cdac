import hashlib
from itertools import permutations

import pytest
import torch
from scipy.stats import chisquare

from fewshot.episodes.hashing import draw_distinct, fold, key_of, mix, uniform, uniform_below

SEED = key_of("a test")


def test_matches_the_published_splitmix64_sequence() -> None:
    """The first outputs of the reference implementation in C from seed 0."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in fold(0, torch.arange(1, 4)).tolist()] == expected


def test_mix_agrees_with_unbounded_integers() -> None:
    def reference(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    values = [0, 1, -1, 2**63 - 1, -(2**63), 123456789, -987654321]
    mixed = mix(torch.tensor(values)).tolist()
    assert [value % 2**64 for value in mixed] == [reference(value % 2**64) for value in values]


def test_flipping_one_input_bit_flips_half_of_the_output() -> None:
    values = fold(SEED, torch.arange(1000))
    for bit in range(63):
        changed = mix(values) ^ mix(values ^ (1 << bit))
        flipped = sum(bin(value % 2**64).count("1") for value in changed.tolist()) / 1000
        assert 31 < flipped < 33, bit


def test_key_of_is_the_head_of_a_sha256_over_lines() -> None:
    head = hashlib.sha256(b"pool\n3").digest()[:8]
    assert key_of("pool", 3) == int.from_bytes(head, "little", signed=True)
    assert key_of("pool", 3) != key_of("pool3")


@pytest.mark.parametrize("limit", [1, 2, 7, 1623])
def test_uniform_below_is_uniform_and_below(limit: int) -> None:
    drawn = uniform_below(fold(SEED, torch.arange(200_000)), limit)
    counts = torch.bincount(drawn, minlength=limit)
    assert len(counts) == limit
    assert limit == 1 or chisquare(counts.numpy()).pvalue > 1e-4


def test_uniform_below_takes_a_limit_for_each_draw_and_reaches_both_ends() -> None:
    limits = torch.tensor([1, 2, 3, 2**31 - 1])
    lowest, highest = torch.tensor(0), torch.tensor(-1)  # no bit and every bit of the hash
    assert uniform_below(lowest, limits).tolist() == [0, 0, 0, 0]
    assert uniform_below(highest, limits).tolist() == (limits - 1).tolist()


def test_uniform_is_in_the_half_open_unit_interval() -> None:
    drawn = uniform(fold(SEED, torch.arange(100_000)))
    assert drawn.dtype == torch.float32
    assert chisquare(torch.histc(drawn, bins=20, min=0, max=1).numpy()).pvalue > 1e-4
    assert uniform(torch.tensor(0)) == 0
    assert uniform(torch.tensor(-1)) == 1 - 2.0**-24


def test_distinct_draws_are_uniform_over_ordered_tuples() -> None:
    random = fold(fold(SEED, torch.arange(60_000)), torch.arange(3).unsqueeze(1))
    draws = draw_distinct(random, 5)
    tuples = [a * 25 + b * 5 + c for a, b, c in permutations(range(5), 3)]
    counts = torch.bincount(draws[0] * 25 + draws[1] * 5 + draws[2], minlength=125)
    assert counts[tuples].sum() == 60_000
    assert chisquare(counts[tuples].numpy()).pvalue > 1e-4


def test_draws_are_distinct_as_far_as_each_limit_reaches() -> None:
    limits = torch.tensor([1, 4, 9, 20])
    draws = draw_distinct(fold(SEED, torch.arange(36).view(9, 4)), limits)
    for column, limit in zip(draws.T.tolist(), limits.tolist(), strict=True):
        valid = column[:limit]
        assert len(set(valid)) == len(valid)
        assert all(0 <= draw < limit for draw in valid)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_draws_what_the_cpu_draws() -> None:
    counters = torch.arange(10_000).view(10, 1000)
    here = draw_distinct(fold(SEED, counters), 1623)
    there = draw_distinct(fold(SEED, counters.cuda()), 1623)
    assert torch.equal(here, there.cpu())
