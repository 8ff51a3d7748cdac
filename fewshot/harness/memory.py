"""How much memory a training run needs, told before it starts; a run that would not fit is refused.

Two episodes of the run's own go through the learner's loss, forward and backward, while the bytes of all
living tensors are counted; what grows with the episodes is then scaled to the batch. For tensors that is
exact to a few per cent. What the allocator makes of them is not: it leaves free memory between blocks that
live on (`OVERHEAD_KEPT`).
"""

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewshot.episodes.source import EpisodeSource
from fewshot.errors import LearnerError
from fewshot.harness.config import TrainSettings
from fewshot.harness.evaluate import embeds, episodes_at_once, images_of
from fewshot.harness.features import Features, with_features
from fewshot.harness.processes import keeps_memory
from fewshot.harness.replay import replays
from fewshot.harness.system_memory import available_memory, free_in_heap, resident_bytes, unread_bytes
from fewshot.kernels.native import library
from fewshot.learners.base import Learner
from fewshot.learners.embedding import EmbeddingLearner, embed_in_parts, images_at_once

PROBED_EPISODES = 2
OVERHEAD_KEPT, OVERHEAD_KEPT_PLAIN, OVERHEAD_RETURNED, OVERHEAD_GPU = 1.5, 2.0, 1.25, 1.2
"""Bytes taken from the system for each byte of tensors at the peak, with glibc 2.36, in which an aligned
block seldom finds a free block of its own size again. Where the allocator keeps what it has
(`prepare_process`), runs of `prototypical`, `maml` and `mann` took 1.2 to 1.7 with our kernels and 1.8 to 2.4
in plain torch; where it gives large blocks back, 1.0 to 1.9. On a GPU it is an allowance for work space, not
measured."""
EVALUATION_BYTES = 50 * 2**20
"""What the first evaluation of a process adds for good: libraries, and the tables of the bootstrap."""


def predict_training_memory(
    learner: Learner, settings: TrainSettings, training: EpisodeSource, *looks: EpisodeSource
) -> int | None:
    """Bytes at the peak of a training run: resident in this process, or on a GPU allocated there.

    training: where the run draws its episodes, those of its largest stage; looks: where those come from that
    it is looked at with now and then. Learner and random state stay as they are. It takes about as long as a
    training step of two episodes; where even those do not fit they are broken off, and the answer is more
    than there is. None for a learner that cannot be copied.
    """
    device = training.device
    try:
        probe = copy.deepcopy(learner)
    except (RuntimeError, TypeError):
        return None
    weights = sum(weight.nbytes for weight in learner.parameters())
    state = sum(value.nbytes for value in learner.state_dict().values())
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        step = _step_bytes(probe, settings, training)
        look = max(_look_bytes(probe, settings, source) for source in looks)
    # Beside a step with its gradients: the optimiser's two moments and the best state so far, which is there
    # twice while a better one takes its place.
    # A recorded update keeps the memory of a step while it is looked at.
    largest = step + look if replays(learner, settings, device) else max(step, weights + look)
    tensors = largest + 2 * weights + 2 * state
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) + int(OVERHEAD_GPU * tensors)
    more = max(0, int(_overhead() * tensors) - free_in_heap())
    return resident_bytes() + more + EVALUATION_BYTES + _unread_images(settings, training, looks)


def check_memory(
    learner: Learner, settings: TrainSettings, training: EpisodeSource, *looks: EpisodeSource
) -> None:
    """Raise LearnerError where a training run would not fit, as far as the system tells what there is."""
    device = training.device
    if available_memory(device) is None:
        return
    predicted = predict_training_memory(learner, settings, training, *looks)
    free = available_memory(device)  # what is left now: the prediction may have taken some, which is resident
    if free is None or predicted is None:
        return
    on_gpu = device.type == "cuda"
    there = free + (torch.cuda.memory_allocated(device) if on_gpu else resident_bytes())
    if predicted > there:
        raise LearnerError(
            f"training {type(learner).__name__} with {settings.batch} episodes per step needs about "
            f"{predicted / 1e9:.1f} GB, and this process can have {there / 1e9:.1f} GB"
            f"{' on the GPU' if on_gpu else ''}: lower batch, or way, shot, query or length of the training "
            "episodes"
        )


def _overhead() -> float:
    if not keeps_memory():
        return OVERHEAD_RETURNED
    return OVERHEAD_KEPT if library("normalise") else OVERHEAD_KEPT_PLAIN


