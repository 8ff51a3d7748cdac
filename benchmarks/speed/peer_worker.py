"""What runs in a peer's own process: the peer as its users run it, doing so much work as each line asks.

    python -m benchmarks.speed.peer_worker PEER SETTINGS

SETTINGS is a JSON object, the keywords of the peer's function below. The first line out says that the peer is
ready, with what it says of itself; after that, for each line in (a count), one line with the seconds that so
many pieces of work took. This runs in the peers' environment, and of fewshot it imports only what hands
images to a peer as that peer wants them (`fewshot.interop`).

Whatever a library prints goes to standard error. What a peer lacks on a current Python and torch is given to
it as it starts.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fewshot.episodes.protocol import KShot


class Peer(NamedTuple):
    """work: does so many pieces of it. facts: what is compared besides the time."""

    work: Callable[[int], object]
    facts: dict[str, float | str]


def repeated(step: Callable[[], object]) -> Callable[[int], object]:
    def work(count: int) -> None:
        for _ in range(count):
            step()

    return work


class Images(Dataset[tuple[Tensor, int]]):
    """A data set as one tensor in memory, normalised beforehand: the quickest that a peer can be given.

    `pixels` holds uint8 images (image, channel, height, width), `labels` the class of each.
    """

    def __init__(self, pixels: str, labels: str, mean: list[float], std: list[float]) -> None:
        images = torch.from_numpy(np.load(pixels)).float().div_(255)
        scale = torch.tensor([mean, std]).view(2, 1, -1, 1, 1)
        self.images = (images - scale[0]) / scale[1]
        self.labels: list[int] = np.load(labels).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]

    def get_labels(self) -> list[int]:
        return self.labels


# --- Episodes: one piece of work is a batch of them ---------------------------------------------------------


def learn2learn_episodes(data: dict[str, Any], way: int, shot: int, query: int, batch: int) -> Peer:
    """The `Taskset` of its Omniglot benchmark over its `OnDeviceDataset`, which is what it offers for images
    that fit in memory. Its episodes come undivided into support and query.
    """
    import learn2learn as l2l

    from fewshot.interop.learn2learn import taskset_of

    dataset = l2l.data.MetaDataset(l2l.data.OnDeviceDataset(Images(**data)))
    taskset = taskset_of(dataset, KShot(way, shot, query))
    images, _ = taskset.sample()

    def sample_batch() -> None:
        for _ in range(batch):
            taskset.sample()

    return Peer(repeated(sample_batch), {"images": len(images)})


def torchmeta_episodes(data: dict[str, Any], way: int, shot: int, query: int, batch: int) -> Peer:
    """`BatchMetaDataLoader`, as its Omniglot helper makes it, with batches of our size."""
    from fewshot.interop.torchmeta import mend, task_dataset

    mend()
    from torchmeta.utils.data import BatchMetaDataLoader

    dataset = task_dataset(Images(**data), KShot(way, shot, query))
    loader = BatchMetaDataLoader(dataset, batch_size=batch, num_workers=0)
    batches = iter(loader)
    first = next(batches)
    images_shown = sum(shown.shape[1] for shown, _ in first.values())
    return Peer(repeated(lambda: next(batches)), {"images": images_shown})


def easyfsl_episodes(data: dict[str, Any], way: int, shot: int, query: int, batch: int) -> Peer:
    """`TaskSampler` and a DataLoader, as its tutorials have them."""
    images = Images(**data)
    first = next(iter(easyfsl_loader(images, way, shot, query, 1)))

    def work(count: int) -> None:
        for _ in easyfsl_loader(images, way, shot, query, count * batch):
            pass

    return Peer(work, {"images": len(first[0]) + len(first[2])})


def easyfsl_loader(images: Images, way: int, shot: int, query: int, episodes: int) -> Any:
    # Its sampler hands `data_source` to a base class that takes no argument any more.
    Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign, misc]
    from easyfsl.samplers import TaskSampler

    sampler = TaskSampler(images, way, shot, query, episodes)
    return DataLoader(images, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)


# --- Evaluation ---------------------------------------------------------------------------------------------


def easyfsl_evaluate(data: dict[str, Any], weights: str, rows: str, way: int, shot: int, query: int) -> Peer:
    """`evaluate` with `PrototypicalNetworks`; one piece of work is one episode.

    rows: episodes that the other side answers too (episode, way, shot + query), for the accuracy.
    """
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.utils import evaluate

    images = Images(**data)
    network = conv4(torch.load(weights, weights_only=True))
    model = PrototypicalNetworks(network)
    sampled = easyfsl_loader(images, way, shot, query, 1)
    same = np.load(rows).reshape(-1, way * (shot + query)).tolist()
    given = DataLoader(images, batch_sampler=same, collate_fn=sampled.collate_fn)
    accuracy = evaluate(model, given, device="cpu", use_tqdm=False)

    def work(count: int) -> None:
        evaluate(model, easyfsl_loader(images, way, shot, query, count), device="cpu", use_tqdm=False)

    return Peer(work, {"accuracy": float(accuracy)})


# --- Training steps -----------------------------------------------------------------------------------------


def conv4(weights: dict[str, Tensor], downsample: str = "pool") -> nn.Sequential:
    """The plain network: NCHW, one module per operation. weights: as in our `ConvBackbone.blocks`."""
    stride = 2 if downsample == "stride" else 1
    layers: list[nn.Module] = []
    for block in range(4):
        width, channels = weights[f"{block}.0.weight"].shape[:2]
        parts: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        layers.append(nn.Sequential(*parts, *([nn.MaxPool2d(2)] if stride == 1 else [])))
    network = nn.Sequential(*layers)
    # Where ours keeps no running statistics, torch's own start values stay.
    network.load_state_dict(network.state_dict() | weights)
    return nn.Sequential(*network, nn.Flatten())


def plain_prototypical(step: str, threads: int, device: str) -> Peer:
    """The loop that one would write: support and query through the network, class means, distances, Adam.

    step: a file of weights and of one episode's tensors.
    """
    torch.set_num_threads(threads)
    given = torch.load(step, weights_only=True)
    network = conv4(given["weights"]).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    support, query = given["support_images"].to(device), given["query_images"].to(device)
    labels, targets = given["support_labels"].to(device), given["query_labels"].to(device)
    way = int(labels.max()) + 1

    def train() -> Tensor:
        features = network(torch.cat([support, query]))
        shown, asked = features[: len(support)], features[len(support) :]
        means = torch.stack([shown[labels == label].mean(0) for label in range(way)])
        distances = (asked.unsqueeze(1) - means).square().sum(2)
        loss = F.cross_entropy(-distances, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return Peer(repeated(train), {"loss": float(train())})


def learn2learn_maml(step: str, inner_learning_rate: float, threads: int, device: str) -> Peer:
    """Its `MAML` wrapper in the loop of its Omniglot example: clone, adapt, one backward pass per task."""
    import learn2learn as l2l

    torch.set_num_threads(threads)
    given = torch.load(step, weights_only=True)
    head = nn.Linear(given["head.weight"].shape[1], given["head.weight"].shape[0])
    head.load_state_dict({"weight": given["head.weight"], "bias": given["head.bias"]})
    maml = l2l.algorithms.MAML(
        nn.Sequential(conv4(given["weights"]), head).to(device), lr=inner_learning_rate
    )
    optimizer = torch.optim.Adam(maml.parameters(), lr=1e-3)
    names = ("support_images", "support_labels", "query_images", "query_labels")
    tasks = list(zip(*(given[name].to(device) for name in names), strict=True))

    def train() -> float:
        optimizer.zero_grad()
        total = 0.0
        for support, labels, query, targets in tasks:
            learner = maml.clone()
            learner.adapt(F.cross_entropy(learner(support), labels))
            loss = F.cross_entropy(learner(query), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        for parameter in maml.parameters():
            parameter.grad.mul_(1 / len(tasks))
        optimizer.step()
        return total / len(tasks)

    return Peer(repeated(train), {"loss": train()})


def plain_lrua(step: str, threads: int, device: str, cosine: Literal["library", "product"]) -> Peer:
    """The memory network written step by step, as `plain_lrua.py` has it."""
    from benchmarks.speed.plain_lrua import PlainLrua, plain_lrua_step

    torch.set_num_threads(threads)
    given = torch.load(step, weights_only=True)
    images, labels = given["images"].to(device), given["labels"].to(device)
    classes = given["weights"]["output.bias"].shape[0]
    model = PlainLrua(images.shape[2], classes, cosine=cosine)
    model.load_state_dict(given["weights"])
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train() -> Tensor:
        return plain_lrua_step(model, optimizer, images, labels)

    return Peer(repeated(train), {"loss": float(train())})


def dnc_memory(step: str, threads: int, sizes: dict[str, int]) -> Peer:
    """The package's `DNC` in the loop of its README, given back the vectors that it was shown.

    Its controller's start is given, as it would draw one at random.
    """
    from dnc import DNC

    torch.set_num_threads(threads)
    given = torch.load(step, weights_only=True)
    vectors, hidden = given["vectors"], given["weights"]["lstm_layer_0.weight_hh_l0"].shape[1]
    model = DNC(vectors.shape[2], hidden, num_layers=1, num_hidden_layers=1, **sizes)
    model.load_state_dict(given["weights"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = torch.zeros(1, len(vectors), hidden)

    def train() -> Tensor:
        optimizer.zero_grad()
        outputs, _ = model(vectors, ([(start, start)], None, None), reset_experience=True)
        loss = F.mse_loss(outputs, vectors)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return Peer(repeated(train), {"loss": float(train())})


PEERS: dict[str, Callable[..., Peer]] = {
    peer.__name__: peer
    for peer in (
        learn2learn_episodes,
        torchmeta_episodes,
        easyfsl_episodes,
        easyfsl_evaluate,
        plain_prototypical,
        learn2learn_maml,
        plain_lrua,
        dnc_memory,
    )
}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**answer: Any) -> None:
        print(json.dumps(answer), file=replies, flush=True)

    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    peer, settings = sys.argv[1:]
    try:
        work, facts = PEERS[peer](**json.loads(settings))
        work(1)
    except Exception as error:
        reply(error=type(error).__name__, said=" ".join(str(error).split()))
        return
    reply(**facts)
    for line in sys.stdin:
        began = time.perf_counter()
        work(int(line))
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        reply(seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
