"""Temporal links: in which order slots were written (Graves et al. 2016, Nature 538, 471-476, Methods).

| name       | symbol | equation, at step t                                    | shape                    |
|------------|--------|--------------------------------------------------------|--------------------------|
| precedence | p      | (1 - sum over j of w^w_t(j)) p_{t-1}(i) + w^w_t(i)     | (batch, slot)            |
| links      | L      | (1 - w^w_t(i) - w^w_t(j)) L_{t-1}(i, j) + w^w_t(i)     | (batch, slot i, slot j)  |
|            |        | p_{t-1}(j), and 0 where i = j                          |                          |
| backward   | b      | sum over i of w^r_{t-1}(i) L_t(i, j)                   | (batch, read_head, slot) |
| forward    | f      | sum over j of L_t(i, j) w^r_{t-1}(j)                   | (batch, read_head, slot) |
| sharpness  | s      | 1 + softplus, from the controller, for each direction  | (batch, 2, read_head)    |
| sharpened  |        | b(i)^s / sum over j of b(j)^s; f likewise              | (batch, read_head, slot) |

L(i, j) says how far slot i was written right after slot j. Every write blurs all links a little, and so does
following one after another: Csordas and Schmidhuber 2019 (arXiv:1904.10278) therefore sharpen what is found.
"""

import torch
from torch import Tensor

from fewshot.memory.addressing import sharpen

EPSILON = 1e-6
"""A link far below it is none, and where there is no link, sharpened weights are flat."""


def precedence_after(precedence: Tensor, write_weights: Tensor) -> Tensor:
    """(batch, slot): how far each slot is the one written last; sums to at most 1."""
    return write_weights + (1 - write_weights.sum(-1, keepdim=True)) * precedence


def links_after(links: Tensor, precedence: Tensor, write_weights: Tensor) -> Tensor:
    """(batch, slot, slot) after a write; precedence: before it. Rows and columns sum to at most 1."""
    written = write_weights.unsqueeze(2)
    kept = 1 - written - write_weights.unsqueeze(1)
    links = torch.addcmul(written * precedence.unsqueeze(1), kept, links)
    return torch.diagonal_scatter(links, torch.zeros_like(write_weights), dim1=1, dim2=2)


def follow(links: Tensor, read_weights: Tensor) -> Tensor:
    """(batch, 2, read_head, slot): what was written before, and what after, the slots that were read."""
    return torch.stack([torch.bmm(read_weights, links), torch.bmm(read_weights, links.mT)], dim=1)


def sharpen_links(followed: Tensor, sharpness: Tensor) -> Tensor:
    """Of `follow`, in the same shape; each head's weights sum to 1."""
    return sharpen(followed + EPSILON, sharpness)
