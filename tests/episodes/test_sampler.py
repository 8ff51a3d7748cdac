from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from fewshot.data.image_set import ImageSet
from fewshot.data.split import ClassPool
from fewshot.episodes.augment import Augment
from fewshot.episodes.batch import KShotBatch, StreamBatch, with_images
from fewshot.episodes.protocol import Counts, KShot, Protocol, Stream
from fewshot.episodes.sampler import SAMPLER_VERSION, EpisodeSampler
from fewshot.episodes.source import class_draws, presentation
from fewshot.errors import EpisodeError, FewshotError
from fewshot.kernels import native


def make_pool(
    images_per_class: list[int], group_size: int = 5, side: int = 4, channels: int = 1
) -> ClassPool:
    """Images whose first two pixels spell their row, so that each can be recognised."""
    total, classes = sum(images_per_class), len(images_per_class)
    noise = torch.arange(total * channels * side * side) * 2654435761 % 251
    images = noise.to(torch.uint8).view(total, channels, side, side)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(total) // 256, torch.arange(total) % 256
    image_set = ImageSet(
        name="synthetic",
        images=images,
        class_names=tuple(f"Group{c // group_size:02d}/character{c:03d}" for c in range(classes)),
        class_start=torch.tensor([0, *images_per_class]).cumsum(0),
        image_names=tuple(f"{row:05d}" for row in range(total)),
        source="a test",
        licence="none",
        mean=(0.1, 0.2, 0.3)[:channels],
        std=(0.5, 0.6, 0.7)[:channels],
        digest="synthetic",
    )
    everything = torch.arange(classes)
    return ClassPool(image_set, "all", "train", everything, torch.zeros_like(everything))


POOL = make_pool([20] * 30)
UNEVEN = make_pool([6 + c % 7 for c in range(30)])


def rows_of(images: Tensor, pool: ClassPool) -> Tensor:
    """The image set's row of each upright normalised image, from its first two pixels."""
    pixels = (images * pool.image_set.std[0] + pool.image_set.mean[0]) * 255
    return (pixels[..., 0, 0, 0].round() * 256 + pixels[..., 0, 0, 1].round()).long()


