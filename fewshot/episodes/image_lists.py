"""Episodes from a file of image lists: test sets that somebody published, or that the sampler wrote.

The file has one JSON object per line and episode. A K-shot episode names its classes and images,

    {"classes": ["Greek/character03", "Greek/character07"],
     "support": ["Greek/character07/0398_12.png", "Greek/character03/0394_05.png"],
     "query": ["Greek/character03/0394_11.png", "Greek/character07/0398_02.png"]}

and a stream has "stream" in place of "support" and "query". An image is named by its class and its own name,
as in `ClassPool.class_name` and `ImageSet.image_names`. Images are shown in the order of the file. Labels
follow the order of "classes": the first listed is label 0. (A file that always lists them in one order, say
the alphabet's, tells a learner trained on such files more than it should know; shuffle them.)

All episodes of a file have one shape. Nothing is repeated inside an episode.
"""

import contextlib
import difflib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fewshot.data.split import ClassPool
from fewshot.episodes.batch import EpisodeBatch
from fewshot.episodes.protocol import KShot, Protocol, Stream, bounds
from fewshot.episodes.source import EpisodeIndices, EpisodeSource, check_range
from fewshot.errors import EpisodeError

_WRITE_BATCH = 256


class ImageListSource(EpisodeSource):
    """The episodes of a file, in its order; `len` is their number. Made by `read_image_lists`."""

    def __init__(
        self,
        pool: ClassPool,
        protocol: Protocol,
        episodes: EpisodeIndices,
        device: torch.device | str = "cpu",
    ) -> None:
        """episodes: all of the file's, on any device."""
        super().__init__(pool, protocol, device)
        self._episodes = episodes.each(lambda part: part.to(self.device))

    def __len__(self) -> int:
        return len(self._episodes.labels)

    def indices(self, start: int, count: int) -> EpisodeIndices:
        check_range(start, count)
        if start + count > len(self):
            raise EpisodeError(
                f"episodes {start}..{start + count - 1} asked for; the file has {len(self)}: ask for fewer"
            )
        return self._episodes.each(lambda part: part[start : start + count])

    def batch(self, start: int, count: int) -> EpisodeBatch:
        return self.render(self.indices(start, count))


