"""The control experiment: the memory-augmented network's encoder and LSTM, without a memory.

Santoro et al. 2016 compare with it; what the memory adds is the difference to `Mann` at equal budgets.
"""

from typing import ClassVar, Literal

from fewshot.learners.backbones import ConvEmbedding, Downsample
from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.cell import LstmCell


class Lstm(RecurrentLearner):
    """An LSTM over (embedding, previous label)."""

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
        hidden_size: int = 200,
    ) -> None:
        check_at_least(1, embedding_size=embedding_size, hidden_size=hidden_size)
        cell = LstmCell(embedding_size, way, hidden_size=hidden_size)
        encoder = ConvEmbedding(
            image_shape, widths, embedding_size, downsample=downsample, batch_norm=batch_norm
        )
        super().__init__(image_shape, way, encoder=encoder, cell=cell)
        self.backbone_name = encoder.backbone.name
