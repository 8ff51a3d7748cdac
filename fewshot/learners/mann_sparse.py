"""The memory-augmented network with sparse access: Rae et al. 2016, arXiv:1610.09027.

As `Mann` (convolutions, sharp reading, the tied content path), except that a head reads a few slots, and
writes to those and to the one used least recently: what a step costs depends little on the number of slots.

There are twice as many slots as `Mann` has: each of four heads empties a slot at every step, where `Mann`
empties one for all, and 256 are enough for 50 steps in which nothing is overwritten.
"""

from typing import ClassVar, Literal

from fewshot.episodes.labels import Labels, label_units
from fewshot.learners.backbones import Downsample, feature_size, image_encoder
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.cell import Intervention, MemoryCell
from fewshot.memory.controllers import ControllerKind
from fewshot.memory.sparse import Sparse
from fewshot.memory.store import OwnStore


class MannSparse(RecurrentLearner):
    """Sparse access memory with a convolutional encoder; the memory's options are explained at `Sparse`.

    tie, intervention: the tied content path, and what is broken on purpose, see `fewshot.memory.cell`;
    metric_weight: how much the encoder learns from all streams of a batch at once, see `RecurrentLearner`.
    """

    batch_norm: ClassVar[Literal["none", "frozen", "batch"]] = "frozen"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (32, 32, 64),
        downsample: Downsample = "stride",
        batch_norm: Literal["none", "frozen"] = "frozen",
        embedding_size: int = 64,
        controller: ControllerKind = "lstm",
        hidden_size: int = 200,
        num_slots: int = 256,
        word_size: int = 40,
        read_heads: int = 4,
        slots_per_head: int = 4,
        access_threshold: float = 0.005,
        strength_offset: float = 5.0,
        gate_bias: float = 0.0,
        tie: bool = True,
        metric_weight: float = 0.0,
        intervention: Intervention = "none",
        labels: Labels = "one_hot",
    ) -> None:
        check_at_least(
            1,
            hidden_size=hidden_size,
            word_size=word_size,
            read_heads=read_heads,
            slots_per_head=slots_per_head,
        )
        check_at_least(0, strength_offset=strength_offset)
        check_fraction(access_threshold=access_threshold)
        memory = Sparse(
            OwnStore(num_slots),
            word_size=word_size,
            read_heads=read_heads,
            slots_per_head=slots_per_head,
            access_threshold=access_threshold,
            strength_offset=strength_offset,
            gate_bias=gate_bias,
        )
        cell = MemoryCell(
            feature_size(image_shape, widths, embedding_size),
            label_units(labels, way),
            controller=controller,
            hidden_size=hidden_size,
            memory=memory,
            tie=tie,
            intervention=intervention,
        )
        encoder, backbone_name = image_encoder(
            image_shape, widths, embedding_size, downsample=downsample, batch_norm=batch_norm
        )
        super().__init__(
            image_shape, way, encoder=encoder, cell=cell, metric_weight=metric_weight, labels=labels
        )
        self.backbone_name = backbone_name
