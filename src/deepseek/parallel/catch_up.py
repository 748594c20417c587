"""A rank whose pass has failed enters the collectives that the others still wait for.

The others are in the midst of the same forward and backward pass, and cannot be told. But what
they gather and reduce there are weights and gradients, whose sizes do not depend on the samples. So
the failed rank goes through the rest of the pass with next to none:

```
fully_shard   its state is reset; then a pass of a sample or two, in which the collectives that were
              entered before the failure are left out
DDP           the buckets that were not reduced yet, as zeros: what a joined rank of torch's `Join`
              does; then every rank wraps the model anew
```
What comes of it is thrown away, on all ranks: at the end of the step they agree to begin it again.
"""

from collections import Counter
from collections.abc import Callable
from functools import cached_property

import torch.distributed as dist
from torch._C._distributed_c10d import FakeWork
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.collectives import find_group

_OF_FSDP = {"_allgather_base_", "_reduce_scatter_base_", "allreduce_"}


class CatchUp:
    """Brings this rank to the end of a pass that failed here and goes on elsewhere.

    Args:
        parallel: the model as this rank computes it.
    """

    def __init__(self, parallel: ParallelModel) -> None:
        self._parallel = parallel
        self._entered: Counter[str] = Counter()
        self._is_in_backward = False

    def why_not(self) -> str:
        """Return in words why it cannot be done under this plan; empty where it can."""
        parallel, plan = self._parallel, self._parallel.world.plan
        if plan.tp > 1 or plan.cp > 1 or plan.pp > 1:
            return (
                f"parallel={plan.describe()} sends activations, whose sizes depend on the samples"
            )
        if parallel.is_compiled:
            return "graph=static would compile anew for it"
        if plan.settings.compression == "powersgd":
            return "compression=powersgd keeps what it has not sent"
        if isinstance(parallel.forward, DistributedDataParallel):
            unused = parallel.forward.find_unused_parameters
            return "the model leaves weights out in some steps" if unused else ""
        root = parallel.engine.module
        if isinstance(root, FSDPModule) and callable(getattr(root, "reset_iter_state", None)):
            return ""
        return "this torch cannot begin anew after a failed pass (2.13 can)"

    def begin(self) -> None:
        """Note what has been entered before the collectives of a micro-batch."""
        self._is_in_backward = False
        self._entered = Counter({name: _count(group) for name, group in self._groups.items()})

    def enter_backward(self) -> None:
        """The backward pass begins, the only one with collectives of DDP that come again."""
        if isinstance(self._parallel.forward, DistributedDataParallel):
            self.begin()
            self._is_in_backward = True

    def finish(self, is_last: bool, compute_little: Callable[[], object]) -> None:
        """Enter what is left of the collectives of a micro-batch.

        Args:
            is_last: whether it is the step's last one.
            compute_little: takes next to no samples forward and backward.
        """
        entered = Counter({n: _count(g) - self._entered[n] for n, g in self._groups.items()})
        wrapped = self._parallel.forward
        self._parallel.weights.drop_gradients()
        if isinstance(wrapped, DistributedDataParallel):
            if is_last:
                _reduce_rest(wrapped, entered.total() if self._is_in_backward else 0)
            return
        root = self._parallel.engine.module
        if isinstance(root, FSDPModule):
            root.reset_iter_state()
        with _Skipping(entered):
            compute_little()

    def renew(self) -> None:
        """Make the model as good as new; every rank calls it, whether it failed or not."""
        if isinstance(self._parallel.forward, DistributedDataParallel):
            self._parallel.wrap()

    @cached_property
    def _groups(self) -> dict[str, dist.ProcessGroup]:
        world = self._parallel.world
        if world.is_paper:
            return {}
        names = world.mesh.mesh_dim_names if world.mesh is not None else None
        found = [world.group(name) for name in (*(names or ()), "data")]
        return {str(group.group_name): group for group in found if group is not None}


def _count(group: dist.ProcessGroup) -> int:
    return group._get_sequence_number_for_group()  # pyright: ignore[reportAttributeAccessIssue]


def _reduce_rest(wrapped: DistributedDataParallel, num_reduced: int) -> None:
    reducer = wrapped.reducer
    rest = reducer._get_zeros_like_grad_buckets()[num_reduced:]
    for work in [reducer._run_comm_hook(bucket) for bucket in rest]:
        work.wait()


class _Skipping(TorchDispatchMode):
    """Leaves out the first collectives of each group, as if they had brought zeros."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._left = Counter(counts)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and func.__name__.partition(".")[0] in _OF_FSDP:
            name = str(find_group(args).group_name)
            if self._left[name] > 0:
                self._left[name] -= 1
                for tensor in args[0] if isinstance(args[0], list) else [args[0]]:
                    tensor.zero_()
                return args[0], FakeWork().boxed()
        return func(*args, **(kwargs or {}))
