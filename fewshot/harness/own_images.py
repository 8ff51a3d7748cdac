"""The suite for a folder of one's own images: from class folders to a table with one command.

It asks WAY classes of SHOT images to learn from and QUERY to name, and streams of STREAM images. Weights of
a ResNet-18 that has seen many photographs are worth more than anything that a few classes teach: frozen, it
stands before the nearest stored features. Without weights, a small prototypical network is trained from
scratch. Beside either stand the nearest neighbour by pixels and the count guesser, which sees no image.
"""

from pathlib import Path
from typing import Any

from fewshot.data.image_folder import load_image_folder
from fewshot.data.image_set import ImageSet
from fewshot.data.split import SIDES
from fewshot.data.splits import split_classes, split_names
from fewshot.errors import EpisodeError
from fewshot.harness.config import Suite, parse_suite

WAY, SHOT, QUERY = 5, 5, 5
STREAM = WAY * QUERY
"""Images of a stream. Classes may have just SHOT + QUERY images each: a stream that showed all of them would
have exact counts, which can be guessed from, however its classes were drawn."""
IMAGE_SIZE, PHOTOGRAPH_SIZE = 32, 84
"""Pixels of a side: for a network trained from scratch, and for one that has seen photographs."""
STEPS, EPISODES = 200, 1000
THIRDS = "fraction:0.34/0.33/0.33@0"
"""The split of a folder without train/, val/ and test/: as many classes for each as there can be."""


def suite_of_folder(folder: Path, weights: str | None = None) -> Suite:
    """The suite; weights: a file of a ResNet-18, or "published".

    Raises DataError for a folder without class folders or with a damaged image, SplitError where a side of
    the split has no class, and EpisodeError for too few classes, or images of one.
    """
    size = PHOTOGRAPH_SIZE if weights else IMAGE_SIZE
    image_set = load_image_folder(folder, size)
    split = "folders" if "folders" in split_names(image_set) else THIRDS
    _check_supply(image_set, split, folder)
    asked = {"way": WAY, "episodes": EPISODES}
    content = {
        "title": f"Own images: {folder.resolve().name}",
        "data": {"dataset": str(folder.resolve()), "split": split, "image_size": size},
        "train": {
            "episodes": {"protocol": "kshot", "way": WAY, "shot": 1, "query": QUERY},
            "batch": 4,
            "steps": STEPS,
            "validate_every": STEPS // 2,
        },
        "test": [
            {"protocol": "kshot", "shot": 1, "query": QUERY} | asked,
            {"protocol": "kshot", "shot": SHOT, "query": QUERY} | asked,
            {"protocol": "stream", "length": STREAM, "counts": "random"} | asked,
        ],
        "learner": [*_learners(weights), {"id": "nearest_neighbour"}, {"id": "count_guesser"}],
    }
    return parse_suite(content, folder.resolve().name, str(folder))


def _learners(weights: str | None) -> list[dict[str, Any]]:
    if weights is None:
        return [{"id": "prototypical", "options": {"widths": [32, 32, 32, 32]}}]
    frozen = {"name": "resnet18", "weights": weights, "frozen": True}
    return [{"id": "nearest_feature", "options": {"backbone": frozen}}]


def _check_supply(image_set: ImageSet, split: str, folder: Path) -> None:
    """Raise unless there are classes for each of three sides, and images for an episode of each."""
    classes, needed = len(image_set.class_names), len(SIDES) * WAY
    if classes < needed:
        raise EpisodeError(
            f"{WAY}-way needs {needed} classes, {WAY} each to train on, to validate on and to test on; "
            f"{folder} has {classes}: add {needed - classes}, or write a suite with a lower way"
        )
    divided = split_classes(image_set, split)
    for side in SIDES:
        there = len(divided.side(side))
        if there < WAY:
            raise EpisodeError(
                f"{WAY}-way needs {WAY} classes to train on, to validate on and to test on; {folder / side} "
                f"has {there}: move {WAY - there} there from another side, or write a suite with a lower way"
            )
    fewest = int(image_set.images_per_class.argmin())
    images = int(image_set.images_per_class[fewest])
    if images < SHOT + QUERY:
        raise EpisodeError(
            f"class {image_set.class_names[fewest]} of {folder} has {images} images, and {SHOT}-shot with "
            f"{QUERY} queries needs {SHOT + QUERY}: add {SHOT + QUERY - images}, or take its folder away"
        )
