"""Splits of classes into train, val and test, and the pool of classes that episodes are drawn from.

Classes are split by committed lists or a fixed rule, never by a run's seed (design decision 5), so that
two runs can never disagree about which classes are unseen. A class turned by 90, 180 or 270 degrees is a
new class that stays on its parent's side.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fewshot.data.image_set import ImageSet
from fewshot.errors import SplitError

Side = Literal["train", "val", "test"]
SIDES: tuple[Side, ...] = ("train", "val", "test")


def upright_name(name: str) -> str:
    """The name of a class's upright parent: "Greek/character03" of "Greek/character03@90"."""
    return name.partition("@")[0]


@dataclass(frozen=True, eq=False)
class ClassPool:
    """The classes of one side of a split; `class_id` everywhere else is a position in this pool.

    class_index: (class,) int64, the class of the image set.
    quarter_turns: (class,) int64 in 0..3, how often the class's images are turned by 90 degrees
        counter-clockwise.
    """

    image_set: ImageSet
    split: str
    side: Side
    class_index: Tensor
    quarter_turns: Tensor

    def __len__(self) -> int:
        return len(self.class_index)

    @property
    def rotated(self) -> bool:
        """Whether turned classes are in the pool."""
        return bool(self.quarter_turns.any())

    def with_rotations(self) -> "ClassPool":
        """Four classes for each upright one; class c turned r times is class r * len(self) + c."""
        if self.rotated:
            return self
        _, height, width = self.image_set.image_shape
        if height != width:
            raise SplitError(
                f"rotation by 90 degrees needs square images; {self.image_set.name} has {height}x{width}"
            )
        turns = torch.arange(4).repeat_interleave(len(self))
        return replace(self, class_index=self.class_index.repeat(4), quarter_turns=turns)

    @cached_property
    def images_per_class(self) -> Tensor:
        """(class,) int64."""
        return self.image_set.images_per_class[self.class_index]

    @cached_property
    def first_image(self) -> Tensor:
        """(class,) int64: the row of the image set where the class's images begin."""
        return self.image_set.class_start[self.class_index]

    @cached_property
    def group(self) -> Tensor:
        """(class,) int64: the group (alphabet, and quarter turn) of each class, numbered from 0."""
        names = self.image_set.class_names
        keys = [
            (names[c].rpartition("/")[0], turn)
            for c, turn in zip(self.class_index.tolist(), self.quarter_turns.tolist(), strict=True)
        ]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return torch.tensor([number[key] for key in keys])

    def class_name(self, class_id: int) -> str:
        """The publisher's name, with the turn where there is one: "Greek/character03@90"."""
        name = self.image_set.class_names[int(self.class_index[class_id])]
        turns = int(self.quarter_turns[class_id])
        return f"{name}@{90 * turns}" if turns else name

    def parents_among(self, names: Iterable[str]) -> list[str]:
        """Which of these classes, turned or not, are the pool's: their upright names, sorted."""
        own = {self.image_set.class_names[c] for c in self.class_index.tolist()}
        return sorted(own & {upright_name(name) for name in names})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the side's class names, turns and of the image set's digest."""
        names = "\n".join(self.class_name(i) for i in range(len(self)))
        text = f"{self.image_set.digest}\n{self.split}\n{self.side}\n{names}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint sides of one image set's classes. Select and calibrate on val; look at test once."""

    name: str
    train: ClassPool
    val: ClassPool
    test: ClassPool

    def side(self, side: Side) -> ClassPool:
        return {"train": self.train, "val": self.val, "test": self.test}[side]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the three sides."""
        return hashlib.sha256("".join(self.side(side).digest for side in SIDES).encode()).hexdigest()
