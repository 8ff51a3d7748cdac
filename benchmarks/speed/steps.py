"""Training steps and what holds for all of them: how they are timed, and the least that arithmetic takes."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.measure import Row, Side, interleave
from benchmarks.speed.peers import PeerError, Worker
from benchmarks.speed.setting import Place, Setting
from fewshot.episodes.batch import EpisodeBatch
from fewshot.harness.config import TrainSettings
from fewshot.harness.train import make_optimizer
from fewshot.kernels.native import plain_torch
from fewshot.learners.base import Learner

MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}


def timed(step: Callable[[], object], device: str = "cpu") -> Side:
    """A `Side` of this process."""

    def side(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return side


def training_step(learner: Learner, batch: EpisodeBatch) -> Callable[[], Tensor]:
    """One update of the weights as `fewshot.train` makes it, always on the same batch; gives the loss."""
    return update(learner.train(), lambda: learner.loss(batch))


def update(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same of any network, which lowers this loss."""
    settings = TrainSettings()
    optimizer = make_optimizer(network, settings)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        found = loss()
        found.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        return found.detach()

    return step


def matrix_product(device: str) -> tuple[Side, float]:
    """The machine at its best, one large product of float32 matrices; and its floating-point operations."""
    size = MATRIX_SIDE[device]
    left, right = torch.randn(2, size, size, device=device)
    out = torch.empty_like(left)
    return timed(lambda: torch.mm(left, right, out=out), device), 2.0 * size**3


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products, on the plain path.

    (Those of grouped convolutions are counted wrongly when differentiated twice: give one group.)
    """
    with plain_torch(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def compare_step(
    setting: Setting,
    name: str,
    place: Place,
    step: Callable[[], Tensor],
    flops: int,
    peer: str,
    worker: Callable[[], Worker],
    tolerance: float,
) -> Row:
    """Our training step beside a peer's on the same batch and from the same weights, in milliseconds.

    The first losses must agree to the tolerance; where they do not, both did not compute the same, and
    nothing is compared. The limit is what the operations take at the rate of a large matrix product,
    measured in the same rounds.
    """
    first_loss = float(step())
    product, product_flops = matrix_product(place.device)
    sides = {"ours": timed(step, place.device), "limit": product}
    found = partial(Row, name, str(place), "ms", peer=peer)
    try:
        with worker() as theirs:
            difference = abs(first_loss - float(theirs.facts["loss"]))
            if not difference <= tolerance:
                raise PeerError(f"not compared, as its first loss differs from ours by {difference:.2g}")
            seconds = interleave(sides | {"peer": theirs}, setting.rounds)
            note = f"first losses differ by {difference:.1g}"
    except PeerError as error:
        seconds, note = interleave(sides, setting.rounds), f"{peer}: {error}"
    return found(
        ours=1e3 * seconds["ours"],
        peer_value=1e3 * seconds["peer"] if "peer" in seconds else None,
        limit=1e3 * flops * seconds["limit"] / product_flops,
        note=note,
    )
