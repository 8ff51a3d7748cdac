"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn once by 20 people.

Lake, Salakhutdinov and Tenenbaum, Human-level concept learning through probabilistic program induction,
Science 350, 2015. Read from the publisher's two zip archives or from the folders inside them.
"""

from collections import defaultdict
from pathlib import Path

from fewshot.data.cache import Pixels, Plan, cached_image_set, fingerprint
from fewshot.data.image_set import ImageSet
from fewshot.data.stored_images import StoredImage, decode, list_images, source_files
from fewshot.errors import DataError

NAME = "omniglot"
VERSION = 1
SOURCE = "https://github.com/brendenlake/omniglot"
LICENCE = "MIT"
PUBLISHED_SIZE = 105
# Alphabets x characters of each part, as published.
CLASSES = {"images_background": 964, "images_evaluation": 659}
DRAWERS = 20
REMEDY = "delete it and run `fewshot data get omniglot`, or point --data or $FEWSHOT_DATA elsewhere"


def load_omniglot(root: Path, image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """Ink 255 on paper 0, one channel, classes "Alphabet/characterNN".

    image_size: pixels of a side, as published (105) by default; shrunk by the mean over areas.
    rebuild: decode anew even if the cache has it.
    Raises DataError where a part is missing, damaged or incomplete.
    """
    size = image_size or PUBLISHED_SIZE
    places = find_parts(root)
    key = fingerprint(entry for place in places for entry in source_files(place, REMEDY))
    return cached_image_set(NAME, size, VERSION, key, lambda: _plan(places, size), rebuild)


def find_parts(root: Path) -> list[Path]:
    """The archive or folder of each part; DataError names the one that is missing."""
    folders = (root / "omniglot", root / "omniglot" / "python", root / "python", root)
    places = []
    for part in CLASSES:
        candidates = [place for folder in folders for place in (folder / f"{part}.zip", folder / part)]
        place = next((place for place in candidates if place.exists()), None)
        if place is None:
            raise DataError(
                f"no omniglot in {root}: neither {part}.zip nor a folder {part} is there or in its folder "
                "omniglot: run `fewshot data get omniglot`, or point --data or $FEWSHOT_DATA to where it is"
            )
        places.append(place)
    return places


def _plan(places: list[Path], image_size: int) -> Plan:
    classes: dict[str, list[StoredImage]] = defaultdict(list)
    for place, (part, published) in zip(places, CLASSES.items(), strict=True):
        found = set()
        for stored in list_images(place, REMEDY):
            if len(stored.parts) < 3:
                continue
            alphabet, character, _ = stored.parts[-3:]
            found.add(f"{alphabet}/{character}")
            classes[f"{alphabet}/{character}"].append(stored)
        if len(found) != published:
            raise DataError(f"{place} holds {len(found)} characters, {part} has {published}: {REMEDY}")
    for name, drawings in classes.items():
        if len(drawings) != DRAWERS:
            raise DataError(
                f"omniglot's {name} has {len(drawings)} drawings, {DRAWERS} are published: {REMEDY}"
            )
    ordered = [stored for name in sorted(classes) for stored in sorted(classes[name], key=lambda s: s.parts)]

    def draw(pixels: Pixels) -> None:
        decode(NAME, ordered, pixels, REMEDY, ink_high=True)

    return Plan(
        name=NAME,
        classes={name: sorted(s.parts[-1] for s in drawings) for name, drawings in classes.items()},
        image_shape=(1, image_size, image_size),
        source=SOURCE,
        licence=LICENCE,
        mean=(0.0,),
        std=(1.0,),
        draw=draw,
    )
