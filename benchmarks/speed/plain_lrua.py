"""The memory-augmented network of Santoro et al. 2016 (arXiv:1605.06065) as one writes it from the paper.

What `lrua_step` compares with: plain eager PyTorch, step by step, in the paper's order, with the library's
LSTM cell, its `cosine_similarity` and its `topk`. It needs nothing of ours, and with the same weights its
loss is that of our `mann_paper` (a test holds it).

cosine: "library", or "product" of normalised vectors, which one finds by profiling: the library's function
goes over (batch, head, slot, word), and a whole step takes 1.8 times as long with it on one core.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainLrua(nn.Module):
    """An LSTM with a memory of `slots` words that all heads read and write."""

    def __init__(
        self,
        pixels: int,
        way: int,
        *,
        hidden_size: int = 200,
        slots: int = 128,
        word_size: int = 40,
        heads: int = 4,
        usage_decay: float = 0.99,
        cosine: Literal["library", "product"] = "library",
    ) -> None:
        super().__init__()
        self.cosine = cosine
        self.slots, self.word_size, self.heads, self.usage_decay = slots, word_size, heads, usage_decay
        self.controller = nn.LSTMCell(pixels + way + heads * word_size, hidden_size)
        self.key = nn.Linear(hidden_size, heads * word_size)
        self.write_gate = nn.Linear(hidden_size, heads)
        self.output = nn.Linear(hidden_size + heads * word_size, way)

    def forward(self, images: Tensor, previous_labels: Tensor) -> Tensor:
        """images: (batch, step, pixels); previous_labels: (batch, step, way) -> logits (batch, step, way)."""
        batch = len(images)
        hidden = images.new_zeros(batch, self.controller.hidden_size)
        cell = torch.zeros_like(hidden)
        memory = images.new_full((batch, self.slots, self.word_size), 1e-6)
        read_weights = images.new_zeros(batch, self.heads, self.slots)
        read_weights[:, :, 0] = 1
        usage = images.new_zeros(batch, self.slots)
        usage[:, 0] = 1
        reads = images.new_zeros(batch, self.heads * self.word_size)
        logits = []
        for image, label in zip(images.unbind(1), previous_labels.unbind(1), strict=True):
            hidden, cell = self.controller(torch.cat([image, label, reads], dim=1), (hidden, cell))
            key = torch.tanh(self.key(hidden)).view(batch, self.heads, self.word_size)
            gate = torch.sigmoid(self.write_gate(hidden)).unsqueeze(2)

            least_used = torch.topk(usage, self.heads, dim=1, largest=False).indices
            mask = torch.zeros_like(usage).scatter(1, least_used, 1.0).unsqueeze(1)
            write_weights = gate * read_weights + (1 - gate) * mask
            kept = torch.ones_like(usage).scatter(1, least_used[:, :1], 0.0).unsqueeze(2)
            memory = memory * kept + write_weights.transpose(1, 2) @ key

            if self.cosine == "library":
                similarity = F.cosine_similarity(key.unsqueeze(2), memory.unsqueeze(1), dim=3)
            else:
                similarity = F.normalize(key, dim=2) @ F.normalize(memory, dim=2).transpose(1, 2)
            read_weights = torch.softmax(similarity, dim=2)
            usage = self.usage_decay * usage + (read_weights + write_weights).sum(1).detach()
            reads = (read_weights @ memory).flatten(1)
            logits.append(self.output(torch.cat([hidden, reads], dim=1)))
        return torch.stack(logits, dim=1)


def plain_lrua_step(
    model: PlainLrua,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    clip_norm: float = 10.0,
) -> Tensor:
    """One training step on streams: images (batch, step, pixels), labels (batch, step); the loss in nats."""
    shown = F.one_hot(labels, model.output.out_features).to(images.dtype)
    previous = torch.cat([torch.zeros_like(shown[:, :1]), shown[:, :-1]], dim=1)
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(images, previous).flatten(0, 1), labels.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.detach()
