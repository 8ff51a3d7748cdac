"""The memory-augmented network with sparse access: Rae et al. 2016 (arXiv:1610.09027), after `Mann`.

Each head reads a few slots in place of all, and writes to those and to the least recently used one: see
`fewshot.memory.sparse`. Encoder, controller, learned sharpness and the tied content path are those of `Mann`.
"""

from typing import ClassVar, Literal

from fewshot.learners.backbones import Downsample, feature_size, image_encoder
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.cell import MemoryCell
from fewshot.memory.controllers import ControllerKind
from fewshot.memory.sparse import Sparse
from fewshot.memory.store import OwnStore


class MannSparse(RecurrentLearner):
    """Memory-augmented network whose heads read and write a few slots each."""

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
    ) -> None:
        check_at_least(
            1,
            hidden_size=hidden_size,
            word_size=word_size,
            read_heads=read_heads,
            slots_per_head=slots_per_head,
        )
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
            way,
            controller=controller,
            hidden_size=hidden_size,
            memory=memory,
            tie=tie,
        )
        encoder, backbone_name = image_encoder(
            image_shape, widths, embedding_size, downsample=downsample, batch_norm=batch_norm
        )
        super().__init__(image_shape, way, encoder=encoder, cell=cell)
        self.backbone_name = backbone_name