def same(left: Any, right: Any) -> bool:
    """Whether two (nested) tuples of tensors and numbers are equal, bit for bit."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def episode(batch: Any, number: int) -> Any:
    """One episode of a batch, as a batch of one."""
    if isinstance(batch, Tensor):
        return batch[number : number + 1]
    if isinstance(batch, tuple):
        return tuple(episode(part, number) for part in batch)
    return batch


@st.composite
def kshots(draw: st.DrawFn) -> KShot:
    shot = draw(st.integers(1, 4))
    return KShot(
        way=draw(st.integers(2, 5)),
        shot=shot,
        query=draw(st.integers(1, 6 - shot)),
        within_group=draw(st.booleans()),
    )


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    way = draw(st.integers(2, 5))
    counts: Counts = draw(st.sampled_from(("exact", "random")))
    length = way * draw(st.integers(1, 6))
    return Stream(way, length, counts, within_group=draw(st.booleans()))


seeds = st.integers(0, 2**40)
pools = st.sampled_from([POOL, UNEVEN, POOL.with_rotations(), UNEVEN.with_rotations()])


# ------------------------------------------------------------------ what an episode is


@settings(deadline=None, max_examples=60)
@given(pools, st.one_of(kshots(), streams()), seeds, st.integers(0, 2**40), st.integers(1, 5))
def test_episodes_keep_their_promises(
    pool: ClassPool, protocol: Protocol, seed: int, start: int, count: int
) -> None:
    indices = EpisodeSampler(pool, protocol, seed).indices(start, count)
    class_ids, images, turns, labels, support = indices[:5]
    way = protocol.way
    owner = torch.repeat_interleave(pool.image_set.images_per_class)  # the class of each row
    for e in range(count):
        assert len(set(class_ids[e].tolist())) == way, "classes are distinct"
        if protocol.within_group:
            assert len(pool.group[class_ids[e]].unique()) == 1
        shown = list(zip(images[e].tolist(), turns[e].tolist(), strict=True))
        assert len(set(shown)) == len(shown), "nothing is shown twice, so support and query are disjoint"
        behind = class_ids[e, labels[e]]
        assert torch.equal(owner[images[e]], pool.class_index[behind]), "labels and class_ids agree"
        assert torch.equal(turns[e], pool.quarter_turns[behind])
        if isinstance(protocol, KShot):
            assert support == way * protocol.shot
            assert torch.bincount(labels[e, :support]).tolist() == [protocol.shot] * way
            assert torch.bincount(labels[e, support:]).tolist() == [protocol.query] * way
        else:
            assert support == 0
            assert labels.shape == (count, protocol.length)
            if protocol.counts == "exact":
                assert torch.bincount(labels[e]).tolist() == [protocol.length // way] * way


@settings(deadline=None, max_examples=20)
@given(streams(), seeds)
def test_presentation_counts_what_was_shown(protocol: Stream, seed: int) -> None:
    batch = EpisodeSampler(POOL, protocol, seed).batch(0, 3)
    assert isinstance(batch, StreamBatch)
    assert batch.way == protocol.way
    for labels, shown in zip(batch.labels.tolist(), batch.presentation.tolist(), strict=True):
        seen: Counter[int] = Counter()
        for label, number in zip(labels, shown, strict=True):
            seen[label] += 1
            assert number == seen[label]


def test_shapes_and_types_are_the_contract() -> None:
    pool = make_pool([20] * 8, side=6, channels=3)
    kshot = EpisodeSampler(pool, KShot(4, 2, 3), 0).batch(5, 7)
    assert isinstance(kshot, KShotBatch)
    assert kshot.support.images.shape == (7, 8, 3, 6, 6)
    assert kshot.query_images.shape == (7, 12, 3, 6, 6)
    assert (kshot.support.labels.shape, kshot.query_labels.shape) == ((7, 8), (7, 12))
    assert (kshot.class_ids.shape, kshot.way) == ((7, 4), 4)
    stream = EpisodeSampler(pool, Stream(4, 20), 0).batch(5, 7)
    assert isinstance(stream, StreamBatch)
    assert stream.images.shape == (7, 20, 3, 6, 6)
    assert stream.labels.shape == stream.presentation.shape == (7, 20)
    for images in (kshot.support.images, kshot.query_images, stream.images):
        assert images.dtype == torch.float32
        assert images.is_contiguous()
    assert kshot.query_labels.dtype == stream.labels.dtype == torch.int64


def test_images_are_the_rows_drawn() -> None:
    sampler = EpisodeSampler(UNEVEN, KShot(5, 2, 3), 1)
    batch, indices = sampler.batch(0, 9), sampler.indices(0, 9)
    assert isinstance(batch, KShotBatch)
    rows = torch.cat((rows_of(batch.support.images, UNEVEN), rows_of(batch.query_images, UNEVEN)), dim=1)
    assert torch.equal(rows, indices.images)


def test_images_are_normalised_by_the_image_set() -> None:
    pool = make_pool([20] * 8, channels=3)
    sampler = EpisodeSampler(pool, Stream(4, 20), 3)
    batch, indices = sampler.batch(0, 2), sampler.indices(0, 2)
    assert isinstance(batch, StreamBatch)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pool.image_set.mean, pool.image_set.std))
    expected = (pool.image_set.images[indices.images].float() / 255 - mean) / std
    torch.testing.assert_close(batch.images, expected, rtol=1e-5, atol=1e-5)
    assert not batch.images.requires_grad
    assert pool.image_set.images.dtype == torch.uint8, "the image set is left alone"


@pytest.mark.parametrize("protocol", [KShot(6, 2, 4), Stream(6, 30, "random")])
def test_images_turn_as_rot90_turns_each(protocol: Protocol) -> None:
    pool = POOL.with_rotations()
    sampler = EpisodeSampler(pool, protocol, 2)
    batch, indices = sampler.batch(0, 8), sampler.indices(0, 8)
    images = (
        torch.cat((batch.support.images, batch.query_images), dim=1)
        if isinstance(batch, KShotBatch)
        else batch.images
    )
    assert len(indices.turns.unique()) == 4
    for image, row, turn in zip(
        images.flatten(0, 1), indices.images.flatten(), indices.turns.flatten(), strict=True
    ):
        upright = (pool.image_set.images[row].float() / 255 - pool.image_set.mean[0]) / pool.image_set.std[0]
        torch.testing.assert_close(image, torch.rot90(upright, int(turn), (1, 2)), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ what is drawn, how often


def test_every_label_permutation_is_equally_likely() -> None:
    """With four classes in the pool, each of the 24 orders; the lowest class is label 0 in a quarter."""
    pool = make_pool([10] * 4)
    class_ids = EpisodeSampler(pool, KShot(4, 1, 1), 0).indices(0, 24_000).class_ids
    orders = Counter(map(tuple, class_ids.tolist()))
    assert len(orders) == 24
    assert chisquare(list(orders.values())).pvalue > 1e-4


def test_classes_and_images_are_drawn_equally_often() -> None:
    indices = EpisodeSampler(POOL, KShot(5, 1, 3), 0).indices(0, 20_000)
    assert chisquare(class_draws(indices, len(POOL)).numpy()).pvalue > 1e-4
    support = indices.images[:, : indices.support]
    assert chisquare(torch.bincount(support.flatten(), minlength=600).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("protocol", [KShot(3, 2, 4), Stream(3, 12), Stream(3, 12, "random")])
def test_order_says_nothing(protocol: Protocol) -> None:
    """At every place of the sequence, each label is equally likely; and so is each pair of neighbours."""
    indices = EpisodeSampler(POOL, protocol, 4).indices(0, 12_000)
    for place in range(indices.labels.shape[1]):
        assert chisquare(torch.bincount(indices.labels[:, place]).numpy()).pvalue > 1e-4
    pairs = torch.bincount(indices.labels[:, 0] * 3 + indices.labels[:, 1], minlength=9).view(3, 3)
    assert chisquare(pairs.diag().numpy()).pvalue > 1e-4
    assert chisquare(pairs[~torch.eye(3, dtype=torch.bool)].numpy()).pvalue > 1e-4


def test_random_counts_draw_each_step_by_itself() -> None:
    """The guess "the label least shown so far" gains nothing, as it does with exact counts."""
    labels = EpisodeSampler(POOL, Stream(4, 16, "random"), 0).indices(0, 10_000).labels
    shown = torch.nn.functional.one_hot(labels, 4).cumsum(dim=1)
    right = (shown[:, :-1].argmin(dim=2) == labels[:, 1:]).float().mean()
    assert abs(right - 0.25) < 0.005


def test_a_class_without_images_left_is_left_out() -> None:
    """Twelve images in all and a stream of twelve: everything is shown once, also by the poorest class."""
    pool = make_pool([2, 3, 7])
    indices = EpisodeSampler(pool, Stream(3, 12, "random"), 0).indices(0, 200)
    assert torch.equal(indices.images.sort(dim=1).values, torch.arange(12).expand(200, -1))
    # The first step is still uniform over the classes, whatever they have.
    first = indices.class_ids.gather(1, indices.labels[:, :1])
    assert chisquare(torch.bincount(first.flatten()).numpy()).pvalue > 1e-4


def test_within_a_group_every_class_is_drawn_equally_often() -> None:
    """Groups of 12 and of 4: the larger is drawn more often, and groups below way are left out."""
    pool = make_pool([10] * 16, group_size=12)
    protocol = KShot(4, 1, 1, within_group=True)
    draws = class_draws(EpisodeSampler(pool, protocol, 0).indices(0, 10_000), 16)
    assert ((draws - 2500).abs() < 200).all()
    small = replace(pool, class_index=torch.arange(15), quarter_turns=pool.quarter_turns[:15])
    assert EpisodeSampler(small, protocol, 0).indices(0, 500).class_ids.max() < 12


def test_turned_groups_stay_apart() -> None:
    pool = POOL.with_rotations()
    indices = EpisodeSampler(pool, KShot(5, 1, 2, within_group=True), 0).indices(0, 200)
    assert (indices.turns == indices.turns[:, :1]).all()
    assert len(indices.turns.unique()) == 4


def test_way_and_shot_vary_uniformly_by_block() -> None:
    protocol = KShot((2, 4), (1, 3), 2, block=4)
    sampler = EpisodeSampler(POOL, protocol, 0)
    shapes: Counter[tuple[int, int]] = Counter()
    for start, count in sampler.spans(0, 4 * 900, 100):
        assert (start % 4, count) == (0, 4)
        indices = sampler.indices(start, count)
        shapes[indices.way, indices.support // indices.way] += 1
    assert set(shapes) == {(way, shot) for way in (2, 3, 4) for shot in (1, 2, 3)}
    assert chisquare(list(shapes.values())).pvalue > 1e-4


def test_a_guesser_who_counts_reaches_the_known_ceiling() -> None:
    """Exact counts, 5 x 10: naming the label with most left gives 45.7 % on first presentations.

    The known figures are a simulation of 200,000 streams shuffled by NumPy.
    """
    labels = EpisodeSampler(POOL, Stream(5, 50), 0).indices(0, 20_000).labels
    shown = torch.nn.functional.one_hot(labels, 5).cumsum(dim=1)
    before = torch.cat((torch.zeros_like(shown[:, :1]), shown[:, :-1]), dim=1)
    right = (before.argmin(dim=2) == labels).float()
    number = presentation(labels, 5)
    accuracy = {k: float(right[number == k].mean()) for k in (1, 2, 5, 10)}
    for k, known in ((1, 0.457), (2, 0.313), (5, 0.276), (10, 0.328)):
        assert accuracy[k] == pytest.approx(known, abs=0.005), accuracy


# ------------------------------------------------------------------ purity


PROTOCOLS: list[Protocol] = [
    KShot(5, 1, 3),
    KShot(5, 2, 3, within_group=True),
    Stream(5, 20),
    Stream(5, 30, "random"),
    Stream(5, 20, labels="string"),
    Stream(4, 12, "random", labels="string", chain=3),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("augment", [None, Augment(scale=0.1, shear=0.1), Augment(crop=3)])
def test_an_episode_does_not_depend_on_its_batch(protocol: Protocol, augment: Augment | None) -> None:
    pool = UNEVEN.with_rotations()
    sampler = EpisodeSampler(pool, protocol, 7, augment=augment)
    whole = sampler.batch(0, 10)
    for number in (7, 0, 9):
        assert same(episode(whole, number), sampler.batch(number, 1))
    assert same(episode(whole, 6), episode(sampler.batch(4, 3), 2))
    again = EpisodeSampler(pool, protocol, 7, augment=augment)
    assert same(whole, again.batch(0, 10))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_crop_is_part_of_the_same_episodes(protocol: Protocol) -> None:
    whole = EpisodeSampler(UNEVEN, protocol, 7, augment=Augment()).batch(3, 2)
    cropped = EpisodeSampler(UNEVEN, protocol, 7, augment=Augment(crop=2)).batch(3, 2)
    assert same(with_images(whole, lambda images: images[..., 1:3, 1:3]), cropped)
    with pytest.raises(EpisodeError, match="crop of 5 pixels does not fit images of 4x4"):
        EpisodeSampler(UNEVEN, protocol, 7, augment=Augment(crop=5))


@pytest.mark.skipif(native.library("draw") is None, reason="no C compiler here")
@settings(deadline=None, max_examples=80)
@given(pools, st.one_of(kshots(), streams()), seeds, st.integers(0, 2**40), st.integers(1, 40))
def test_the_kernel_draws_what_plain_torch_draws(
    pool: ClassPool, protocol: Protocol, seed: int, start: int, count: int
) -> None:
    sampler = EpisodeSampler(pool, protocol, seed)
    ours = sampler.indices(start, count)
    with native.plain_torch():
        plain = sampler.indices(start, count)
    assert same(ours, plain)
    for part in ours[:4]:
        assert part.is_contiguous()


@pytest.mark.skipif(native.library("draw") is None, reason="no C compiler here")
@pytest.mark.parametrize(
    ("images_per_class", "protocol"),
    [
        ([9] * 100, KShot(100, 2, 7)),  # as many classes as there are, long orders
        ([300] * 3, Stream(3, 700, "random")),  # many images of a class
        ([2, 3, 7], Stream(3, 12, "random")),  # classes run out of images
        (
            [8] * 23,
            KShot((2, 5), (1, 3), 2, within_group=True, block=3),
        ),  # groups that are too small at times
        ([1] * 2, Stream(2, 2)),
    ],
)
def test_the_kernel_draws_what_plain_torch_draws_at_the_edges(
    images_per_class: list[int], protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = EpisodeSampler(make_pool(images_per_class, group_size=7), protocol, 0)
    with native.plain_torch():
        plain = sampler.digest(60)
    monkeypatch.setattr(sampler, "_draw", None)  # so that nothing but the kernel can have drawn
    assert sampler.digest(60) == plain


def test_varying_episodes_do_not_depend_on_their_batches() -> None:
    sampler = EpisodeSampler(POOL, KShot((2, 5), (1, 4), 2, block=6), 0)
    singles = [sampler.batch(number, 1) for number in range(30)]
    number = 0
    for batch in sampler.batches(0, 30, 4):
        for e in range(len(batch.class_ids)):
            assert same(episode(batch, e), singles[number])
            number += 1
    assert number == 30


def test_batches_cover_the_episodes_in_order() -> None:
    sampler = EpisodeSampler(POOL, KShot(5, 1, 2), 0)
    batches = list(sampler.batches(3, 10, 4))
    assert [len(batch.class_ids) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.class_ids for batch in batches]), sampler.indices(3, 10).class_ids)


def test_everything_in_the_key_changes_the_episodes() -> None:
    def first(pool: ClassPool, protocol: Protocol, seed: int) -> str:
        return EpisodeSampler(pool, protocol, seed).digest(5)

    base = first(POOL, KShot(5, 1, 3), 0)
    others = [
        first(POOL, KShot(5, 1, 3), 1),
        first(POOL, KShot(5, 1, 4), 0),
        first(POOL, KShot(5, 1, 3, within_group=True), 0),
        first(replace(POOL, side="val"), KShot(5, 1, 3), 0),
        first(POOL, Stream(5, 20), 0),
        first(POOL, Stream(5, 20, "random"), 0),
    ]
    assert len({base, *others}) == 7
    assert first(POOL, KShot(5, 1, 3, block=8), 0) == base, "a setting without effect changes nothing"


def test_streams_of_hashes_are_independent() -> None:
    """The same classes in another order of images: the order does not follow from the classes drawn."""
    indices = EpisodeSampler(make_pool([10] * 2), KShot(2, 1, 1), 0).indices(0, 8000)
    joint = indices.class_ids[:, 0] * 4 + indices.labels[:, 0] * 2 + indices.labels[:, 2]
    assert chisquare(torch.bincount(joint, minlength=8).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("switch", ["1", "0"])
def test_pinned_digests(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes these changes every recorded figure: raise SAMPLER_VERSION with them."""
    monkeypatch.setenv(native.SWITCH_VARIABLE, switch)
    assert SAMPLER_VERSION == 1
    pool = UNEVEN.with_rotations()
    digests = {
        "kshot": EpisodeSampler(pool, KShot(5, 1, 3), 0).digest(300),
        "within": EpisodeSampler(pool, KShot(5, 1, 3, within_group=True), 0).digest(300),
        "varying": EpisodeSampler(pool, KShot((2, 5), (1, 3), 3), 0).digest(300),
        "exact": EpisodeSampler(pool, Stream(5, 30), 0).digest(300),
        "random": EpisodeSampler(pool, Stream(5, 30, "random"), 0).digest(300),
        "string": EpisodeSampler(pool, Stream(5, 30, labels="string"), 0).digest(300),
        "chain": EpisodeSampler(pool, Stream(5, 30, chain=3), 0).digest(100),
    }
    assert digests == {
        "kshot": "75f969d5d20f49361de594101db5e1598cd44eae7c8ba8a475d246714377094c",
        "within": "5fe1c147cc309e3312b3cb697b22a63d56908977dfb1f4415a14bb7b215bc182",
        "varying": "3de12b91fbfff2b25c78ba39252385c44d965248e40772aadef608f91796cb08",
        "exact": "bc2a88ae9a33b8b79af4295124d46d522041d15343de32ade83ca8e1c9ab096e",
        "random": "be52f0b3e34a9cd9b733999b0145229a7f4ad6cc34777f5c3ab4b4a0391b7156",
        "string": "b5709573abe254b9c369e55ee19eeb7fceef73c17a48f68ff022c3df3f135e21",
        "chain": "9978b740aa3e223944eba1c9eac13a62fc680649b57504df07a64ca2e985540c",
    }


