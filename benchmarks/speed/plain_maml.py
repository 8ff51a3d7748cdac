"""A second-order MAML step beside a plain loop over tasks, in one run on one thread.

The loop is how learn2learn does it, without its package: a network of ordinary modules, in torch's own memory
format; task after task, its weights are adapted with `autograd.grad(create_graph=True)`, and its loss goes
back at once. Support and queries are normalised each by themselves, by us too (`statistics="apart"`). Same
weights, same episodes: the losses are printed, they must agree. Noise in place of drawings: the cost is the
same.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewshot.episodes.batch import KShotBatch, Support
from fewshot.harness.processes import prepare_process
from fewshot.learners.backbones import Downsample
from fewshot.learners.maml import Maml

IMAGE_SHAPE, WAY, TASKS, WIDTHS, INNER_LEARNING_RATE, ROUNDS = (1, 28, 28), 5, 16, (64, 64, 64, 64), 0.4, 7
SETTINGS: tuple[tuple[str, Downsample, int, int], ...] = (
    ("Conv4-64, 5 queries a class", "pool", 5, 1),
    ("Conv4-64, 5 queries a class, 3 inner steps", "pool", 5, 3),
    ("Conv4-64 strided, 5 queries a class", "stride", 5, 1),
    ("Conv4-64 strided, 1 query a class", "stride", 1, 1),
)
"""Each 5-way 1-shot, 16 tasks: name, downsample, queries a class, inner steps."""


def main() -> None:
    prepare_process(threads=1)
    print(f"torch {torch.__version__}, 1 thread, median of {ROUNDS} interleaved rounds")
    print(
        f"{'one step':<44}{'plain ms':>9}{'ours ms':>9}{'plain/ours':>11}{'plain loss':>12}{'our loss':>12}"
    )
    for name, downsample, query, inner_steps in SETTINGS:
        torch.manual_seed(0)
        learner = Maml(
            IMAGE_SHAPE,
            WAY,
            widths=WIDTHS,
            downsample=downsample,
            inner_learning_rate=INNER_LEARNING_RATE,
            inner_steps=inner_steps,
            statistics="apart",
        ).train()
        nn.init.normal_(learner.head.weight, std=0.1)  # from zero, where it starts, the loss tells little
        network, batch = plain_network(learner), episodes(query)

        def ours(learner: Maml = learner, batch: KShotBatch = batch) -> float:
            learner.zero_grad()
            loss = learner.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        def plain(
            network: nn.Module = network, batch: KShotBatch = batch, inner_steps: int = inner_steps
        ) -> float:
            network.zero_grad()
            return plain_step(network, batch, inner_steps)

        losses = ours(), plain()
        milliseconds = interleaved(ours, plain)
        print(
            f"{name:<44}{milliseconds[1]:>12.0f}{milliseconds[0]:>12.0f}"
            f"{milliseconds[1] / milliseconds[0]:>12.2f}{losses[1]:>12.6f}{losses[0]:>12.6f}"
        )


def plain_network(learner: Maml) -> nn.Sequential:
    """The learner's network in ordinary modules, with its weights; convolutions have a bias, as is usual."""
    layers: list[nn.Module] = []
    for kernel in (weight for weight in learner.backbone.parameters() if weight.ndim == 4):
        width, channels = kernel.shape[:2]
        pooled = learner.downsample == "pool"
        convolution = nn.Conv2d(channels, width, 3, stride=1 if pooled else 2, padding=1)
        convolution.weight.data.copy_(kernel)
        layers += [
            convolution,
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2) if pooled else nn.Identity(),
        ]
    head = nn.Linear(learner.head.in_features, WAY)
    head.load_state_dict(learner.head.state_dict())
    return nn.Sequential(*layers, nn.Flatten(), head)


def plain_step(network: nn.Module, batch: KShotBatch, inner_steps: int) -> float:
    """Leaves the gradients in the network; returns the loss."""
    total = 0.0
    for task in range(TASKS):
        weights = dict(network.named_parameters())
        for _ in range(inner_steps):
            answers = functional_call(network, weights, (batch.support.images[task],))
            loss = F.cross_entropy(answers, batch.support.labels[task])
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {
                name: weight - INNER_LEARNING_RATE * gradient
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
        answers = functional_call(network, weights, (batch.query_images[task],))
        loss = F.cross_entropy(answers, batch.query_labels[task]) / TASKS
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def episodes(query: int) -> KShotBatch:
    """5-way 1-shot: a pattern for each class, with noise."""
    patterns = torch.randn(TASKS, WAY, *IMAGE_SHAPE)

    def drawn(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(WAY).repeat(each).expand(TASKS, -1).contiguous()
        chosen = patterns[:, labels[0]]
        return chosen + 0.5 * torch.randn_like(chosen), labels

    support, query_set = Support(*drawn(1), WAY), drawn(query)
    return KShotBatch(support, *query_set, torch.arange(WAY).expand(TASKS, -1))


def interleaved(*works: Callable[[], object]) -> list[float]:
    """Milliseconds of each, the median over rounds in which each has its turn."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, times in zip(works, taken, strict=True):
            began = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(times) for times in taken]


if __name__ == "__main__":
    main()
