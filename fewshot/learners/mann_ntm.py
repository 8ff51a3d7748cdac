"""The memory-augmented network with a neural Turing machine's memory: Graves et al. 2014, arXiv:1410.5401.

As `Mann` (convolutions, sharp reading, the tied content path), except that a write head goes where it moves,
not to the least used slot. Santoro et al. 2016 compare with it as published and on pixels: widths=(),
tie=False, strength_offset=0, role_bias=0.

Heads start in their roles (`role_bias`, see `fewshot.memory.ntm`), as nothing else tells a write head where
there is room. That is what makes it learn: on Omniglot's streams of 5 classes it names 78 % at the second
presentation after 120 updates of 16 episodes; with role_bias=0 it then still guesses.
"""

from typing import ClassVar, Literal

from fewshot.episodes.labels import Labels, label_units
from fewshot.learners.backbones import Downsample, feature_size, image_encoder
from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.cell import Intervention, MemoryCell
from fewshot.memory.controllers import ControllerKind
from fewshot.memory.ntm import Ntm


class MannNtm(RecurrentLearner):
    """Neural Turing machine with a convolutional encoder; the memory's options are explained at `Ntm`.

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
        num_slots: int = 128,
        word_size: int = 40,
        read_heads: int = 4,
        write_heads: int = 1,
        shift_range: int = 1,
        strength_offset: float = 5.0,
        role_bias: float = 4.0,
        tie: bool = True,
        metric_weight: float = 0.0,
        intervention: Intervention = "none",
        labels: Labels = "one_hot",
    ) -> None:
        check_at_least(
            1,
            hidden_size=hidden_size,
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            write_heads=write_heads,
            shift_range=shift_range,
        )
        check_at_least(0, strength_offset=strength_offset, role_bias=role_bias)
        memory = Ntm(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            write_heads=write_heads,
            shift_range=shift_range,
            strength_offset=strength_offset,
            role_bias=role_bias,
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
