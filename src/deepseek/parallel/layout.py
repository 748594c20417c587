"""What this rank holds of every weight: the numbers, and where in the whole model they lie.

Optimizer, gradient norm, averages and checkpoints work on these plain tensors. They are views of
what DTensor holds: an update of a view is an update of the model, without DTensor's dispatch (some
100 us an operation on a CPU).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deepseek.errors import ConfigError
from deepseek.models.growing_table import growing_tables
from deepseek.models.tensor_part import Place, TensorPart
from deepseek.parallel.flat import flatten, unflatten_into
from deepseek.parallel.tensor import Division, rank_rows
from deepseek.parallel.world import World


@dataclass
class LocalWeight:
    """One parameter as this rank holds it.

    Attributes:
        name: in the whole model, on one device.
        parameter: of the module; a DTensor where it is divided.
        local: the numbers here, a view of them.
        shape: of the whole.
        boxes: pairs of where a box of `local` lies in the whole, and the slices that cut it out.
        num_copies: ranks that hold the same numbers.
        is_written: whether this rank saves them.
    """

    name: str
    parameter: nn.Parameter
    local: Tensor
    shape: tuple[int, ...]
    boxes: list[tuple[Place, tuple[slice, ...]]] = field(repr=False)
    num_copies: int = 1
    is_written: bool = True

    def parts(self, tensor: Tensor, suffix: str = "") -> Iterator[TensorPart]:
        """Return a tensor as parts of a whole one.

        Args:
            tensor: of the shape of `local`, or (rows, BLOCKS): a number for each block of a row.
            suffix: what the name of the whole has beside the weight's.
        """
        for place, cut in self.boxes:
            if tensor.shape != self.local.shape:
                place, cut = self._in_blocks(place, cut, tensor)
            named = place._replace(name=place.name + suffix)
            yield TensorPart(named, tensor[cut], self.is_written)

    def _in_blocks(
        self, place: Place, cut: tuple[slice, ...], tensor: Tensor
    ) -> tuple[Place, tuple[slice, ...]]:
        """Return where a box lies if numbers are counted by blocks; rows are all that follows."""
        block = self.local[0].numel() // tensor.shape[1]
        whole = (place.shape[0], math.prod(place.shape[1:]) // block)
        is_matrix = len(place.shape) == 2
        first = place.offset[1] if is_matrix else 0
        columns = slice(*cut[1].indices(self.local.shape[1])[:2]) if is_matrix else None
        start, stop = (0, tensor.shape[1]) if columns is None else (
            columns.start // block, columns.stop // block
        )  # fmt: skip
        if columns is not None and (first % block or columns.start % block or columns.stop % block):
            raise ConfigError(
                f"tp divides {self.name} within the blocks of {block} that its optimizer state is"
                " kept in",
                fix="use optimizer=adamw, or a degree of tp that leaves wider parts",
            )
        return Place(place.name, whole, (place.offset[0], first // block)), (
            cut[0], slice(start, stop),
        )  # fmt: skip


class LocalWeights:
    """All parameters of a model as this rank holds them, in the model's order.

    Args:
        modules: the model, or its stages on this rank.
        world: who holds the rest.
        divisions: of weights between the ranks of `tp`, by name.
        aliases: names in a stage -> names in the whole model, where they differ.
        unwritten: names that another stage saves.
        twice: names that two stages hold.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        world: World | None = None,
        divisions: Mapping[str, Division] | None = None,
        aliases: Mapping[str, str] | None = None,
        twice: Mapping[str, bool] | None = None,
    ) -> None:
        self.world = world
        divisions, aliases, twice = divisions or {}, aliases or {}, twice or {}
        self.weights: list[LocalWeight] = []
        seen: set[int] = set()
        for module in modules:
            for name, parameter in module.named_parameters():
                if id(parameter) in seen:  # two stages of this rank share it
                    continue
                seen.add(id(parameter))
                weight = _locate(name, parameter, world, divisions.get(name))
                if name in twice:
                    weight.num_copies *= 2
                    weight.is_written = weight.is_written and twice[name]
                if (whole := aliases.get(name)) is not None:
                    weight.name = whole
                    weight.boxes = [(p._replace(name=whole), cut) for p, cut in weight.boxes]
                self.weights.append(weight)
        self._by_name = {weight.name: weight for weight in self.weights}
        self._views = [w for w in self.weights if w.local is not w.parameter]
        self.trained = [w for w in self.weights if w.parameter.requires_grad and w.local.numel()]
        self._tables = [table for each in modules for table in growing_tables(each).values()]
        self._tp_group = world.group("tp") if world is not None else None

    def named(self) -> dict[str, Tensor]:
        """Return what is held here, by name."""
        return {weight.name: weight.local for weight in self.weights}

    def named_trained(self) -> dict[str, Tensor]:
        """Return what is held here and trained, by name."""
        return {weight.name: weight.local for weight in self.trained}

    def cut(self, name: str, tensor: Tensor, suffix: str = "") -> list[TensorPart]:
        """Return something of the shape of a local weight as parts of a whole one."""
        return list(self._by_name[name].parts(tensor, suffix))

    def take_gradients(self) -> list[Tensor]:
        """Give every local tensor its gradient, and return those that there are.

        Where tokens are divided, the gradients of what is whole are sums over `tp`: one all-reduce
        for all of them.
        """
        partial: list[Tensor] = []
        for weight in self._views:
            grad = weight.parameter.grad
            if grad is None:
                weight.local.grad = None
                continue
            if isinstance(grad, DTensor):
                grad = self._as_weight(weight.parameter, grad, partial)
            weight.local.grad = grad
        if partial:
            _reduce_flat(partial, self._tp_group)
        return [w.local.grad for w in self.trained if w.local.grad is not None]

    def _as_weight(self, parameter: nn.Parameter, grad: DTensor, partial: list[Tensor]) -> Tensor:
        """Return a gradient as this rank holds the weight; what is to be summed is noted."""
        wanted = parameter.placements if isinstance(parameter, DTensor) else grad.placements
        if grad.placements == wanted:
            return grad._local_tensor
        if all(each.is_replicate() for each in wanted):
            partial.append(grad._local_tensor)
            return grad._local_tensor
        return grad.redistribute(placements=wanted)._local_tensor  # an embedding's

    def drop_gradients(self) -> None:
        """Free all gradients."""
        for weight in self.trained:
            weight.parameter.grad = None
        for weight in self._views:
            weight.local.grad = None
        for table in self._tables:
            table.drop_gradients()

    def share_tables(self, factor: float) -> None:
        """Add up the gradients of tables that grow over all ranks, which hold the same tables.

        Args:
            factor: what the sums are multiplied by.
        """
        if self.world is not None:
            for table in self._tables:
                table.share_gradients(self.world.gather_rows, factor)

    def norm_with_tables(self, norm: Tensor) -> Tensor:
        """Return the norm of the gradient of weights and of the rows of tables that grow.

        Args:
            norm: of the gradient of the weights, a scalar.
        """
        if not self._tables:
            return norm
        squares = [table.sum_of_squares().to(norm.device) for table in self._tables]
        return torch.stack([norm.square(), *squares]).sum().sqrt()

    def clip_tables(self, limit: float, norm: Tensor) -> None:
        """Shorten the gradients of tables that grow, as `clip_grads_with_norm_` those of weights.

        Args:
            limit: L2 norm of the whole gradient, at most.
            norm: what it is.
        """
        for table in self._tables:
            table.scale_gradients(min(1.0, limit / (float(norm) + 1e-6)))

    def step_tables(self) -> None:
        """Update the tables that grow: they are no weights, and have optimizers of their own."""
        for table in self._tables:
            table.step()

    def sum_of_squares(self, norm: Callable[[list[Tensor]], Tensor]) -> float:
        """Return this rank's share of the squared norm of the gradient: shares add up to it.

        Args:
            norm: L2 norm of tensors together.
        """
        by_copies: dict[int, list[Tensor]] = {}
        for weight in self.trained:
            if weight.local.grad is not None:
                by_copies.setdefault(weight.num_copies, []).append(weight.local.grad)
        shares = [float(norm(grads)) ** 2 / copies for copies, grads in by_copies.items()]
        num_ranks = 1 if self.world is None else self.world.size  # all hold the whole tables
        return sum(shares) + sum(float(t.sum_of_squares()) for t in self._tables) / num_ranks


