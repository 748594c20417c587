"""The losses of several tasks in a step: what each weighs, and one gradient of all.

```
weights from the state                one backward pass of the weighted sum, as for one task
... from losses or a representation   one micro-batch a rank: weighed between forward and backward;
                                      several: all go forward first, to be looked at, and then again
... from gradients                    a backward pass for each task; their gradients are kept apart,
                                      reduced between ranks, and added up with the weights
```
Losses and products of gradients are of the whole step, over micro-batches and ranks, so that a step
in parts is the step of the large batch.

Shapes: N tasks, S numbers of all shared weights.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.models.multi_head import MultiHead
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.data import average_gradients
from deepseek.parallel.flat import flatten, unflatten_into
from deepseek.parallel.plan import Plan
from deepseek.trainer.multi_task import MultiTask, Outputs
from deepseek.trainer.task import Batch
from deepseek.trainer.weighting import Seen


class JointLoss:
    """Weighs the losses of the tasks of a step.

    Args:
        task: with its weighting, which has begun.
        parallel: the model as this rank computes it.
    """

    def __init__(self, task: MultiTask, parallel: ParallelModel) -> None:
        self.task, self.weighting = task, task.weighting
        self._parallel, self._world = parallel, parallel.world
        self._parameters = [weight.parameter for weight in parallel.weights.trained]
        self._looks_at_gradients = self.weighting.needs == "gradients"
        self._watches = (
            self.weighting.watches_representation or self.weighting.needs == "representation"
        )
        self.is_looking = False
        self.num_items = 0
        self._clear()

    def _clear(self) -> None:
        num = len(self.task.tasks)
        self._sums: Tensor | None = None
        self._each: list[Tensor] = []  # losses of a micro-batch, which do not reach other heads
        self._gram: Tensor | None = None
        self._rows: Tensor | None = None  # (N, S)
        self._own: dict[int, tuple[int, Tensor]] = {}  # parameter -> its one task, its gradient
        self._shared: list[int] = []
        self._seen: Seen | None = None
        self._weights: np.ndarray | None = None
        self.values = np.zeros(num)

    @property
    def reduces(self) -> bool:
        """Whether the pass that is under way is one whose gradients torch reduces."""
        return not self.is_looking and not self._looks_at_gradients

    def why_alone(self) -> str:
        """Return in words why a rank cannot fail without the others; empty where it can."""
        if self.weighting.needs == "nothing":
            return ""
        return "the weighting of the tasks asks all ranks in the midst of a step"

    # -- a step ------------------------------------------------------------------------------

    def begin(self, batch: Batch, num_micro_batches: int, scaler: torch.amp.GradScaler) -> None:
        """Begin a step: count its labels over all ranks.

        Args:
            batch: this rank's part.
            num_micro_batches: of each rank.
            scaler: of losses in fp16.
        """
        self._clear()
        self._scale = 1.0
        if scaler.is_enabled():  # asked so, it is there for what does not go through it
            device = self._parameters[0].device
            self._scale = float(scaler.scale(torch.ones((), device=device)))
        counts = [float(count) for count in self.task.count_labels(batch)]
        if self._world.is_distributed:
            counts = self._world.agree(counts)
        self._counts = np.array(counts)
        self.num_items = round(sum(counts))
        if self._watches and isinstance(module := self._parallel.engine.module, MultiHead):
            module.keep_features()
        self._is_late = self.weighting.needs in ("losses", "representation")
        self.is_looking = self._is_late and num_micro_batches > 1
        if self.weighting.needs == "nothing":
            self._weights = self.weighting.weights(None)

    def losses(self, outputs: Outputs, part: Batch) -> Tensor:
        """Return the loss of each task, summed over the labels of a micro-batch, (N,)."""
        if "targets" not in part or not len(part["targets"]):  # a rank without samples
            self._each = [outputs[name].sum() * 0 for name in self.task.names]
        else:
            self._each = self.task.losses(outputs, part)
        return torch.stack(self._each)

    def combine(self, losses: Tensor, *, retain_graph: bool) -> Tensor | None:
        """Return what to go backward from, summed over items; `None` where that is done already.

        Args:
            losses: of a micro-batch, (N,), with their graph.
            retain_graph: whether the graph is to outlive the step's passes.
        """
        detached = losses.detach()
        self._sums = detached if self._sums is None else self._sums + detached
        if self._looks_at_gradients:
            self._take_gradients(retain_graph)
            return None
        if self._watches and (self.is_looking or self._weights is None or not self._is_late):
            self._watch()
        if self.is_looking:
            return None
        if self._weights is None:
            self._weights = self._settle()
        factors = torch.tensor(self._factors(self._weights), dtype=losses.dtype)
        # without waiting for the device, which is at the forward pass
        return losses @ factors.to(losses.device, non_blocking=True)

    def look_again(self) -> None:
        """All micro-batches have been looked at: settle the weights, and begin the true passes."""
        self._weights = self._settle()
        self.is_looking, self._sums = False, None

    def finish(self) -> Tensor:
        """End the passes of a step: gradients are there; return this rank's part of its loss."""
        self._each = []
        seen = self._see()
        if self._rows is not None:
            self._put_together(seen)
        weights, surgery = self._weights, self._looks_at_gradients
        if weights is None:  # no pass has asked for them
            weights = self._weights = self.weighting.weights(seen)
        self.values = seen.losses
        if isinstance(module := self._parallel.engine.module, MultiHead):
            module.features = None  # with it goes the graph
        share = self.weighting.penalty() * self.num_items / self._parallel.gradient_factor
        if self._sums is None:
            return torch.tensor(share)
        # what surgery makes of gradients is the gradient of no loss: the mean stands for it
        factors = self._factors(np.full(len(weights), 1 / len(weights)) if surgery else weights)
        return self._sums @ self._sums.new_tensor(factors) + share

    def learn(self, lr: float) -> None:
        """The step has updated the model: let the weighting learn from it."""
        if self._seen is not None:
            self.weighting.learn(self._seen, lr)

    def named_values(self) -> dict[str, float]:
        """Return `loss_NAME` and `weight_NAME` of the step, of the tasks that had labels."""
        found = {}
        if self._seen is None or self._weights is None:
            return found
        for number, name in enumerate(self.task.names):
            if self._seen.is_present[number]:
                found[f"loss_{name}"] = float(self.values[number])
                found[f"weight_{name}"] = float(self._weights[number])
        return found

    def state_dict(self) -> dict:
        """Return the state of the weighting."""
        return self.weighting.state_dict()

    def load_state_dict(self, state: Mapping) -> None:
        """Take it back."""
        self.weighting.load_state_dict(state)

    # -- inside ------------------------------------------------------------------------------

    def _factors(self, weights: np.ndarray) -> list[float]:
        """Return by what summed losses are multiplied to be the step's loss, times its items."""
        return (weights * self.num_items / np.maximum(self._counts, 1)).tolist()

    def _see(self) -> Seen:
        """Return the step over all ranks; every rank calls it."""
        num = len(self._counts)
        sums = [0.0] * num if self._sums is None else self._sums.double().tolist()
        gram = self._gram
        has_gram = self._watches and not (self._is_late and self._seen is not None)
        numbers = sums
        if has_gram:
            products = [0.0] * num**2 if gram is None else gram.double().flatten().tolist()
            numbers = [*sums, *products]
        if self._world.is_distributed:
            numbers = self._world.agree(numbers)
        losses = np.array(numbers[:num]) / np.maximum(self._counts, 1)
        before = None if self._seen is None else self._seen.gram
        known = np.array(numbers[num:]).reshape(num, num) if has_gram else before
        self._seen = Seen(losses, self._counts > 0, known)
        return self._seen

    def _settle(self) -> np.ndarray:
        return self.weighting.weights(self._see())

    def _means(self) -> list[Tensor]:
        """Return this micro-batch's part of the mean of each task, scaled as fp16 wants it."""
        factors = (self._scale / np.maximum(self._counts, 1)).tolist()
        return [loss * factor for loss, factor in zip(self._each, factors, strict=True)]

    def _watch(self) -> None:
        """Add the products of the tasks' gradients of the shared representation."""
        module = self._parallel.engine.module
        if not isinstance(module, MultiHead) or module.features is None:
            raise TypeError(f"{type(module).__name__} keeps no representation")
        rows = [
            torch.autograd.grad(mean, module.features, retain_graph=True)[0].flatten()
            for mean in self._means()
        ]
        matrix = torch.stack(rows).float()
        gram = matrix @ matrix.T / self._scale**2
        self._gram = gram if self._gram is None else self._gram + gram

    def _take_gradients(self, retain_graph: bool) -> None:
        means = [mean * self._parallel.gradient_factor for mean in self._means()]
        last = len(means) - 1
        found = [
            torch.autograd.grad(
                mean, self._parameters, retain_graph=retain_graph or number < last,
                allow_unused=True,
            )
            for number, mean in enumerate(means)
        ]  # fmt: skip
        if self._rows is None:
            # a weight that one task alone reaches is that of its head
            tasks = [[n for n, row in enumerate(found) if row[p] is not None]
                     for p in range(len(self._parameters))]  # fmt: skip
            self._shared = [p for p, reach in enumerate(tasks) if len(reach) > 1]
            if not self._shared:
                raise ConfigError(
                    "the tasks share no weight that is trained",
                    fix="use weighting=equal, or train a part that all heads follow",
                )
            self._own = {
                p: (reach[0], torch.zeros_like(self._parameters[p]))
                for p, reach in enumerate(tasks) if len(reach) == 1
            }  # fmt: skip
        rows = torch.stack([self._flat(row) for row in found])
        self._rows = rows if self._rows is None else self._rows.add_(rows)
        for p, (number, total) in self._own.items():
            gradient = found[number][p]
            if gradient is not None:
                total.add_(gradient)

    def _flat(self, gradients: tuple[Tensor | None, ...]) -> Tensor:
        """Return a task's gradients of all shared weights in one row, (S,)."""
        return flatten(
            [
                torch.zeros_like(self._parameters[p]) if (g := gradients[p]) is None else g
                for p in self._shared
            ]
        )

    def _put_together(self, seen: Seen) -> None:
        """Write the gradient of every weight, from those of the tasks."""
        rows = self._rows
        if rows is None:
            return
        if self._world.is_distributed:
            everything = [*rows.unbind(0), *(total for _, total in self._own.values())]
            average_gradients(everything, self._world.group("data"), self._world.plan.settings)
        gram = (rows.float() @ rows.float().T).double().cpu().numpy()
        seen = Seen(seen.losses, seen.is_present, gram)
        weights = self.weighting.weights(seen)
        self._seen, self._weights = seen, weights
        joint = rows.new_tensor(weights) @ rows
        gradients = [torch.empty_like(self._parameters[p]) for p in self._shared]
        unflatten_into(joint, gradients)
        for p, gradient in zip(self._shared, gradients, strict=True):
            self._parameters[p].grad = gradient
        of_head = weights if self.weighting.weighs_heads else np.full(len(rows), 1 / len(rows))
        for p, (number, total) in self._own.items():
            self._parameters[p].grad = total.mul_(float(of_head[number]))


