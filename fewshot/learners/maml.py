"""Model-agnostic meta-learning (Finn, Abbeel and Levine 2017); and MAML++.

Weights are learned from which a few steps of gradient descent on the support set (the paper's equation 1)
reach a good classifier: the outer loss is taken after the inner steps (algorithm 1), and its gradient goes
through theirs. `gradient.py` has the steps, and what batch norm they use: by default one that makes them
transductive in K-shot. The first order is `fomaml.py`.

MAML++ (Antoniou, Edwards and Storkey 2019, "How to train your MAML", section 4) is `Maml` with its options.
With N inner steps, t updates of the learned weights done and T updates to fade away in:

| name       | in the paper        | equation                                                  | shape       |
|------------|---------------------|-----------------------------------------------------------|-------------|
| step rates | LSLR                | theta_{i+1} = theta_i - alpha_{i, weight} * gradient      | (N, weight) |
| step norms | BNWB; running: BNRS | scale_i, shift_i of step i, learned; they do not adapt    | (N, width)  |
| importance | MSL, v_i            | (1 - min(t, T) / T) / N for i < N; what is left of 1 at N | (N,)        |

A norm of step i normalises the support before the step and the queries after it. Steps beyond N, which
evaluation may take, go on with what step N learned.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch
from fewshot.learners.gradient import DescentOptions, GradientLearner
from fewshot.learners.options import check_at_least
from fewshot.learners.task_network import Weights, logits

Norms = Literal["adapted", "step", "running"]


class Maml(GradientLearner):
    """MAML as published: the outer gradient goes through the inner one; with MAML++'s changes as options.

    step_rates: whether each inner step learns a rate for each kernel, scale, shift, head and bias.
    norms: of batch norms, "adapted": scale and shift adapt like any weight; "step": each inner step learns
        its own, and they do not adapt; "running": the same, and evaluation normalises by statistics that each
        step followed in training, which makes it inductive, whatever `statistics` says of training.
    multi_step_loss: over how many updates the queries' loss after earlier steps fades out of the outer loss;
        0: only that after the last counts.
    """

    second_order: ClassVar[bool] = True
    updates: Tensor
    added_options: ClassVar[frozenset[str]] = frozenset({"multi_step_loss", "norms", "step_rates"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        step_rates: bool = False,
        norms: Norms = "adapted",
        multi_step_loss: int = 0,
        **options: Unpack[DescentOptions],
    ) -> None:
        super().__init__(image_shape, way, **options)
        check_at_least(0, multi_step_loss=multi_step_loss)
        self.step_norms = nn.ModuleList()
        if norms != "adapted":
            own = _norms(self.backbone)
            for norm in own:  # what adapts is then kernels and head
                norm.weight = norm.bias = None  # type: ignore[assignment]
            followed = norms == "running"
            self.step_norms.extend(
                nn.ModuleList(nn.BatchNorm2d(norm.num_features, track_running_stats=followed) for norm in own)
                for _ in range(self.inner_steps)
            )
            self.batch_norm = "frozen" if followed else "batch"
        self.transductive = self.transductive and norms != "running"
        self.step_rates: nn.Parameter | None = None
        if step_rates:
            adapting = sum(1 for _ in (*self.backbone.parameters(), *self.head.parameters()))
            self.step_rates = nn.Parameter(torch.full((self.inner_steps, adapting), self.inner_learning_rate))
        self.multi_step_loss = multi_step_loss
        self.steady = not multi_step_loss
        if multi_step_loss:
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def rates(self, step: int, gradients: Weights, memory: Weights) -> tuple[Weights, Weights]:
        if self.step_rates is None:
            return super().rates(step, gradients, memory)
        return self.step_rates[self._learned(step)].unbind(), memory

    def logits(self, weights: Weights, images: Tensor, step: int) -> Tensor:
        if not self.step_norms:
            return super().logits(weights, images, step)
        return logits(weights, images, self.backbone.layout, _norms(self.step_norms[self._learned(step)]))

    def importances(self) -> Sequence[float]:
        if not self.multi_step_loss:
            return super().importances()
        faded = min(int(self.updates) / self.multi_step_loss, 1.0)
        earlier = (1 - faded) / self.steps
        return [earlier] * (self.steps - 1) + [1 - earlier * (self.steps - 1)]

    def loss(self, batch: EpisodeBatch) -> Tensor:
        loss = super().loss(batch)
        if self.multi_step_loss and self.training and torch.is_grad_enabled():
            self.updates += 1
        return loss

    def _learned(self, step: int) -> int:
        """The step whose rates and norms a step takes."""
        return min(step, self.inner_steps - 1)


def _norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
