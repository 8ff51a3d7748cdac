"""Memory-augmented networks: recurrent learners whose cell is a controller with an external memory.

They differ in the memory alone, and have all other options in common.
"""

from functools import partial
from typing import Unpack

from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner, SharedOptions
from fewshot.memory.cell import Intervention, MemoryCell
from fewshot.memory.controllers import ControllerKind
from fewshot.memory.external import ExternalMemory


class NetworkOptions(SharedOptions, total=False):
    """The options that all of them have; `MemoryNetwork` explains them and gives the defaults."""

    controller: ControllerKind
    hidden_size: int
    tie: bool
    intervention: Intervention


class MemoryNetwork(RecurrentLearner):
    """A recurrent learner with a memory; subclasses choose which.

    tie: whether to add the tied content path, see `fewshot.memory.cell`.
    intervention: what is broken on purpose, see `fewshot.memory.cell`; for answering with weights that were
        trained without it.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        memory: ExternalMemory,
        controller: ControllerKind = "lstm",
        hidden_size: int = 200,
        tie: bool = True,
        intervention: Intervention = "none",
        **shared: Unpack[SharedOptions],
    ) -> None:
        check_at_least(1, hidden_size=hidden_size)
        cell = partial(
            MemoryCell,
            controller=controller,
            hidden_size=hidden_size,
            memory=memory,
            tie=tie,
            intervention=intervention,
        )
        super().__init__(image_shape, way, cell=cell, **shared)
