"""The data sets that can be asked for by name, and any folder of class folders by its path."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fewshot.data import cifar100, cub, mini_imagenet, omniglot, tiered_imagenet
from fewshot.data.class_lists import AS_RGB
from fewshot.data.image_folder import load_image_folder
from fewshot.data.image_set import ImageSet
from fewshot.data.locations import data_root
from fewshot.errors import DataError, unknown


@dataclass(frozen=True)
class Dataset:
    """What is known of a named data set before any of it is read.

    usual_size: pixels of a side at which the field reports results.
    splits: the names of its class splits, the usual one first.
    size: of its files.
    find: the files and folders that hold it below a data directory; DataError if they are not there.
    load: the image set, from a data directory, at an image size, rebuilt even if it is cached.
    """

    name: str
    classes: int
    images: int
    source: str
    licence: str
    size: str
    usual_size: int
    splits: tuple[str, ...]
    how_to_get: str
    find: Callable[[Path], Sequence[Path]]
    load: Callable[[Path, int | None, bool], ImageSet]


@dataclass(frozen=True)
class Row:
    """A line of `fewshot data list`. where: the files that hold the data set, or how to get it."""

    dataset: Dataset
    found: bool
    where: str


def _load_glyphs(root: Path, image_size: int | None, rebuild: bool) -> ImageSet:
    from fewshot.data.glyphs import load_glyphs  # no other set needs the stroke model

    return load_glyphs(image_size, rebuild)


def _cifar100(name: str) -> Dataset:
    return Dataset(
        name=name,
        classes=100,
        images=60_000,
        source=cifar100.SOURCE,
        licence=cifar100.LICENCE,
        size="161 MB",
        usual_size=cifar100.PUBLISHED_SIZE,
        splits=(cifar100.SPLITS[name],),
        how_to_get=f"`fewshot data get {name}`",
        find=lambda root: cifar100.find_cifar100(name, root).files,
        load=partial(cifar100.load_cifar100, name),
    )


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="glyphs",
            classes=1_600,
            images=32_000,
            source="drawn by this package",
            licence="MIT",
            size="nothing to download",
            usual_size=28,
            splits=("default",),
            how_to_get="drawn when it is first asked for",
            find=lambda root: [],
            load=_load_glyphs,
        ),
        Dataset(
            name=omniglot.NAME,
            classes=1_623,
            images=32_460,
            source=omniglot.SOURCE,
            licence=omniglot.LICENCE,
            size="16 MB",
            usual_size=28,
            splits=("vinyals", "santoro", "lake"),
            how_to_get="`fewshot data get omniglot`",
            find=omniglot.find_parts,
            load=omniglot.load_omniglot,
        ),
        Dataset(
            name=mini_imagenet.NAME,
            classes=100,
            images=60_000,
            source=mini_imagenet.SOURCE,
            licence=mini_imagenet.LICENCE,
            size="0.1 to 1.3 GB, as it is encoded",
            usual_size=84,
            splits=("ravi",),
            how_to_get=mini_imagenet.HOW_TO_GET,
            find=lambda root: mini_imagenet.find_mini_imagenet(root).files,
            load=mini_imagenet.load_mini_imagenet,
        ),
        _cifar100(cifar100.CIFAR_FS),
        _cifar100(cifar100.FC100),
        Dataset(
            name=cub.NAME,
            classes=200,
            images=cub.IMAGES,
            source=cub.SOURCE,
            licence=cub.LICENCE,
            size="1.2 GB",
            usual_size=cub.USUAL_SIZE,
            splits=("chen",),
            how_to_get="`fewshot data get cub`",
            find=lambda root: [cub.find_cub(root)],
            load=cub.load_cub,
        ),
        Dataset(
            name=tiered_imagenet.NAME,
            classes=sum(tiered_imagenet.CLASSES.values()),
            images=sum(tiered_imagenet.IMAGES.values()),
            source=tiered_imagenet.SOURCE,
            licence=tiered_imagenet.LICENCE,
            size="12.9 GB, and 16.5 GB decoded in the cache",
            usual_size=tiered_imagenet.PUBLISHED_SIZE,
            splits=("ren",),
            how_to_get=tiered_imagenet.HOW_TO_GET,
            find=lambda root: [tiered_imagenet.find_tiered_imagenet(root)],
            load=tiered_imagenet.load_tiered_imagenet,
        ),
    )
}


def load_dataset(name: str, root: Path | None = None, image_size: int | None = None) -> ImageSet:
    """The image set of that name, decoded once and from then on memory-mapped from the cache.

    name: one of DATASETS, or the path of a folder of class folders (from here, or from the data directory);
        with ":rgb" behind it, grey images are given three channels, so that what reads photographs can
        read them.
    root: the data directory; see `fewshot.data.locations.data_root`.
    image_size: pixels of a side; None for the size as published.
    Raises DataError where the name is unknown, or its images are missing or damaged.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image size {image_size} asked for: it is the pixels of a side, at least 1")
    directory = data_root(root)
    dataset = named_dataset(name)
    image_set = (
        dataset.load(directory, image_size, False)
        if dataset
        else load_image_folder(find_folder(name.removesuffix(AS_RGB), directory), image_size)
    )
    return image_set.as_rgb() if name.endswith(AS_RGB) else image_set


def named_dataset(name: str) -> Dataset | None:
    """What is known of a data set of that name, with or without ":rgb"; None for a folder's."""
    return DATASETS.get(name.removesuffix(AS_RGB))


def find_folder(name: str, directory: Path) -> Path:
    """The folder of class folders that a name stands for; DataError says what there is instead."""
    for folder in (Path(name).expanduser(), directory / name):
        if name and folder.is_dir():
            return folder
    raise DataError(f"{unknown('dataset', name, DATASETS)}, or the path of a folder of class folders")


def list_datasets(root: Path | None = None) -> list[Row]:
    """Every named data set, and whether it is in the data directory; nothing is read."""
    directory = data_root(root)
    rows = []
    for dataset in DATASETS.values():
        try:
            places = dataset.find(directory)
        except DataError:
            rows.append(Row(dataset, found=False, where=dataset.how_to_get))
        else:
            where = ", ".join(map(str, places)) or dataset.how_to_get
            rows.append(Row(dataset, found=True, where=where))
    return rows