@pytest.mark.parametrize("counts", ["exact", "random"])
def test_streams_with_strings_show_the_images_of_those_without(counts: Counts) -> None:
    plain, strings = (
        EpisodeSampler(UNEVEN, Stream(5, 20, counts, labels=labels), 0) for labels in ("one_hot", "string")
    )
    assert same(plain.indices(3, 4)[:4], strings.indices(3, 4)[:4])
    batch = strings.batch(3, 4)
    assert isinstance(batch, StreamBatch)
    assert batch.codes is not None
    for e in range(4):
        book = batch.codes[e].tolist()
        assert len(set(map(tuple, book))) == 5
        assert batch.strings[e].tolist() == [book[label] for label in batch.labels[e].tolist()]
    assert plain.digest(20) != strings.digest(20) != EpisodeSampler(UNEVEN, strings.protocol, 1).digest(20)


@pytest.mark.parametrize("augment", [None, Augment()])
def test_a_chain_is_its_links_one_after_the_other(augment: Augment | None) -> None:
    chain, way, length = 3, 4, 12
    sampler = EpisodeSampler(
        UNEVEN, Stream(way, length, "random", False, "string", chain), 7, augment=augment
    )
    batch = sampler.batch(2, 2)
    assert isinstance(batch, StreamBatch)
    assert batch.images.shape[:2] == batch.labels.shape == (2, chain * length)
    assert (batch.way, batch.chain, batch.class_ids.shape) == (way, chain, (2, chain * way))
    assert batch.codes is not None
    alone = batch.links
    assert (alone.chain, alone.images.shape[:2], alone.class_ids.shape) == (1, (6, length), (6, way))
    for e in range(2):
        for link in range(chain):
            number = e * chain + link
            classes, steps = slice(link * way, (link + 1) * way), slice(link * length, (link + 1) * length)
            assert torch.equal(alone.class_ids[number], batch.class_ids[e, classes])
            assert torch.equal(alone.labels[number], batch.labels[e, steps])
            assert torch.equal(alone.images[number], batch.images[e, steps])
            assert len(set(batch.class_ids[e, classes].tolist())) == way, "distinct within a link"
            assert len(set(map(tuple, batch.codes[e, classes].tolist()))) == way
            seen: Counter[int] = Counter()
            for step in range(length * link, length * (link + 1)):
                label = int(batch.labels[e, step])
                seen[label] += 1
                assert batch.presentation[e, step] == seen[label], "counted within the link"
                assert batch.places[e, step] == link * way + label
                assert torch.equal(batch.strings[e, step], batch.codes[e, link * way + label])
    assert torch.equal(alone.presentation, presentation(alone.labels, way))
    drawn = sampler.indices(2, 2)
    owner = torch.repeat_interleave(UNEVEN.image_set.images_per_class)
    assert torch.equal(owner[drawn.images], UNEVEN.class_index[batch.class_ids.gather(1, batch.places)])


