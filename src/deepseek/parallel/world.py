"""The processes of a run: who is there, and what they agree on.

```
World.find(plan)      in one process: alone, every call below costs nothing
sum_items             how many items the loss of a step is a mean over
agree                 numbers that every rank needs, in one all-reduce a step
exchange, barrier     rare: names, places, verdicts in words
```
What is agreed on travels as host tensors, through Gloo also where gradients use NCCL: it neither
waits for the device's queue nor depends on it.
"""

import atexit
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import Store
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from deepseek import errors
from deepseek.config.parallel import ParallelConfig
from deepseek.errors import CommunicationError, ConfigError, DeepSeekError
from deepseek.parallel.plan import Plan
from deepseek.parallel.watch import Watch

T = TypeVar("T")
WATCH_MARGIN_S = 60.0
LEAVE_S = 0.2
_LOST = (
    "Connection closed by peer", "Connection reset", "Broken pipe", "Timed out waiting", "NCCL",
    "Connection refused", "Read error", "timed out", "failed to recv",
)  # fmt: skip
MESH_AXES = ("pp", "dp_replicate", "shard", "tp")
"""`shard` is dp_shard x cp: weights are divided between ranks that see other tokens, too."""


def processes() -> tuple[int, int]:
    """Return this process's rank, and how many there are, as torchrun or torch says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Return whether a launcher may start this process again, here or on another host."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "none") != "none"


class World:
    """The ranks of a run, or the one process there is.

    Attributes:
        plan: degrees of the axes.
        rank: of this process.
        size: number of processes.
        device: where this rank computes.
        mesh: those axes of `MESH_AXES` that have several ranks; `None` in one process.
        name: of this set of processes, if they were launched; after a restart there is another.
        is_paper: whether the other ranks are imagined (`deepseek.parallel.paper`): they always
            agree, and what collectives bring is no numbers.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan = plan
        self.device = device
        self.rank, self.size = processes() if plan.is_distributed else (0, 1)
        # the only process left of a launch may not be the only one that is alive
        self.name = uuid4().hex[:12] if is_launched() else ""
        self.mesh: DeviceMesh | None = None
        self._data_group: dist.ProcessGroup | None = None
        self._cp_group: dist.ProcessGroup | None = None
        self.is_paper = False
        if plan.is_distributed:
            _start(plan, device)
            self.is_paper = dist.get_backend() == "fake"
            self.name = self._agree_on_plan(self.name or uuid4().hex[:12])
            self.mesh = _make_mesh(plan, device)
            self._data_group = _data_group(self.mesh)
            if plan.cp > 1:
                self._cp_group = _context_group(plan, self.mesh, self.rank)
        self._watch: Watch | None = None

    def _agree_on_plan(self, name: str) -> str:
        """Return rank 0's name for this set of processes.

        Raises:
            ConfigError: ranks have different plans, and would wait for each other for ever.
        """
        found = self.exchange([name, self.plan.describe()])
        for rank, (_, plan) in enumerate(found):
            if plan != found[0][1]:
                raise ConfigError(
                    f"rank 0 has the plan {found[0][1]}, and rank {rank} {plan}",
                    fix="start all processes with the same settings; parallel=auto needs hosts of"
                    " the same kind: write the plan out",
                )
        return found[0][0]

    @classmethod
    def alone(cls, device: torch.device | None = None) -> "World":
        """Return the world of one process."""
        return cls(Plan(ParallelConfig()), device or torch.device("cpu"))

    # -- time-outs ---------------------------------------------------------------------------

    def begin_watch(self, folder: Path, on_hang: Callable[[str], None]) -> None:
        """Look after the other ranks from now on; see `Watch`.

        Args:
            folder: where stacks go if a rank hangs.
            on_hang: told what is said then.
        """
        if not self.is_distributed:
            return
        settings = self.plan.settings
        groups = {
            str(group.group_name): axis
            for axis in ("tp", "pp", "cp", "data")
            if (group := self.group(axis)) is not None
        }
        groups[str(dist.distributed_c10d._get_default_group().group_name)] = "all ranks"
        self._watch = Watch(
            self.rank, self.size, self.store(), f"deepseek/{self.name}", groups=groups,
            start_timeout_s=settings.start_timeout_s, timeout_s=settings.timeout_s,
            on_hang=on_hang,
        )  # fmt: skip
        self._watch.folder = folder

    def mark(self, phase: str, step: int | None = None) -> None:
        """Say what this rank is at now."""
        if self._watch is not None:
            self._watch.mark(phase, step)

    def note_progress(self) -> None:
        """Say that this rank has come further with what it is at: a micro-batch, a window."""
        if self._watch is not None:
            self._watch.note_progress()

    def end_watch(self) -> None:
        """Stop looking after the others."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def explain_loss(self, error: Exception) -> CommunicationError | None:
        """Return in words what a failed collective means; `None` if it is another error."""
        text = str(error).splitlines()[0] if str(error) else ""
        if self._watch is None or not any(word in text for word in _LOST):
            return None
        return CommunicationError(
            f"{self._watch.explain()}\n  ({text})",
            fix="look at the log of that rank first; deepseek doctor looks at the network, and"
            " deepseek train --resume goes on from the last checkpoint",
        )

    # -- who is who --------------------------------------------------------------------------

    @property
    def is_distributed(self) -> bool:
        """Whether there are other processes."""
        return self.size > 1

    @property
    def _is_alone(self) -> bool:
        return not self.is_distributed or self.is_paper

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run folder and speaks."""
        return self.rank == 0

    def coordinate(self, axis: str) -> int:
        """Return this rank's place on an axis of the plan or of the mesh."""
        if axis == "cp":
            return self.coordinate("shard") % self.plan.cp
        if axis == "dp_shard":
            return self.coordinate("shard") // self.plan.cp
        mesh = self._mesh_with(axis)
        return 0 if mesh is None else mesh.get_local_rank(axis)

    @property
    def share(self) -> tuple[int, int]:
        """Which part of every batch this rank computes, and of how many."""
        part = self.coordinate("dp_replicate") * self.plan.dp_shard + self.coordinate("dp_shard")
        return part, self.plan.num_shares

    @property
    def speaks_for_outputs(self) -> bool:
        """Whether this rank, of those with the same outputs, is the one that counts them."""
        last = 0 if self.plan.is_v_shaped else self.plan.pp - 1
        return self.coordinate("tp") == 0 and self.coordinate("pp") == last

    def group(self, axis: str) -> dist.ProcessGroup | None:
        """Return the ranks that differ from this one on an axis alone; `None` if there are none.

        Args:
            axis: `tp`, `pp`, `cp`, or `data`: all that reduce gradients with each other.
        """
        if axis == "data":
            return self._data_group
        if axis == "cp":
            return self._cp_group
        mesh = self._mesh_with(axis)
        return None if mesh is None else mesh.get_group(axis)

    def seed(self, seed: int) -> None:
        """Seed torch's generators: ranks that hold the same activations draw the same numbers."""
        part = self.share[0] * self.plan.cp + self.coordinate("cp")
        stream = part * self.plan.pp + self.coordinate("pp")
        # an odd constant of 63 bits spreads neighbouring seeds; alone, the seed is as given
        torch.manual_seed((seed + stream * 0x1F3D_5B79_A8C6_E425) % 2**63)

    def _mesh_with(self, axis: str) -> DeviceMesh | None:
        has_it = self.mesh is not None and axis in (self.mesh.mesh_dim_names or ())
        return self.mesh if has_it else None

    # -- agreement ---------------------------------------------------------------------------

    def start_sum_items(self, count: int) -> "ItemCount":
        """Begin to add up items over the ranks that see different ones."""
        return ItemCount(count, None if self.is_paper else self._data_group)

    def agree(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of `numbers` over all ranks, the same bits on each."""
        if self._is_alone:
            return [self.size * number for number in numbers]
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def any(self, is_so: bool) -> bool:
        """Return whether it is so on any rank."""
        return self.agree([float(is_so)])[0] > 0

    def exchange(self, value: object) -> list:
        """Return what every rank gave, in their order; JSON-able."""
        if self._is_alone:
            return [value] * self.size
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = data
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return [
            json.loads(bytes(each[: int(size)].tolist()))
            for each, size in zip(found, sizes, strict=True)
        ]

    def lead(self, act: Callable[[], T]) -> T:
        """Let rank 0 act, and return on every rank what it returned; JSON-able.

        Raises:
            DeepSeekError: it failed there; on rank 0 whatever `act` raised.
        """
        if self._is_alone:
            return act()
        outcome, raised = None, None
        if self.is_main:
            try:
                outcome = {"value": act()}
            except Exception as error:  # whatever it is, the others must not wait for it
                raised = error
                is_own = isinstance(error, DeepSeekError)
                told = error if is_own else CommunicationError(f"rank 0: {error}")
                outcome = {"error": [type(told).__name__, told.message, told.fix, told.see]}
        found = self.exchange(outcome)[0]
        if raised is not None:
            raise raised
        if "error" in found:
            name, message, fix, see = found["error"]
            raise getattr(errors, name, DeepSeekError)(message, fix=fix, see=see)
        return found["value"]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.agree([0.0])

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Return the rows of all ranks, one after the other; any number of rows each.

        Args:
            tensor: (N, ...) on the host.
        """
        if not self.is_distributed:
            return tensor
        counts = [int(n) for n in self.exchange(len(tensor))]
        padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([each[:count] for each, count in zip(found, counts, strict=True)])

    @torch.no_grad()
    def equalize(self, module: nn.Module) -> None:
        """Give every rank the weights and buffers of rank 0."""
        if self._is_alone:
            return
        tensors = [*module.parameters(), *module.buffers()]
        for tensor in tensors:
            on_host = tensor.detach().cpu().contiguous()
            dist.broadcast(on_host, src=0)
            tensor.copy_(on_host)

    def store(self) -> Store | None:
        """Return a connection of its own to the key-value store that ranks met by."""
        if not self.is_distributed:
            return None
        return dist.distributed_c10d._get_default_store().clone()

    @torch.no_grad()
    def average(self, changed: Sequence[tuple[Tensor, Tensor]], weight: float) -> None:
        """Average what ranks that see different samples have made of the same tensors, in place.

        Args:
            changed: floating-point tensors as they are, and as they were on every rank.
            weight: of this rank, its number of samples.
        """
        if self._data_group is None or not changed:
            return
        # differences: what nobody has changed stays as it is, to the bit
        parts = [(now.double() - before.double()).reshape(-1) for now, before in changed]
        flat = torch.cat([*parts, parts[0].new_ones(1)]) * weight
        dist.all_reduce(flat, group=self._data_group)
        means = (flat[:-1] / flat[-1].clamp(min=1e-9)).split([part.numel() for part in parts])
        for (now, before), mean in zip(changed, means, strict=True):
            now.copy_(before.double() + mean.view_as(before))


class ItemCount:
    """A sum of counts under way; `get` waits for it."""

    def __init__(self, count: int, group: dist.ProcessGroup | None) -> None:
        self._count = count
        self._work = None
        if group is not None:
            self._sum = torch.tensor([count], dtype=torch.int64)
            self._work = dist.all_reduce(self._sum, group=group, async_op=True)

    def get(self) -> int:
        """Return the sum."""
        if self._work is not None:
            self._work.wait()
            self._work, self._count = None, int(self._sum)
        return self._count


def _start(plan: Plan, device: torch.device) -> None:
    """Meet the other processes, unless the script has done so."""
    if dist.is_initialized():
        _check_host_backend()
        return
    if plan.settings.algorithm != "auto" and device.type == "cuda":
        os.environ.setdefault("NCCL_ALGO", plan.settings.algorithm.capitalize())
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # what each rank has entered
    settings = plan.settings
    longest = max(settings.start_timeout_s, settings.timeout_s)
    try:
        # our watch speaks first; torch's own time-out is there for what it cannot see
        dist.init_process_group(backend, timeout=timedelta(seconds=longest + WATCH_MARGIN_S))
    except (ValueError, RuntimeError, dist.DistError) as error:
        raise ConfigError(
            f"the {plan.world_size} processes do not find each other: {str(error).splitlines()[0]}",
            fix="start them with deepseek launch (or torchrun); deepseek doctor looks at the"
            " network",
            see="docs/errors.md#communication",
        ) from error
    atexit.register(_leave)


def _check_host_backend() -> None:
    """Refuse processes that have met for what is on a device alone.

    Raises:
        ConfigError: nothing sends what is on the host, which ranks agree by.
    """
    backends = dist.get_backend_config()
    if not any(each.startswith("cpu:") for each in backends.split(",")):
        raise ConfigError(
            f"the script has called init_process_group for {backends}, and ranks agree by what is"
            " on the host",
            fix='init_process_group("cpu:gloo,cuda:nccl"), or leave it out: the run begins it',
            see="docs/errors.md#communication",
        )


def _leave() -> None:
    if dist.is_initialized():
        # A thread of Gloo that lets go of a collective's tensors while the interpreter ends would
        # abort the process: they have time to do so, and the collector must not hold any back.
        gc.collect()
        time.sleep(LEAVE_S)
        dist.destroy_process_group()


def _make_mesh(plan: Plan, device: torch.device) -> DeviceMesh:
    """Return a mesh without axes of one rank: each would cost a group, whose threads never rest."""
    sizes = (plan.pp, plan.dp_replicate, plan.dp_shard * plan.cp, plan.tp)
    # copies of what `tp` divides are shards of size one to fully_shard
    axes = {
        axis: size
        for axis, size in zip(MESH_AXES, sizes, strict=True)
        if size > 1 or (axis == "shard" and plan.uses_fsdp)
    }
    return init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))


def _data_group(mesh: DeviceMesh) -> dist.ProcessGroup | None:
    """Return the ranks that reduce gradients with each other."""
    names = mesh.mesh_dim_names or ()
    axes = tuple(axis for axis in ("dp_replicate", "shard") if axis in names)
    if not axes:
        return None
    if axes == names:
        return dist.group.WORLD
    data = mesh[axes]
    return (data if len(axes) == 1 else data._flatten("data")).get_group()


def _context_group(plan: Plan, mesh: DeviceMesh, rank: int) -> dist.ProcessGroup:
    """Return the group of neighbours on `shard` with the same samples."""
    if plan.dp_shard == 1:
        return mesh.get_group("shard")
    ranks = torch.arange(plan.world_size).view(-1, plan.cp, plan.tp)
    rows = ranks.transpose(1, 2).reshape(-1, plan.cp).tolist()
    groups = [dist.new_group(row) for row in rows]  # every rank takes part in making each
    at = next(at for at, row in enumerate(rows) if rank in row)
    return groups[at]  # pyright: ignore[reportReturnType]
