"""Reading a data set in whole, and saying whether it is the one that it should be."""

from dataclasses import dataclass
from pathlib import Path

from fewshot.data.cache import image_set_digest
from fewshot.data.catalogue import DATASETS, find_folder
from fewshot.data.image_folder import load_image_folder
from fewshot.data.locations import data_root
from fewshot.data.split import SIDES, Side
from fewshot.data.splits import split_classes, split_names
from fewshot.errors import DataError

# Digests of known copies, at the usual image size.
KNOWN_DIGESTS = {
    "omniglot": {
        "c8562531737f87591223ff920979947abee34c9871a88e0ad61bca666f28218f": "the published images",
    },
    "glyphs": {
        "4c64df7d51c456b8b83f6ba429859325b3ad54e279859f24fa05654ab7649e3d": "version 1",
    },
    "mini_imagenet": {
        "431e65b013f454ae71119702bd80a0dfeb207b70c6ba7a2777473c66d65fdc74": (
            "84x84 JPEG re-encoded as WebP of quality 85, zipped"
        ),
    },
}
# Sets of which there is one copy: other pixels are wrong pixels. miniImageNet goes about re-encoded.
EXACT = frozenset({"glyphs", "omniglot"})


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds. problems: one line for each thing that is not as it should be.

    copy: which known copy of the data set this is, None where its pixels are of no known copy.
    splits: classes per side of each split.
    """

    name: str
    image_size: int
    classes: int
    images: int
    digest: str
    copy: str | None
    splits: dict[str, dict[Side, int]]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.classes:,} classes, {self.images:,} images, {self.image_size} px a side",
            f"digest {self.digest}: {self.copy or 'no copy that is known here'}",
        ]
        for split, sides in self.splits.items():
            counts = ", ".join(f"{side} {classes:,}" for side, classes in sides.items())
            lines.append(f"split {split}: {counts}")
        lines += [f"problem: {problem}" for problem in self.problems] or ["all is as it should be"]
        return "\n".join(lines)


def check_dataset(name: str, root: Path | None = None, image_size: int | None = None) -> CheckReport:
    """Decode everything anew, at the usual image size, and hold it against what is known.

    image_size: pixels of a side, of a folder of one's own. Raises DataError where it does not read, and for
    another size of a set of which something is known: that is known of its usual one.
    """
    directory = data_root(root)
    dataset = DATASETS.get(name)
    if dataset is None:
        image_set = load_image_folder(find_folder(name, directory), image_size, rebuild=True)
    else:
        usual = dataset.usual_size
        if image_size not in (None, usual):
            raise DataError(
                f"{name} is checked at {usual}x{usual}; got {image_size}: leave the image size out"
            )
        image_set = dataset.load(directory, usual, True)
    problems = []
    found = (len(image_set.class_names), len(image_set.images))
    if dataset is not None and found != (dataset.classes, dataset.images):
        problems.append(
            f"{found[0]:,} classes and {found[1]:,} images, not {dataset.classes:,} and {dataset.images:,}"
        )
    if image_set_digest(image_set) != image_set.digest:
        problems.append("the cached pixels are not those that were decoded: delete the cache directory")
    known = KNOWN_DIGESTS.get(name, {})
    copy = known.get(image_set.digest)
    if name in EXACT and copy is None:
        problems.append(f"the pixels are not the published ones (digest {image_set.digest[:12]})")
    splits = {}
    for split_name in split_names(image_set):
        split = split_classes(image_set, split_name)
        splits[split_name] = {side: len(split.side(side)) for side in SIDES}
    return CheckReport(
        name=image_set.name,
        image_size=image_set.image_shape[1],
        classes=found[0],
        images=found[1],
        digest=image_set.digest,
        copy=copy,
        splits=splits,
        problems=tuple(problems),
    )
