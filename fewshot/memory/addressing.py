"""Content addressing: how a key finds slots of the memory (Santoro et al. 2016, equations 2 and 3).

| name       | symbol | equation                                   | shape                    |
|------------|--------|--------------------------------------------|--------------------------|
| memory     | M      |                                            | (batch, slot, word)      |
| key        | k      |                                            | (batch, read_head, word) |
| similarity | K      | k . M(i) / (|k| |M(i)|)                    | (batch, read_head, slot) |
| strength   | beta   | 1 in Santoro et al.; learned in the NTM    | (batch, read_head)       |
| weights    | w      | exp(beta K(i)) / sum over j exp(beta K(j)) | (batch, read_head, slot) |
"""

import torch
from torch import Tensor

EPSILON = 1e-8
"""Length under which a key or a slot counts as empty; keeps the cosine and its gradient finite at zero."""


def inverse_length(vectors: Tensor) -> Tensor:
    """(..., word) -> (...): 1 / sqrt(|v|^2 + EPSILON^2)."""
    return torch.rsqrt(vectors.square().sum(-1) + EPSILON**2)


def cosine_similarity(key: Tensor, memory: Tensor, strength: Tensor | None = None) -> Tensor:
    """Cosine of every key with every slot, times strength, (batch, read_head, slot); 0 with an empty slot."""
    scale = inverse_length(key) if strength is None else strength * inverse_length(key)
    return torch.bmm(key * scale.unsqueeze(-1), memory.mT) * inverse_length(memory).unsqueeze(1)


def content_weights(key: Tensor, memory: Tensor, strength: Tensor | None = None) -> Tensor:
    """Attention of every head over the slots, (batch, read_head, slot); sums to 1 over the slots.

    Without a strength it is nearly flat: a bare cosine gives the best of 128 slots a weight of 0.05 at most.
    """
    return torch.softmax(cosine_similarity(key, memory, strength), dim=-1)
