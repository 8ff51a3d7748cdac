"""Views of an image: copies of it, moved a little, whose mean features stand for its own.

Features of convolutions change where a drawing is shifted by a pixel, though its class does not; the mean
over such copies changes less. It costs as many passes as there are views, when answering only, and needs no
other training (test-time augmentation, as in Krizhevsky, Sutskever and Hinton 2012, section 4.1).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Views = Literal[1, 5, 9]
"""The image alone; shifted copies too; turned and resized ones too."""
SHIFT, DEGREES, SCALE = 1 / 28, 8.0, 0.075
"""How far a copy is shifted (a fraction of the side), turned, and enlarged or made smaller."""


def mean_over_views(embed: Callable[[Tensor], Tensor], images: Tensor, views: int) -> Tensor:
    """(..., channel, height, width) -> (..., feature): the mean of what `embed` makes of each view."""
    total = embed(images)
    if views == 1:
        return total
    flat = images.flatten(0, -4)
    for view in _maps(images.device)[1:views]:
        grid = F.affine_grid(view.expand(len(flat), 2, 3), list(flat.shape), align_corners=False)
        moved = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        total = total + embed(moved.view_as(images))
    return total / views


def _maps(device: torch.device) -> Tensor:
    """(view, 2, 3): the image itself, four shifts, two turns, two sizes."""
    moves = [(0.0, 1.0, 0.0, 0.0)]
    moves += [(0.0, 1.0, *shift) for shift in ((SHIFT, 0.0), (-SHIFT, 0.0), (0.0, SHIFT), (0.0, -SHIFT))]
    moves += [(math.radians(degrees), 1.0, 0.0, 0.0) for degrees in (DEGREES, -DEGREES)]
    moves += [(0.0, size, 0.0, 0.0) for size in (1 + SCALE, 1 - SCALE)]
    rows = [
        # An image spans two units, so a shift by a fraction of the side is twice that fraction.
        (
            (size * math.cos(angle), -size * math.sin(angle), 2 * across),
            (size * math.sin(angle), size * math.cos(angle), 2 * down),
        )
        for angle, size, across, down in moves
    ]
    return torch.tensor(rows, device=device)
