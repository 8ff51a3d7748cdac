"""Temporal links against a slow twin, planted orders of writing and their invariants."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fewshot.memory.links import EPSILON, follow, links_after, precedence_after, sharpen_links

Array = NDArray[np.float64]


def slow_links(links: Array, precedence: Array, write_weights: Array) -> tuple[Array, Array]:
    """One episode and one write, link by link: links and precedence after it."""
    slots = len(precedence)
    after = np.zeros((slots, slots))
    for i in range(slots):
        for j in range(slots):
            if i != j:
                kept = (1 - write_weights[i] - write_weights[j]) * links[i, j]
                after[i, j] = kept + write_weights[i] * precedence[j]
    total = sum(write_weights)
    return after, np.array([(1 - total) * p + w for p, w in zip(precedence, write_weights, strict=True)])


def slow_follow(links: Array, read_weights: Array) -> Array:
    """One episode: (2, head, slot)."""
    heads, slots = read_weights.shape
    followed = np.zeros((2, heads, slots))
    for head in range(heads):
        for i in range(slots):
            for j in range(slots):
                followed[0, head, j] += links[i, j] * read_weights[head, i]
                followed[1, head, i] += links[i, j] * read_weights[head, j]
    return followed


def test_five_writes_equal_the_slow_twin() -> None:
    random = np.random.default_rng(0)
    links, precedence = torch.zeros(2, 6, 6, dtype=torch.double), torch.zeros(2, 6, dtype=torch.double)
    slow = [(np.zeros((6, 6)), np.zeros(6)) for _ in range(2)]
    for _ in range(5):
        write_weights = random.dirichlet(np.ones(7), size=2)[:, :6]  # they sum to less than 1
        read_weights, sharpness = random.dirichlet(np.ones(6), size=(2, 3)), random.uniform(1, 4, (2, 2, 3))
        written = torch.tensor(write_weights)
        links, precedence = links_after(links, precedence, written), precedence_after(precedence, written)
        followed = follow(links, torch.tensor(read_weights))
        sharp = sharpen_links(followed, torch.tensor(sharpness))
        for b in range(2):
            slow[b] = slow_links(*slow[b], write_weights[b])
            np.testing.assert_allclose(links[b], slow[b][0], atol=1e-12)
            np.testing.assert_allclose(precedence[b], slow[b][1], atol=1e-12)
            slow_followed = slow_follow(slow[b][0], read_weights[b])
            np.testing.assert_allclose(followed[b], slow_followed, atol=1e-12)
            powers = (slow_followed + EPSILON) ** sharpness[b][..., None]
            np.testing.assert_allclose(sharp[b], powers / powers.sum(-1, keepdims=True), rtol=1e-9)


def written_in_order(order: list[int], slots: int = 5) -> Tensor:
    """Links after whole slots were written one after the other."""
    links, precedence = torch.zeros(1, slots, slots), torch.zeros(1, slots)
    for slot in order:
        write_weights = torch.eye(slots)[slot].unsqueeze(0)
        links, precedence = (
            links_after(links, precedence, write_weights),
            precedence_after(precedence, write_weights),
        )
    return links


def test_forward_from_a_slot_is_the_one_written_next_and_backward_the_one_before() -> None:
    a, b, c = 3, 0, 2
    backward, forward = follow(written_in_order([a, b, c]), torch.eye(5)[[a, b, c]].unsqueeze(0))[0]
    nothing = torch.zeros(5)
    assert torch.equal(forward, torch.stack([torch.eye(5)[b], torch.eye(5)[c], nothing]))
    assert torch.equal(backward, torch.stack([nothing, torch.eye(5)[a], torch.eye(5)[b]]))


def test_a_slot_written_again_has_its_new_neighbours_alone() -> None:
    links = written_in_order([0, 1, 2, 1])
    assert links[0, 1].tolist() == [0, 0, 1, 0, 0]  # after 2, and not after 0 any more
    assert links[0, :, 1].sum() == 0  # nothing was written after it


def test_sharpening_undoes_blur_and_leaves_no_links_flat() -> None:
    followed = torch.tensor([0.1, 0.5, 0.4]).expand(1, 2, 1, 3)
    sharp = sharpen_links(followed, torch.full((1, 2, 1), 50.0))
    torch.testing.assert_close(sharp[0, 0, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-4, rtol=0)
    empty = torch.zeros(1, 2, 1, 3, requires_grad=True)
    flat = sharpen_links(empty, torch.full((1, 2, 1), 2.0))
    torch.testing.assert_close(flat, torch.full((1, 2, 1, 3), 1 / 3))
    flat[0, 0, 0, 0].backward()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(slots=st.integers(1, 7), writes=st.integers(1, 12), seed=st.integers(0, 99))
def test_rows_and_columns_sum_to_at_most_one_with_a_zero_diagonal(slots: int, writes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    links, precedence = torch.zeros(2, slots, slots), torch.zeros(2, slots)
    for _ in range(writes):
        weights = (4 * torch.randn(2, slots, generator=generator)).softmax(-1)
        weights = weights * torch.rand(2, 1, generator=generator)
        links, precedence = links_after(links, precedence, weights), precedence_after(precedence, weights)
    assert (links >= -1e-6).all()
    assert links.sum(1).max() <= 1 + 1e-5
    assert links.sum(2).max() <= 1 + 1e-5
    assert precedence.sum(-1).max() <= 1 + 1e-5
    assert torch.equal(links.diagonal(dim1=1, dim2=2), torch.zeros(2, slots))


def test_gradient() -> None:
    torch.manual_seed(0)
    links = torch.rand(2, 4, 4, dtype=torch.double) / 4
    precedence, write_weights = torch.randn(2, 2, 4, dtype=torch.double).softmax(-1)
    read_weights = torch.randn(2, 3, 4, dtype=torch.double).softmax(-1)
    sharpness = 1 + torch.rand(2, 2, 3, dtype=torch.double)

    def found(
        links: Tensor, precedence: Tensor, written: Tensor, read: Tensor, sharpness: Tensor
    ) -> tuple[Tensor, Tensor]:
        followed = follow(links_after(links, precedence, written), read)
        return sharpen_links(followed, sharpness), precedence_after(precedence, written)

    leaves = (links, precedence, write_weights, read_weights, sharpness)
    assert torch.autograd.gradcheck(found, tuple(leaf.detach().requires_grad_() for leaf in leaves))
