"""The memory-augmented network, made strong: Santoro et al. 2016 (arXiv:1605.06065), with four departures.

Convolutions see the images; reading has a learned sharpness (as in the neural Turing machine, Graves et al.
2014); every write head has a slot and an add vector of its own; and the tied content path of
`fewshot.memory.cell` joins what an image is stored under to what it is looked up with. Each is an option that
can be taken away again: widths=() sees the pixels, strength_offset=None reads with a bare cosine. `MannPaper`
is the network as published.
"""

from typing import ClassVar, Literal

from fewshot.episodes.labels import Labels, label_units
from fewshot.learners.backbones import Downsample, feature_size, image_encoder
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.cell import Intervention, MemoryCell
from fewshot.memory.controllers import ControllerKind
from fewshot.memory.lrua import AddVector, LeastUsed, Lrua, Order


class Mann(RecurrentLearner):
    """Memory-augmented network with a convolutional encoder; the memory's options are explained at `Lrua`.

    tie: whether to add the tied content path, see `fewshot.memory.cell`; it needs add_vector "apart".
    metric_weight: how much the encoder learns from all streams of a batch at once, see `RecurrentLearner`.
    intervention: what is broken on purpose, see `fewshot.memory.cell`; for answering with weights that were
        trained without it.
    """

    batch_norm: ClassVar[Literal["none", "frozen", "batch"]] = "frozen"
    added_options: ClassVar[frozenset[str]] = frozenset(
        {"add_vector", "intervention", "labels", "metric_weight", "order"}
    )

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
        usage_decay: float = 0.99,
        least_used: LeastUsed = "per_head",
        add_vector: AddVector = "apart",
        order: Order = "write_first",
        strength_offset: float | None = 5.0,
        gate_bias: float = 0.0,
        tie: bool = True,
        metric_weight: float = 0.0,
        intervention: Intervention = "none",
        labels: Labels = "one_hot",
    ) -> None:
        check_at_least(1, hidden_size=hidden_size, word_size=word_size, read_heads=read_heads)
        check_at_least(0, strength_offset=strength_offset)
        check_fraction(usage_decay=usage_decay)
        memory = Lrua(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            usage_decay=usage_decay,
            least_used=least_used,
            add_vector=add_vector,
            strength_offset=strength_offset,
            gate_bias=gate_bias,
            order=order,
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