def check_joint(task: MultiTask, module: torch.nn.Module, plan: Plan, config) -> None:
    """Refuse what several tasks cannot be learnt with.

    Args:
        task: with its weighting.
        module: the model.
        plan: of the ranks.
        config: `TrainerConfig`.

    Raises:
        ConfigError: as its message says.
    """
    name, needs = type(task.weighting).__name__, task.weighting.needs
    if plan.tp > 1 or plan.pp > 1 or plan.cp > 1:
        raise ConfigError(
            f"parallel={plan.describe()} and several tasks: a model with several heads is not"
            " divided by layers, heads or tokens",
            fix="use dp, or fsdp with a weighting such as equal or uncertainty",
        )
    if config.graph == "static":
        raise ConfigError(
            "graph=static and several tasks: how many samples have a label of each is another shape"
            " in every step",
            fix="set graph to dynamic",
        )
    watches = task.weighting.watches_representation or needs == "representation"
    if watches and not isinstance(module, MultiHead):
        raise ConfigError(
            f"weighting {name} looks at the representation that the heads share, and"
            f" {type(module).__name__} does not say which it is",
            fix="train a MultiHead, or use weighting=mgda, pcgrad or cagrad",
        )
    if (needs != "nothing" or watches) and plan.uses_fsdp:
        raise ConfigError(
            f"parallel={plan.describe()} with weighting {name}, which looks at the tasks apart"
            " before weights are reduced",
            fix="use dp, or a weighting such as equal, uncertainty or dwa",
        )
    if needs == "gradients" and config.optimizer_in_backward:
        raise ConfigError(
            f"optimizer_in_backward=true with weighting {name}, which needs the gradients of all"
            " tasks before a weight is updated",
            fix="set optimizer_in_backward to false",
        )
