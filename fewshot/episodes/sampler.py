"""The sampler: episode i as a pure function of (class pool, protocol, episode seed, i).

Nothing is drawn from a generator with state, so an episode is the same whatever the batch size, the device
or what was drawn before (design decision 1). Four named streams of hashes decide shapes, classes, images and
order; a fifth draws the strings of labels, a sixth distorts the images in training. Everything is vectorised
over the batch.
"""

from numbers import Integral
from types import NoneType

import torch
from torch import Tensor

from fewshot.data.split import ClassPool
from fewshot.episodes.augment import Augment
from fewshot.episodes.batch import EpisodeBatch, with_images
from fewshot.episodes.codes import draw_codes
from fewshot.episodes.hashing import draw_distinct, fold, key_of, uniform_below
from fewshot.episodes.protocol import KShot, Protocol, Stream, bounds
from fewshot.episodes.source import EpisodeIndices, EpisodeSource, check_range, presentation
from fewshot.errors import EpisodeError, check_kind
from fewshot.kernels.draw import Drawn, EpisodeShape, PoolTables, draw_episodes

SAMPLER_VERSION = 1
"""Raised by hand when the episodes behind recorded figures may move."""


class EpisodeSampler(EpisodeSource):
    """Endless episodes of one protocol over the classes of one pool.

    The j-th class drawn gets label j. Draws are uniform over ordered tuples, so every permutation of labels
    is equally likely. Classes and images are drawn without replacement: support and query never share an
    image, and no drawing returns in a stream. Link l of episode i of chains of n links is number i * n + l of
    the links, each drawn as an episode is. (A turned class is a class of its own: where it meets its
    parent in one episode, the same drawing may appear in both, turned.)
    """

    def __init__(
        self,
        pool: ClassPool,
        protocol: Protocol,
        episode_seed: int,
        *,
        augment: Augment | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises EpisodeError where the pool cannot supply the protocol, FewshotError for what is none."""
        check_kind("pool", pool, ClassPool, "give a side of a split, as split.test")
        check_kind("protocol", protocol, (KShot, Stream), "give one, as fewshot.KShot(way=5, shot=1)")
        check_kind("episode_seed", episode_seed, Integral, "give a number")
        check_kind("augment", augment, (Augment, NoneType), "give a fewshot.Augment(), or leave it out")
        _check_supply(pool, protocol)
        if augment is not None:
            augment.check_fits(pool.image_set.image_shape)
        super().__init__(pool, protocol, device)
        if isinstance(protocol, KShot) and protocol.variable:
            self.shape_block = protocol.block
        self.episode_seed = episode_seed
        self.augment = augment
        names = ("shapes", "classes", "images", "order", "strings", "augmentation")
        meaning = _meaning(protocol)
        self._keys = {name: key_of(pool.digest, meaning, episode_seed, name) for name in names}
        # On the CPU, where a batch is drawn in one call; the device gets the numbers when they are finished.
        group = pool.group
        group_size = torch.bincount(group)
        tables = (
            pool.first_image,
            pool.images_per_class,
            pool.quarter_turns,
            group.argsort(stable=True),
            group_size.cumsum(0) - group_size,
            group_size,
        )
        self._tables = PoolTables(*(table.to("cpu", torch.int64).contiguous() for table in tables))
        self._most_images = int(pool.images_per_class.max())

    def under(self, protocol: Protocol) -> "EpisodeSampler":
        """The same pool, seed and distortion under a protocol: the sampler itself where that is its own."""
        if protocol == self.protocol:
            return self
        return EpisodeSampler(
            self.pool, protocol, self.episode_seed, augment=self.augment, device=self.device
        )

    def batch(self, start: int, count: int) -> EpisodeBatch:
        indices = self.indices(start, count)
        if self.augment is None:
            return self.render(indices)
        keys = fold(self._episode_keys("augmentation", start, count), torch.arange(indices.labels.shape[1]))
        batch = self.render(indices, self.augment.maps(keys).to(self.device, non_blocking=True))
        return with_images(batch, self.augment.cropped)

    def indices(self, start: int, count: int) -> EpisodeIndices:
        check_range(start, count)
        chain = self.protocol.chain if isinstance(self.protocol, Stream) else 1

        def chained(part: Tensor) -> Tensor:
            whole = part.reshape(count, chain * part.shape[1], *part.shape[2:])
            return whole.to(self.device, non_blocking=True)

        return self._links(start * chain, count * chain).each(chained)._replace(chain=chain)

    def _links(self, start: int, count: int) -> EpisodeIndices:
        """Links start..start+count-1 of all episodes, each as an episode of its own; on the CPU."""
        shape = self._shape(start, count)
        choices = self._choices(shape.way)
        keys = (self._keys["classes"], self._keys["images"], self._keys["order"])
        drawn = draw_episodes(start, count, shape, self._tables, choices, keys)
        if drawn is None:
            drawn = self._draw(start, count, shape, choices)
        codes = None
        if isinstance(self.protocol, Stream) and self.protocol.labels == "string":
            codes = draw_codes(self._episode_keys("strings", start, count), shape.way)
        return EpisodeIndices(*drawn, shape.support, codes)

    def _shape(self, start: int, count: int) -> EpisodeShape:
        """That of all the episodes."""
        protocol = self.protocol
        if isinstance(protocol, Stream):
            independent = protocol.counts == "random"
            draws = (
                min(protocol.length, self._most_images) if independent else protocol.length // protocol.way
            )
            return EpisodeShape(protocol.way, protocol.length, 0, draws, independent)
        way, shot = self._way_and_shot(protocol, start, count)
        draws = shot + protocol.query
        return EpisodeShape(way, way * draws, way * shot, draws)

    def _way_and_shot(self, protocol: KShot, start: int, count: int) -> tuple[int, int]:
        (low_way, high_way), (low_shot, high_shot) = bounds(protocol.way), bounds(protocol.shot)
        if not protocol.variable:
            return low_way, low_shot
        block = protocol.block
        blocks = torch.arange(start // block, (start + count - 1) // block + 1)
        keys = fold(fold(self._keys["shapes"], blocks), torch.arange(2).unsqueeze(1))
        ways = low_way + uniform_below(keys[0], high_way - low_way + 1)
        shots = low_shot + uniform_below(keys[1], high_shot - low_shot + 1)
        shapes = sorted(set(zip(ways.tolist(), shots.tolist(), strict=True)))
        if len(shapes) > 1:
            listed = ", ".join(f"{way}-way {shot}-shot" for way, shot in shapes[:3])
            raise EpisodeError(
                f"episodes {start}..{start + count - 1} span blocks of {block} with different shapes "
                f"({listed}): ask for them with batches()"
            )
        return shapes[0]

    def _choices(self, way: int) -> Tensor | None:
        """The groups that an episode's classes may come from; None: any class goes with any.

        A group's chance is proportional to its number of classes: so all classes are drawn equally often.
        """
        if not self.protocol.within_group:
            return None
        group_of_each = self.pool.group[self._tables.by_group]
        return group_of_each[self._tables.group_size[group_of_each] >= way]

    def _episode_keys(self, stream: str, start: int, count: int) -> Tensor:
        """(batch, 1)"""
        return fold(self._keys[stream], torch.arange(start, start + count).unsqueeze(1))

    def _draw(self, start: int, count: int, shape: EpisodeShape, choices: Tensor | None) -> Drawn:
        """The episodes in plain torch: what `draw.c` does, written so that it can be read."""
        way, shown, support, draws, independent = shape
        class_ids = self._classes(start, count, way, choices)
        # Hashes by which an episode is ordered; no two of an episode are equal.
        random = fold(self._episode_keys("order", start, count), torch.arange(shown))
        if support:
            items = torch.cat(
                (random[:, :support].argsort(dim=1), support + random[:, support:].argsort(dim=1)), dim=1
            )
            labels, nth = items % way, items // way
        else:
            labels = (
                self._independent_labels(random, class_ids) if independent else random.argsort(dim=1) % way
            )
            nth = presentation(labels, way) - 1
        drawn = self._images_of(start, class_ids, draws)
        images = drawn[nth, torch.arange(count).unsqueeze(1), labels]
        return Drawn(class_ids, images, self._tables.turns[class_ids].gather(1, labels), labels)

    def _classes(self, start: int, count: int, way: int, choices: Tensor | None) -> Tensor:
        """(batch, way) class ids, distinct."""
        keys = self._episode_keys("classes", start, count)
        random = fold(keys, torch.arange(way)).T
        if choices is None:
            return draw_distinct(random, len(self.pool)).T.contiguous()
        group = choices[uniform_below(fold(keys, torch.tensor(way)).squeeze(1), len(choices))]
        position = self._tables.group_start[group] + draw_distinct(random, self._tables.group_size[group])
        return self._tables.by_group[position].T.contiguous()

    def _independent_labels(self, random: Tensor, class_ids: Tensor) -> Tensor:
        """(batch, length) labels, from hashes."""
        way = class_ids.shape[1]
        labels = uniform_below(random, way)
        # Rarely a class runs out of images; only then is its episode drawn step by step.
        supply = self._tables.images_per_class[class_ids]
        short = (presentation(labels, way) > supply.gather(1, labels)).any(dim=1)
        if short.any():
            labels[short] = _draw_while_supplied(random[short], supply[short])
        return labels

    def _images_of(self, start: int, class_ids: Tensor, draws: int) -> Tensor:
        """(draws, batch, way) rows of the image set, distinct in each class as far as its images reach."""
        keys = fold(self._episode_keys("images", start, len(class_ids)), torch.arange(class_ids.shape[1]))
        random = fold(keys, torch.arange(draws).view(-1, 1, 1))
        return self._tables.first_image[class_ids] + draw_distinct(
            random, self._tables.images_per_class[class_ids]
        )


def _draw_while_supplied(random: Tensor, supply: Tensor) -> Tensor:
    """Labels (batch, length), each uniform among the classes that still have images.

    random: (batch, length) hashes; supply: (batch, way) images of each class.
    """
    left = supply.clone()
    labels = torch.empty_like(random)
    for step in range(random.shape[1]):
        available = left > 0
        rank = uniform_below(random[:, step], available.sum(dim=1)).unsqueeze(1)
        label = (available.cumsum(dim=1) > rank).int().argmax(dim=1, keepdim=True)
        labels[:, step] = label.squeeze(1)
        left.scatter_add_(1, label, torch.full_like(label, -1))
    return labels


def _meaning(protocol: Protocol) -> str:
    """What of the protocol decides an episode, as text; a setting without effect stays out of the key.

    Labels are such a setting: streams with strings show the same images as those without.
    """
    within = " within_group" if protocol.within_group else ""
    if isinstance(protocol, Stream):
        chain = f" chain={protocol.chain}" if protocol.chain > 1 else ""
        return f"stream way={protocol.way} length={protocol.length} counts={protocol.counts}{within}{chain}"
    way, shot = bounds(protocol.way), bounds(protocol.shot)
    block = f" block={protocol.block}" if protocol.variable else ""
    return f"kshot way={way[0]}..{way[1]} shot={shot[0]}..{shot[1]} query={protocol.query}{within}{block}"


def _check_supply(pool: ClassPool, protocol: Protocol) -> None:
    """Raise EpisodeError where the pool has too few classes or images for the protocol."""
    place = f"{pool.image_set.name}/{pool.split}/{pool.side}"
    way = bounds(protocol.way)[1]
    if len(pool) < way:
        raise EpisodeError(
            f"{way}-way needs {way} classes; {place} has {len(pool)}: lower way or choose another split"
        )
    largest = int(torch.bincount(pool.group).max())
    if protocol.within_group and largest < way:
        raise EpisodeError(
            f"{way}-way within a group needs a group of {way} classes; the largest of {place} has {largest}: "
            "lower way or draw across groups"
        )
    supply = pool.images_per_class
    least = int(supply.min())
    poorest = f"class {pool.class_name(int(supply.argmin()))} has {least} images"
    if isinstance(protocol, KShot):
        shot = bounds(protocol.shot)[1]
        if least < shot + protocol.query:
            raise EpisodeError(
                f"{poorest}; {shot}-shot with {protocol.query} queries needs {shot + protocol.query}: "
                "lower shot or query"
            )
    elif protocol.counts == "exact":
        if least < protocol.length // protocol.way:
            raise EpisodeError(
                f"{poorest}; a stream of length {protocol.length} over {way} classes with exact counts needs "
                f"{protocol.length // way}: lower length"
            )
    elif int(supply.sort().values[:way].sum()) < protocol.length:
        fewest = int(supply.sort().values[:way].sum())
        raise EpisodeError(
            f"the {way} poorest classes of {place} have {fewest} images together; a stream of length "
            f"{protocol.length} needs as many: lower length"
        )