def test_links_are_numbered_through_all_chains() -> None:
    """Link l of chain i is number i * n + l of the links; a chain's length decides what these are."""
    sampler = EpisodeSampler(POOL, Stream(5, 20, chain=4), 3)
    numbered = sampler._links(0, 12)
    for part, links in zip(sampler.indices(0, 3)[:4], numbered[:4], strict=True):
        assert torch.equal(part, links.reshape(3, -1))
    others = [
        EpisodeSampler(POOL, Stream(5, 20, chain=chain), 3).indices(0, 1).class_ids for chain in (1, 2, 3)
    ]
    assert len({tuple(ids[0, :5].tolist()) for ids in others}) == 3


@pytest.mark.parametrize(("way", "chain"), [(5, 0), (5, 6554), (2000, 17)])
def test_a_chain_has_a_link_and_not_too_many_classes(way: int, chain: int) -> None:
    with pytest.raises(
        EpisodeError, match=f"and 32767 classes at most in all its links; got {chain} links of"
    ):
        Stream(way, 10 * way, chain=chain)


def test_the_digest_covers_the_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = EpisodeSampler(POOL, Stream(5, 20, labels="string"), 0)
    before = sampler.digest(20)
    monkeypatch.setitem(sampler._keys, "strings", 0)
    assert sampler.digest(20) != before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_gpu_shows_what_the_cpu_shows(protocol: Protocol) -> None:
    pool = UNEVEN.with_rotations()
    here, there = (
        EpisodeSampler(pool, protocol, 0, augment=Augment(), device=device) for device in ("cpu", "cuda")
    )
    assert here.digest(300) == there.digest(300)
    on_cpu, on_gpu = here.batch(0, 20), there.batch(0, 20)
    if isinstance(on_cpu, KShotBatch) and isinstance(on_gpu, KShotBatch):
        torch.testing.assert_close(on_cpu.query_images, on_gpu.query_images.cpu(), rtol=1e-3, atol=1e-2)
    elif isinstance(on_cpu, StreamBatch) and isinstance(on_gpu, StreamBatch):
        torch.testing.assert_close(on_cpu.images, on_gpu.images.cpu(), rtol=1e-3, atol=1e-2)


