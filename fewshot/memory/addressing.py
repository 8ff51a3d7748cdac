"""Addressing: how a head finds its slots, by content and by location.

By content (Graves et al. 2014, arXiv:1410.5401, equations 5 and 6; Santoro et al. 2016, equations 2 and 3;
the mask: Csordas and Schmidhuber 2019, arXiv:1904.10278):

| name       | symbol | equation                                   | shape               |
|------------|--------|--------------------------------------------|---------------------|
| memory     | M      |                                            | (batch, slot, word) |
| key        | k      |                                            | (batch, head, word) |
| similarity | K      | k . M(i) / (|k| |M(i)|)                    | (batch, head, slot) |
| strength   | beta   | 1 in Santoro et al.; learned in the NTM    | (batch, head)       |
| mask       | m      | m k and m M(i) in place of k and M(i)      | (batch, head, word) |
| weights    | w^c    | exp(beta K(i)) / sum over j exp(beta K(j)) | (batch, head, slot) |

By location, from where the head was one step before (Graves et al. 2014, equations 7 to 9; slots in a ring):

| name         | symbol | equation                                      | shape                |
|--------------|--------|-----------------------------------------------|----------------------|
| gate         | g      | 1: by content alone; 0: where it was          | (batch, head)        |
| interpolated | w^g    | g w^c_t + (1 - g) w_{t-1}                     | (batch, head, slot)  |
| shift_kernel | s      | how likely each shift is, -1, 0, +1 or more   | (batch, head, shift) |
| shifted      | w~     | sum over j of w^g(j) s(i - j)                 | (batch, head, slot)  |
| sharpening   | gamma  | at least 1                                    | (batch, head)        |
| sharpened    | w      | w~(i)^gamma / sum over j of w~(j)^gamma       | (batch, head, slot)  |
"""

import torch
from torch import Tensor

EPSILON = 1e-8
"""Length under which a key or a slot counts as empty; keeps the cosine and its gradient finite at zero."""


def inverse_length(vectors: Tensor) -> Tensor:
    """(..., word) -> (...): 1 / sqrt(|v|^2 + EPSILON^2)."""
    return torch.rsqrt(vectors.square().sum(-1) + EPSILON**2)


def cosine_similarity(
    key: Tensor, memory: Tensor, strength: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Cosine of every key with every slot, times strength, (batch, head, slot); 0 with an empty slot.

    mask: how much each number of a word counts; None: all of them. The memory is not masked head by head: the
    masked lengths of all its words are one product of squares.
    """
    if mask is None:
        scaled, inverse = key, inverse_length(memory).unsqueeze(1)
    else:
        key = key * mask
        scaled = key * mask
        inverse = torch.rsqrt(torch.bmm(mask.square(), memory.square().mT) + EPSILON**2)
    scale = inverse_length(key) if strength is None else strength * inverse_length(key)
    return torch.bmm(scaled * scale.unsqueeze(-1), memory.mT) * inverse


def content_weights(
    key: Tensor, memory: Tensor, strength: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention of every head over the slots, (batch, head, slot); sums to 1 over the slots.

    Without a strength it is nearly flat: a bare cosine gives the best of 128 slots a weight of 0.05 at most.
    """
    return torch.softmax(cosine_similarity(key, memory, strength, mask), dim=-1)


def interpolate(content: Tensor, previous: Tensor, gate: Tensor) -> Tensor:
    """Weights found by content, and those of the step before where the gate is shut, (batch, head, slot)."""
    return torch.lerp(previous, content, gate.unsqueeze(-1))


def shift(weights: Tensor, shift_kernel: Tensor) -> Tensor:
    """Circular convolution: weights (batch, head, slot) moved by each shift as far as the kernel says.

    shift_kernel: (batch, head, 2 * range + 1), for shifts from -range to range; +1 is on to the next slot.
    """
    reach = shift_kernel.shape[-1] // 2
    moved = torch.stack([weights.roll(steps, dims=-1) for steps in range(-reach, reach + 1)], dim=-2)
    return (shift_kernel.unsqueeze(-1) * moved).sum(-2)


def sharpen(weights: Tensor, sharpening: Tensor) -> Tensor:
    """Weights (batch, head, slot) to a power of at least 1, and renormalised.

    By logarithms, so that the sum cannot vanish however high the power; a weight of 0 stays one, to within
    the smallest number, and passes no gradient.
    """
    logarithms = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
    return torch.softmax(sharpening.unsqueeze(-1) * logarithms, dim=-1)
