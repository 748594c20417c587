"""Which collectives are asked for: by DTensor, DDP's reducer, FSDP, a pipeline or ourselves.

Torch's `CommDebugMode` counts the same ones, by their names; here are the bytes and the ranks.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves

KINDS = {
    "all_reduce": "all_reduce", "allreduce_": "all_reduce", "all_reduce_": "all_reduce",
    "_allgather_base_": "all_gather", "allgather_": "all_gather",
    "all_gather_into_tensor": "all_gather", "all_gather_into_tensor_out": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter", "reduce_scatter_tensor": "reduce_scatter",
    "broadcast_": "broadcast", "send": "send", "recv_": "receive",
}  # fmt: skip
NAMESPACES = ("c10d", "_c10d_functional")
SILENT = {"wait_tensor", "_wrap_tensor_autograd", "_wrap_tensor_with_hook"}
_REDUCTIONS = ("sum", "avg", "max", "min")


class Collective(NamedTuple):
    """One collective.

    Attributes:
        phase: what was going on, as whoever counts says.
        kind: all_reduce, all_gather, reduce_scatter, broadcast, send or receive.
        numel: numbers in the whole tensor: what is reduced, or what all have gathered.
        num_bytes: of the whole tensor.
        degree: ranks that take part.
        group: name of their process group.
        is_functional: asked for inside the model, by a DTensor.
    """

    phase: str
    kind: str
    numel: int
    num_bytes: int
    degree: int
    group: str = ""
    is_functional: bool = False

    @property
    def sent_bytes(self) -> float:
        """What each rank sends in a ring: an all-reduce is a reduce-scatter and an all-gather."""
        if self.kind in ("send", "receive"):
            return float(self.num_bytes if self.kind == "send" else 0)
        turns = 2 if self.kind == "all_reduce" else 1
        return turns * self.num_bytes * (self.degree - 1) / self.degree


class Collectives(TorchDispatchMode):
    """Notes every collective in the order in which they are asked for.

    Args:
        phase: what is going on now; kept with each.
    """

    def __init__(self, phase: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self.seen: list[Collective] = []
        self._phase = phase

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(is_traceable_wrapper_subclass_type(each) for each in types):
            return NotImplemented  # what DTensor makes of it comes by again
        name = func.__name__.partition(".")[0]
        if func.namespace in NAMESPACES and name not in SILENT:
            self.seen.append(self._describe(func.namespace, name, args))
        return func(*args, **(kwargs or {}))

    def _describe(self, namespace: str, name: str, args: tuple) -> Collective:
        tensors = [each for each in tree_leaves(args) if isinstance(each, Tensor)]
        count = max(each.numel() for each in tensors)
        group = find_group(args)
        if name == "all_gather_into_tensor":  # functional: the output is not there yet
            count *= group.size()
        elif name == "allgather_":
            count = sum(each.numel() for each in tree_leaves(args[0]))
        num_bytes = count * tensors[0].element_size()
        return Collective(
            self._phase(), KINDS.get(name, name), count, num_bytes, group.size(),
            str(group.group_name), namespace != "c10d",
        )  # fmt: skip


def find_group(args: tuple) -> dist.ProcessGroup:
    """Return the process group among the arguments of a collective."""
    for each in tree_leaves(args):
        if isinstance(each, str) and each not in _REDUCTIONS:
            return c10d._resolve_process_group(each)  # pyright: ignore[reportArgumentType, reportPrivateImportUsage]
        if isinstance(each, torch.ScriptObject) and "ProcessGroup" in str(each._type()):
            return dist.ProcessGroup.unbox(each)
    raise TypeError("a collective without a process group")