# ------------------------------------------------------------------ audit and bad input


def test_class_draws_count_episodes() -> None:
    sampler = EpisodeSampler(POOL, Stream(5, 20), 0)
    draws = class_draws(sampler.batch(0, 40), len(POOL))
    assert draws.shape == (30,)
    assert draws.sum() == 200
    assert torch.equal(draws, class_draws(sampler.indices(0, 40), len(POOL)))


@pytest.mark.parametrize(
    ("images_per_class", "protocol", "message"),
    [
        ([20] * 12, KShot(20, 1, 1), "20-way needs 20 classes; synthetic/all/train has 12: lower way"),
        ([20] * 12, KShot((2, 13), 1, 1), "13-way needs 13 classes"),
        ([20] * 12, KShot(6, 1, 1, within_group=True), "group of 6 classes; the largest of .* has 5"),
        (
            [20, 20, 4, 20, 20],
            KShot(5, 5, 15),
            "class Group00/character002 has 4 images; 5-shot with 15 queries needs 20: lower shot or query",
        ),
        ([20, 7, 20], KShot(2, (1, 5), 3), "character001 has 7 images; 5-shot with 3 queries needs 8"),
        ([9] * 5, Stream(5, 50), "has 9 images; a stream of length 50 over 5 classes .* needs 10"),
        ([9, 9, 9, 9, 30], Stream(4, 40, "random"), "the 4 poorest classes .* have 36 images together"),
    ],
)
def test_a_pool_too_small_is_one_clear_line(
    images_per_class: list[int], protocol: Protocol, message: str
) -> None:
    with pytest.raises(EpisodeError, match=message) as error:
        EpisodeSampler(make_pool(images_per_class), protocol, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: KShot(5.5), "way is a whole number, or a tuple (least, largest); got 5.5"),
        (lambda: KShot([5, 10]), "way is a whole number, or a tuple (least, largest); got [5, 10]"),
        (lambda: KShot(5, (1, 2, 3)), "shot is a whole number, or a tuple (least, largest); got (1, 2, 3)"),
        (lambda: KShot(5, 1, (1, 5)), "query is a whole number; got (1, 5)"),
        (lambda: KShot((5, 6), block=0), "block must be at least 1; got 0"),
        (lambda: Stream("5"), "way is a whole number; got '5'"),
        (lambda: Stream(5, 10.0), "length is a whole number; got 10.0"),
        (lambda: Stream(5, 10, "randm"), "unknown counts 'randm': did you mean 'random'? there is exact,"),
        (lambda: Stream(5, 10, labels="onehot"), "unknown labels 'onehot': did you mean 'one_hot'? there is"),
        (
            lambda: EpisodeSampler(POOL.image_set, KShot(), 0),
            "pool should be of the type ClassPool; got a Im",
        ),
        (lambda: EpisodeSampler(POOL, "kshot", 0), "protocol should be of the type KShot or Stream; got a s"),
        (
            lambda: EpisodeSampler(POOL, KShot, 0),
            "protocol should be of the type KShot or Stream; got the cl",
        ),
        (
            lambda: EpisodeSampler(POOL, KShot(), "a"),
            "episode_seed should be of the type Integral; got a str",
        ),
        (lambda: EpisodeSampler(POOL, KShot(), 0, augment=True), "augment should be of the type Augment or"),
        (lambda: EpisodeSampler(POOL, KShot(), 0, device="gpu"), "device gpu was asked for, and torch finds"),
        (lambda: EpisodeSampler(POOL, KShot(), 0, device="cuda:99"), "device cuda:99 was asked for, and tor"),
        (lambda: EpisodeSampler(POOL, KShot(), 0, device=None), "device None was asked for, and torch finds"),
        (lambda: EpisodeSampler(POOL, KShot(), 0).batch("0", 3), "start should be of the type Integral; got"),
        (lambda: EpisodeSampler(POOL, KShot(), 0).batch(0, 2.5), "count should be of the type Integral; got"),
        (
            lambda: next(EpisodeSampler(POOL, KShot(), 0).batches(0, 3, "2")),
            "batch_size should be of the type Integral; got a str",
        ),
    ],
)
def test_what_is_no_protocol_no_pool_and_no_number_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(FewshotError) as caught:
        make()
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("counts", ["exact", "random"])
def test_a_pool_that_just_suffices_is_enough(counts: Counts) -> None:
    EpisodeSampler(make_pool([4] * 5), KShot(5, 1, 3), 0).batch(0, 2)
    EpisodeSampler(make_pool([4] * 5), Stream(5, 20, counts), 0).batch(0, 2)


def test_a_batch_across_shapes_points_to_batches() -> None:
    sampler = EpisodeSampler(POOL, KShot((2, 5), (1, 3), 2, block=4), 0)
    with pytest.raises(EpisodeError, match=r"episodes 0\.\.63 span blocks of 4 .* with batches\(\)"):
        sampler.batch(0, 64)


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 0)])
def test_numbers_that_are_no_episodes(start: int, count: int) -> None:
    with pytest.raises(EpisodeError, match="numbered from 0"):
        EpisodeSampler(POOL, KShot(), 0).batch(start, count)


def test_batches_of_nothing() -> None:
    with pytest.raises(EpisodeError, match="batch_size 0"):
        list(EpisodeSampler(POOL, KShot(), 0).batches(0, 5, 0))
