"""Copies of a published image set on disk: which one there is, and whether it is whole."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshot.data.split import SIDES, Side
from fewshot.errors import DataError

Layout = Mapping[Side, Sequence[Path]]
"""What holds each side; the same for all three where a layout knows no sides."""


@dataclass(frozen=True)
class Copy:
    """One copy of an image set on disk: its layout, and what holds each side."""

    layout: str
    places: Layout

    @property
    def files(self) -> list[Path]:
        """Everything that belongs to the copy, each once: files and folders to copy."""
        return list(dict.fromkeys(place for side in SIDES for place in self.places[side]))


def undivided(place: Path) -> Layout:
    """The layout of what holds all sides in one."""
    return dict.fromkeys(SIDES, (place,))


def find_copy(
    name: str, folders: Iterable[Path], layouts: Callable[[Path], Mapping[str, Layout]], absent: str
) -> Copy:
    """The first layout of which one of the folders holds anything.

    absent: what the DataError says where none does; another says which side is missing of a copy.
    """
    for folder in folders:
        for layout, places in layouts(folder).items():
            there = [side for side in SIDES if places[side] and all(place.exists() for place in places[side])]
            if len(there) == len(SIDES):
                return Copy(layout, places)
            if there:
                missing = ", ".join(side for side in SIDES if side not in there)
                raise DataError(
                    f"{name} is not complete: {folder} has {', '.join(sorted(there))} as {layout} but "
                    f"no {missing}: add what is missing beside the rest"
                )
    raise DataError(absent)


def find_place(name: str, root: Path, candidates: Sequence[str], how_to_get: str) -> Path:
    """The first of these files and folders in the folder `name` of root, or in root itself."""
    for folder in (root / name, root):
        for candidate in candidates:
            if (folder / candidate).exists():
                return folder / candidate
    raise DataError(
        f"no {name} in {root} or its folder {name}: neither {' nor '.join(candidates)} is there: {how_to_get}"
    )


def check_classes(
    what: str, expected: Iterable[str], counts: Mapping[str, int], each: int | None, remedy: str
) -> None:
    """Raise DataError unless these are the classes of the list, with all their images.

    what: whose classes, in the message. counts: images of each class that is there. each: images that every
    class should have, None where classes differ.
    """
    listed = set(expected)
    if missing := sorted(listed - set(counts)):
        raise DataError(
            f"{what} lacks {len(missing)} of its {len(listed)} classes, first {missing[0]}: {remedy}"
        )
    if surplus := sorted(set(counts) - listed):
        raise DataError(f"{what} holds {surplus[0]}, which is not in its list: {remedy}")
    for name, count in counts.items():
        if each is not None and count != each:
            raise DataError(f"{name} has {count} images, not {each}, in {what}: {remedy}")