def _reduce_flat(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    flat = flatten(tensors)
    dist.all_reduce(flat, group=group)
    unflatten_into(flat, tensors)


def _locate(
    name: str, parameter: nn.Parameter, world: World | None, division: Division | None
) -> LocalWeight:
    shape = tuple(parameter.shape)
    if world is None or not world.is_distributed:
        box = (Place(name, shape, (0,) * len(shape)), (slice(None),) * len(shape))
        return LocalWeight(name, parameter, parameter, shape, [box])
    plan, local = world.plan, parameter.data
    rows = [torch.arange(size) for size in shape]
    copies = plan.world_size // plan.pp
    is_written = world.coordinate("dp_replicate") == 0
    axes: tuple[str, ...] = ()
    if isinstance(parameter, DTensor):
        local = parameter._local_tensor.detach()
        axes = parameter.device_mesh.mesh_dim_names or ()
    if division is not None and "tp" in axes:
        order = rank_rows(shape[division.dim], division.groups, plan.tp)
        rows[division.dim] = order.chunk(plan.tp)[world.coordinate("tp")]
        copies //= plan.tp
    else:
        is_written = is_written and world.coordinate("tp") == 0
    shards, shard = plan.dp_shard * plan.cp, world.coordinate("shard")
    if "shard" in axes:
        chunks = rows[0].chunk(shards)
        rows[0] = chunks[shard] if shard < len(chunks) else rows[0][:0]
        copies //= shards
    else:
        is_written = is_written and shard == 0
    if 0 in shape:  # no number that a rank could have: the first one speaks of it
        is_written = is_written and shard == 0 and world.coordinate("tp") == 0
        boxes = [(Place(name, shape, (0,) * len(shape)), (slice(None),) * len(shape))]
    else:
        boxes = list(_boxes(name, shape, rows))
    return LocalWeight(name, parameter, local, shape, boxes, copies, is_written)


def _boxes(
    name: str, shape: tuple[int, ...], rows: Sequence[Tensor]
) -> Iterator[tuple[Place, tuple[slice, ...]]]:
    """Cut what is held into boxes that are boxes of the whole, too."""
    for runs in product(*(_runs(each) for each in rows)):
        offset = tuple(first for first, _ in runs)
        yield Place(name, shape, offset), tuple(cut for _, cut in runs)


def _runs(numbers: Tensor) -> list[tuple[int, slice]]:
    """Return the runs of neighbours: the first number, and where the run is."""
    if len(numbers) == 0:
        return []
    breaks = (numbers.diff() != 1).nonzero().flatten() + 1
    starts = [0, *breaks.tolist()]
    ends = [*starts[1:], len(numbers)]
    return [
        (int(numbers[start]), slice(start, end)) for start, end in zip(starts, ends, strict=True)
    ]
