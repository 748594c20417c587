"""How much a unit matters: what is cut first is what matters least.

```
magnitude  norm of its weights, in all that makes and reads it    Li et al. 2016, 1608.08710
bn_scale   scale of its batch norms                               Liu et al. 2017, 1708.06519
taylor     change of the loss without it, to first order          Molchanov et al. 2019, 1906.10771
random     nothing: what any criterion must beat
```
Numbers of different groups are made comparable by their mean over a group (magnitude, bn_scale); a
change of the loss is comparable as it is (taylor).

Shapes: U units of a group.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from deepseek.datasets import DataLoader, DataSpec
from deepseek.deploy.pruning.units import Cut, Group
from deepseek.deploy.samples import UNKNOWN, Samples
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.cut import find_tensor
from deepseek.models.eval_mode import evaluating
from deepseek.trainer.task import resolve_task

NUM_TAYLOR_BATCHES, BATCH_SIZE = 16, 64
Data = Dataset | DataLoader
Importance = dict[str, Tensor]


def rank_units(
    engine: ModelEngine, groups: Sequence[Group], criterion: str, data: Data | None
) -> Importance:
    """Return name of a group -> how much each of its units matters, float32 (U,).

    Args:
        engine: not changed.
        groups: of its module.
        criterion: a name of `CRITERIA`.
        data: labelled samples, for "taylor".

    Raises:
        ConfigError: the criterion is unknown, or has nothing to go by.
    """
    if criterion not in CRITERIA:
        raise ConfigError(
            f"criterion={criterion!r} is not known", fix=f"choose one of: {', '.join(CRITERIA)}"
        )
    return CRITERIA[criterion](engine, groups, data)


def _magnitude(engine: ModelEngine, groups: Sequence[Group], data: Data | None) -> Importance:
    del data
    ranked = {}
    for group in groups:
        squares = torch.zeros(group.num_units)
        for cut in group.cuts:
            weight = find_tensor(engine.module, cut.tensor)
            if weight.ndim > 1:
                squares += _sum_by_unit(weight.detach().float().square(), cut, group.num_units)
        ranked[group.name] = _by_mean(squares.sqrt())
    return ranked


def _bn_scale(engine: ModelEngine, groups: Sequence[Group], data: Data | None) -> Importance:
    del data
    ranked = {}
    for group in groups:
        scales = torch.zeros(group.num_units)
        for cut in group.cuts:
            owner = engine.module.get_submodule(cut.tensor.rpartition(".")[0])
            if isinstance(owner, _BatchNorm) and cut.tensor.endswith(".weight"):
                scales += _sum_by_unit(owner.weight.detach().float().abs(), cut, group.num_units)
        if not scales.any():
            raise ConfigError(
                f'criterion="bn_scale", and {group.name} has no batch norm after it',
                fix='use criterion="magnitude" or "taylor"',
            )
        ranked[group.name] = _by_mean(scales)
    return ranked


def _taylor(engine: ModelEngine, groups: Sequence[Group], data: Data | None) -> Importance:
    if data is None:
        raise ConfigError(
            'criterion="taylor" measures a loss, and there are no data',
            fix='give data=, a labelled data set, or use criterion="magnitude"',
        )
    samples = Samples(data, BATCH_SIZE, as_learnt=True)
    task = resolve_task("auto", samples.spec or DataSpec(UNKNOWN, {}), 0.0)
    ranked = {group.name: torch.zeros(group.num_units) for group in groups}
    # what makes the units is enough, and counts a unit once: its weights and its norm's scale
    made = [(group, cut) for group in groups for cut in group.cuts if not cut.reads]
    made = [
        (g, c) for g, c in made if isinstance(find_tensor(engine.module, c.tensor), nn.Parameter)
    ]
    tensors = [find_tensor(engine.module, cut.tensor) for _, cut in made]
    with evaluating(engine), torch.enable_grad(), _with_gradients(tensors):
        for batch in samples.first(NUM_TAYLOR_BATCHES):
            moved = {name: value.to(engine.device) for name, value in batch.items()}
            loss = task.loss(engine(moved["inputs"]), moved) / max(1, task.count_items(batch))
            sums = {group.name: torch.zeros(group.num_units) for group in groups}
            grads = torch.autograd.grad(loss, tensors)
            for (group, cut), weight, grad in zip(made, tensors, grads, strict=True):
                change = (weight.detach() * grad).float()
                sums[group.name] += _sum_by_unit(change, cut, group.num_units)
            for name, each in sums.items():
                ranked[name] += each.square()
    return ranked


@contextmanager
def _with_gradients(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let frozen weights have gradients, which say what they are worth, for a while."""
    frozen = [tensor for tensor in tensors if not tensor.requires_grad]
    for tensor in frozen:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)


def _random(engine: ModelEngine, groups: Sequence[Group], data: Data | None) -> Importance:
    del engine, data
    generator = torch.Generator().manual_seed(0)
    return {group.name: torch.rand(group.num_units, generator=generator) for group in groups}


def _sum_by_unit(values: Tensor, cut: Cut, num_units: int) -> Tensor:
    """Return the sum of the values of each unit, (U,), on the CPU."""
    rest = [dim for dim in range(values.ndim) if dim != cut.dim]
    by_place = (values.sum(rest) if rest else values).cpu()
    belongs = cut.unit_of >= 0
    return torch.zeros(num_units).index_add_(0, cut.unit_of[belongs], by_place[belongs])


def _by_mean(values: Tensor) -> Tensor:
    return values / values.mean().clamp(min=torch.finfo(torch.float32).tiny)


CRITERIA: dict[str, Callable[[ModelEngine, Sequence[Group], Data | None], Importance]] = {
    "magnitude": _magnitude,
    "taylor": _taylor,
    "bn_scale": _bn_scale,
    "random": _random,
}
