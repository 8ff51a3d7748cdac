"""What a label is to a learner: one of `way` units, or a string of five letters (Santoro et al. 2016).

With way units a network has a fixed number of classes built in. The paper's section 4.1 therefore also gives
each class of an episode a string of five letters, each one of five values: 25 units show it and 25 logits
answer with it, whatever the way, and 3,125 strings leave nothing to guess. Here a string is a *code*, five
numbers in 0..4, drawn afresh for each episode and never twice in it.
"""

from typing import Literal

import torch
from torch import Tensor

from fewshot.episodes.hashing import draw_distinct, fold

Labels = Literal["one_hot", "string"]

LETTERS, VALUES = 5, 5
STRINGS = VALUES**LETTERS


def label_units(labels: Labels, way: int) -> int:
    """How many units show a label, and how many logits answer with one."""
    return way if labels == "one_hot" else LETTERS * VALUES


def draw_codes(keys: Tensor, way: int) -> Tensor:
    """Distinct codes for each episode's classes: keys (batch, 1), int64 hashes -> (batch, way, letter)."""
    numbers = draw_distinct(fold(keys, torch.arange(way)).T, STRINGS).T.unsqueeze(-1)
    return numbers // VALUES ** torch.arange(LETTERS) % VALUES


def spelled(code: list[int]) -> str:
    """A code as people read it: "adbec"."""
    return "".join("abcde"[value] for value in code)
