"""Dynamic allocation: where there is room to write (Graves et al. 2016, Nature 538, 471-476, Methods).

| name               | symbol | equation, at step t                                  | shape              |
|--------------------|--------|------------------------------------------------------|--------------------|
| free_gates         | f      | sigmoid, from the controller                         | (batch, read_head) |
| retained           | psi    | product over heads h of 1 - f_h w^r_{t-1,h}(i)       | (batch, slot)      |
| usage              | u      | (u(i) + w^w(i) - u(i) w^w(i))_{t-1} psi_t(i)         | (batch, slot)      |
| free_list          | phi    | the slots in order of u_t, least used first          | (batch, slot)      |
| allocation_weights | a      | (1 - u_t(phi_j)) product over i < j of u_t(phi_i) at | (batch, slot)      |
|                    |        | slot phi_j                                           |                    |

Gradients follow the equations; the order of the free list has none. DeepMind's code, and after it that of
Csordas and Schmidhuber, also stops the gradient from the write weights into usage, which their papers do not
mention. Here it passes, so that finite differences hold for the whole step; Omniglot's streams are learned
alike with either. They also lift all usages by 1e-6, for a gradient that divides by them; torch's running
product needs no help.
"""

import functools

import torch
from torch import Tensor


def retention(free_gates: Tensor, read_weights: Tensor) -> Tensor:
    """(batch, slot): how much of a slot stays, 1 for all of it, when the heads that have read it free it."""
    # Head by head, of which there are few: torch's product over a dimension takes longer.
    return functools.reduce(torch.mul, (1 - free_gates.unsqueeze(-1) * read_weights).unbind(1))


def usage_after(usage: Tensor, write_weights: Tensor, retained: Tensor) -> Tensor:
    """(batch, slot), from 0 to 1: raised by what the step before wrote, lowered by what was freed since."""
    return torch.lerp(usage, torch.ones_like(usage), write_weights) * retained


def allocation_weights(usage: Tensor) -> Tensor:
    """(batch, slot): all on the least used slot if that is free, else the rest on the next, and so on.

    They sum to 1 less the product of all usages. Ties go to the lower slot.
    """
    sorted_usage, free_list = torch.sort(usage, dim=-1, stable=True)
    taken = torch.cumprod(sorted_usage, dim=-1)
    before = torch.cat([torch.ones_like(taken[:, :1]), taken[:, :-1]], dim=-1)
    return torch.zeros_like(usage).scatter(1, free_list, (1 - sorted_usage) * before)