def write_image_lists(path: Path, source: EpisodeSource, count: int) -> None:
    """Write episodes 0..count-1 of a source; reading them again gives the same episodes and digest.

    Raises EpisodeError for a source of varying shape, for string labels and chains, of which the file says
    nothing, and for a path that cannot be written.
    """
    if source.shape_block is not None:
        raise EpisodeError("a file of image lists has one shape; fix way and shot before writing it")
    protocol = source.protocol
    if isinstance(protocol, Stream) and (protocol.labels == "string" or protocol.chain > 1):
        raise EpisodeError("a file of image lists has no strings and no chains: write it with neither")
    pool = source.pool
    image_names = pool.image_set.image_names
    class_names = [pool.class_name(class_id) for class_id in range(len(pool))]
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for span in source.spans(0, count, _WRITE_BATCH):
                class_ids, images, _, labels, support = source.indices(*span)[:5]
                for episode in zip(class_ids.tolist(), images.tolist(), labels.tolist(), strict=True):
                    classes = [class_names[class_id] for class_id in episode[0]]
                    names = [
                        f"{classes[label]}/{image_names[image]}"
                        for image, label in zip(episode[1], episode[2], strict=True)
                    ]
                    shown = (
                        {"support": names[:support], "query": names[support:]}
                        if support
                        else {"stream": names}
                    )
                    file.write(json.dumps({"classes": classes, **shown}, ensure_ascii=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise EpisodeError(
            f"cannot write image lists to {path} ({error.strerror or error}): give a file in a folder that "
            "exists and can be written"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # mostly because it was renamed
            partial.unlink()


def read_image_lists(path: Path, pool: ClassPool, device: torch.device | str = "cpu") -> ImageListSource:
    """The episodes of a file over the classes of a pool.

    Raises EpisodeError, with the line, for a name that the pool lacks, an image shown twice, and a shape that
    is ragged or not the first episode's.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EpisodeError(f"cannot read image lists from {path}: {error}") from error
    catalogue = _Catalogue(pool)
    episodes: list[_Episode] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            episode = _parse(line, catalogue)
            if episodes and episode.protocol != episodes[0].protocol:
                raise EpisodeError(
                    f"this episode is {_shape(episode.protocol)}, the first is "
                    f"{_shape(episodes[0].protocol)}: write one file for each shape"
                )
        except EpisodeError as error:
            raise EpisodeError(f"{path}, line {number}: {error}") from error
        episodes.append(episode)
    if not episodes:
        raise EpisodeError(f"{path} lists no episodes: write one JSON object per line")

    protocol = episodes[0].protocol
    class_ids, images, labels = (torch.tensor(part) for part in list(zip(*episodes, strict=True))[1:])
    support = 0
    if isinstance(protocol, KShot):
        support = class_ids.shape[1] * bounds(protocol.shot)[0]
    elif (F.one_hot(labels).sum(dim=1) * protocol.way == protocol.length).all():
        protocol = replace(protocol, counts="exact")
    turns = pool.quarter_turns[class_ids].gather(1, labels)
    return ImageListSource(pool, protocol, EpisodeIndices(class_ids, images, turns, labels, support), device)


class _Episode(NamedTuple):
    protocol: Protocol
    class_ids: list[int]
    images: list[int]
    labels: list[int]


class _Catalogue:
    """What a pool's classes and images are called."""

    def __init__(self, pool: ClassPool) -> None:
        self.place = f"{pool.image_set.name}/{pool.split}/{pool.side}"
        self.class_ids = {pool.class_name(class_id): class_id for class_id in range(len(pool))}
        self.images: dict[str, tuple[int, int]] = {}
        first_image, images_per_class = pool.first_image.tolist(), pool.images_per_class.tolist()
        for name, class_id in self.class_ids.items():
            first = first_image[class_id]
            for row in range(first, first + images_per_class[class_id]):
                self.images[f"{name}/{pool.image_set.image_names[row]}"] = class_id, row


def _parse(line: str, catalogue: _Catalogue) -> _Episode:
    """One line as integers; a stream's counts are called random until all are seen."""
    lists = _lists(line)
    classes = lists["classes"]
    for name in classes:
        if name not in catalogue.class_ids:
            near = difflib.get_close_matches(name, catalogue.class_ids, n=1)
            hint = f"did you mean {near[0]}?" if near else "choose the split that the file was written for"
            raise EpisodeError(f"no class {name} in {catalogue.place}: {hint}")
    class_ids = [catalogue.class_ids[name] for name in classes]
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    shown = [name for part, names in lists.items() if part != "classes" for name in names]
    repeated = [name for name, count in Counter(shown).items() if count > 1]
    if repeated or len(label_of) < len(classes):
        what = f"image {repeated[0]}" if repeated else "a class"
        raise EpisodeError(f"{what} is listed twice: list it once")

    images, labels = [], []
    for name in shown:
        if name not in catalogue.images:
            raise EpisodeError(
                f"no image {name} in {catalogue.place}: name it by its class and its own name, as in "
                f"{next(iter(catalogue.images))}"
            )
        class_id, image = catalogue.images[name]
        if class_id not in label_of:
            raise EpisodeError(f'image {name} is of a class that "classes" does not list: add it there')
        images.append(image)
        labels.append(label_of[class_id])

    way = len(classes)
    if "stream" in lists:
        return _Episode(Stream(way, len(shown), counts="random"), class_ids, images, labels)
    support = len(lists["support"])
    shot = _images_per_class("support", labels[:support], way)
    query = _images_per_class("query", labels[support:], way)
    return _Episode(KShot(way, shot, query), class_ids, images, labels)


def _lists(line: str) -> dict[str, list[str]]:
    """The lists of a line, by name, support before query."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise EpisodeError(f"not JSON ({error}): write one object per line") from error
    for names in (("classes", "support", "query"), ("classes", "stream")):
        if isinstance(found, dict) and found.keys() == set(names):
            for name in names:
                value = found[name]
                if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                    raise EpisodeError(f'"{name}" must be a list of names')
            return {name: found[name] for name in names}
    raise EpisodeError(
        'an episode has "classes", "support" and "query", or "classes" and "stream", and no more'
    )


def _images_per_class(part: str, labels: list[int], way: int) -> int:
    """How many images each class has in this part; EpisodeError where it is not the same for all."""
    counts = {labels.count(label) for label in range(way)}
    if len(counts) != 1:
        raise EpisodeError(
            f"{part} has {min(counts)} images of one class and {max(counts)} of another: give each as many"
        )
    return counts.pop()


def _shape(protocol: Protocol) -> str:
    if isinstance(protocol, Stream):
        return f"a stream of {protocol.length} images of {protocol.way} classes"
    return f"{protocol.way}-way {protocol.shot}-shot with {protocol.query} queries"
