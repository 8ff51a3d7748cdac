"""What runs in a peer's own process: its episodes, as its users draw them, written to a file for the audit.

    python -m benchmarks.peer_episodes PEER SETTINGS FILE

SETTINGS is a JSON object, the keywords of the peer's function below. FILE is an npz of arrays with an episode
a row: support_images, support_labels, query_images, query_labels, class_ids; and test_classes, the ids of the
classes that are not to be trained on, where the peer names them. Of fewshot only what reads a peer's task is
imported (`fewshot.interop`); each peer draws as it does for its users, one task after the other.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.speed.peer_worker import Images, easyfsl_loader
from fewshot.interop.learn2learn import classes_of, draw_task

Episode = tuple[Any, Any, Any, Any, Any]


def easyfsl(
    data: dict[str, Any], classes: int | None, way: int, shot: int, query: int, episodes: int
) -> tuple[Iterator[Episode], list[int] | None]:
    """`TaskSampler` and a DataLoader, as its tutorials have them; classes: so many of the data, the first."""
    images = Images(**data)
    if classes:
        images.labels = [label for label in images.labels if label < classes]  # they are sorted by class
    return iter(easyfsl_loader(images, way, shot, query, episodes)), None


def learn2learn(
    root: str, way: int, shot: int, query: int, episodes: int
) -> tuple[Iterator[Episode], list[int] | None]:
    """The training tasks of `get_tasksets("omniglot")`, support and query taken in turn, as its examples do.

    root: a folder with Omniglot as torchvision unpacks it. The benchmark downloads it unasked, and looks for
    the publisher's zip files to know that it is there: both is left out.
    """
    from torchvision.datasets import Omniglot

    Omniglot.download = lambda self: None  # type: ignore[method-assign]
    Omniglot._check_integrity = lambda self: True  # type: ignore[method-assign]
    import learn2learn as l2l

    each = shot + query
    tasksets = l2l.vision.benchmarks.get_tasksets("omniglot", way, each, way, each, root=root)
    classes = classes_of(tasksets.train)
    drawn = (draw_task(tasksets.train, classes, shot) for _ in range(episodes))
    return drawn, [classes.id_of[name] for name in tasksets.test.dataset.labels]


PEERS: dict[str, Callable[..., tuple[Iterator[Episode], list[int] | None]]] = {
    peer.__name__: peer for peer in (easyfsl, learn2learn)
}
NAMES = ("support_images", "support_labels", "query_images", "query_labels", "class_ids")


def main() -> None:
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    peer, settings, file = sys.argv[1:]
    episodes, test_classes = PEERS[peer](**json.loads(settings))
    columns = zip(*([np.asarray(part) for part in episode] for episode in episodes), strict=True)
    arrays: dict[str, Any] = {name: np.stack(column) for name, column in zip(NAMES, columns, strict=True)}
    if test_classes is not None:
        arrays["test_classes"] = np.array(test_classes)
    np.savez(file, **arrays)


if __name__ == "__main__":
    main()