class _LivingBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made on a device while it is on; peak: the most that lived together.

    Raises MemoryError at the first tensor by which they are more than `most`.
    """

    def __init__(self, device: torch.device, before: Iterator[Tensor], most: float) -> None:
        """before: tensors that are there already, and do not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.most = most
        self._device = device
        self._known: dict[int, Any] = {}
        for tensor in before:
            self._watch(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self._device.type:
                storage = tensor.untyped_storage()
                if id(storage) not in self._known:
                    self._watch(storage, storage.nbytes())
        if self.now > self.most:
            raise MemoryError
        return result

    def _watch(self, storage: torch.UntypedStorage, count: int) -> None:
        key = id(storage)

        def gone(_: Any) -> None:
            self.now -= count
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += count
        self.peak = max(self.peak, self.now)


def _peak_bytes(learner: Learner, device: torch.device, work: Callable[[], object]) -> int:
    """The greatest number of bytes of tensors that live together while the work is done."""
    free = available_memory(device)
    most = math.inf if free is None else free + (free_in_heap() if device.type == "cpu" else 0)
    counter = _LivingBytes(device, iter((*learner.parameters(), *learner.buffers())), most)
    try:
        with counter:
            work()
    except (MemoryError, RuntimeError) as error:
        # On a CPU, torch has no class of its own for the allocation that failed.
        refused = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if free is None or not refused:
            raise
        return max(counter.peak, int(most) + 1)
    return counter.peak


def _step_bytes(learner: Learner, settings: TrainSettings, training: EpisodeSource) -> int:
    """Of a training step: its batch, what the loss saves and makes, and the gradients."""
    count = min(PROBED_EPISODES, settings.batch)
    learner.train()
    shown = training.indices(0, count).images.shape[1]
    step = _peak_bytes(
        learner,
        training.device,
        lambda: learner.loss(training.batch(0, count)).backward(),  # type: ignore[no-untyped-call]
    )
    gradients = sum(weight.nbytes for weight in learner.parameters() if weight.grad is not None)
    growing = max(0, step - gradients)
    scale = settings.batch * images_of(training.protocol) / (count * shown)
    return gradients + int(scale * growing)


@torch.no_grad()
def _look_bytes(learner: Learner, settings: TrainSettings, source: EpisodeSource) -> int:
    """Of a look at the validation classes, or at the training classes where they are watched."""
    device = source.device
    episodes = min(settings.validate_episodes, episodes_at_once(learner, source))
    count = min(PROBED_EPISODES, episodes)
    learner.eval()
    indices = source.indices(0, count)
    scale = episodes * images_of(source.protocol) / indices.images.numel()
    if not embeds(learner, source):
        answering = _peak_bytes(learner, device, lambda: learner.answer(source.batch(0, count)))
        return int(scale * answering)
    assert isinstance(learner, EmbeddingLearner)
    drawings = min(_drawings(source), settings.validate_episodes * images_of(source.protocol))
    part = torch.zeros(
        min(drawings, images_at_once(learner.image_shape)), *learner.image_shape, device=device
    )
    embedding = _peak_bytes(learner, device, lambda: embed_in_parts(learner, part))
    one = embed_in_parts(learner, part[:1])
    place = torch.zeros(4, len(source.pool.image_set.images), dtype=torch.int64, device=device)
    batch = with_features(indices, Features(one, place))
    answering = _peak_bytes(learner, device, lambda: learner.answer_features(batch))
    return part.nbytes + drawings * one.nbytes + max(embedding, int(scale * answering))


def _drawings(source: EpisodeSource) -> int:
    """How many images the classes of a source have, turned ones counted apart."""
    return int(source.pool.images_per_class.sum())


def _unread_images(settings: TrainSettings, training: EpisodeSource, looks: Iterable[EpisodeSource]) -> int:
    """Bytes of images that will come into memory: a set is a mapped file, read as its images are drawn."""
    image_set = training.pool.image_set
    upright = (sorted(set(source.pool.class_index.tolist())) for source in (training, *looks))
    stored, *looked_at = (int(image_set.images_per_class[classes].sum()) for classes in upright)
    drawn = min(stored, settings.steps * settings.batch * images_of(training.protocol))
    return min(unread_bytes(image_set.images), (drawn + sum(looked_at)) * image_set.images[0].nbytes)
