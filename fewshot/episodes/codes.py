"""Strings of five letters as labels: the codes of an episode's classes, drawn afresh for each episode."""

import torch
from torch import Tensor

from fewshot.episodes.hashing import draw_distinct, fold
from fewshot.episodes.labels import LETTERS, STRINGS, VALUES


def draw_codes(keys: Tensor, way: int) -> Tensor:
    """Distinct codes for each episode's classes: keys (batch, 1), int64 hashes -> (batch, way, letter)."""
    numbers = draw_distinct(fold(keys, torch.arange(way)).T, STRINGS).T.unsqueeze(-1)
    return numbers // VALUES ** torch.arange(LETTERS) % VALUES
