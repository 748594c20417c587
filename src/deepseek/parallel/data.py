"""Data parallelism: gradients reduced between ranks that see other samples.

```
copies only                 DistributedDataParallel: buckets, reduced while backward goes on
weights divided as well     fully_shard (FSDP2): gathered before a block, reduced after it
copies of pipeline stages   buckets of our own, after the last micro-batch of the schedule
```
Papers: Li et al. 2020 (DDP), arXiv 2006.15704; Zhao et al. 2023 (FSDP), arXiv 2304.11277. All of
them average; the loss is multiplied by the number of ranks, for it is divided by the global count
of items already.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket, _compute_bucket_assignment_by_size
from torch._guards import detect_fake_mode
from torch.cuda import nccl
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel

from deepseek.config.parallel import ParallelConfig
from deepseek.parallel.flat import flatten, unflatten_into
from deepseek.parallel.world import World

MIB = 1 << 20


def replicate(engine: nn.Module, world: World, *, has_unused: bool) -> DistributedDataParallel:
    """Return a wrapper around `engine` that reduces gradients while the backward pass goes on.

    Args:
        engine: the model, the same on all ranks.
        world: the ranks.
        has_unused: whether some weights get no gradient.
    """
    settings, group = world.plan.settings, world.group("data")
    # buffers are averaged after the step, by `World.average`; the option has two names
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    is_default = settings.bucket_mib == ParallelConfig().bucket_mib
    # on paper buckets have no numbers, as weights have none
    with detect_fake_mode(list(engine.parameters())) or nullcontext():
        wrapped = DistributedDataParallel(
            engine,
            process_group=group,
            init_sync=False,  # `World.equalize` has done it
            # at its own default DDP makes the first bucket, which nothing else waits for, small
            bucket_cap_mb=None if is_default else settings.bucket_mib,  # pyright: ignore[reportArgumentType]
            gradient_as_bucket_view=True,
            find_unused_parameters=has_unused,
            **{buffers: False},  # pyright: ignore[reportArgumentType]
        )
    if world.is_paper:
        first = MIB if is_default else wrapped.bucket_bytes_cap
        wrapped.register_comm_hook((world, [first, wrapped.bucket_bytes_cap]), reduce_on_paper)
    elif settings.compression == "bf16":
        wrapped.register_comm_hook(group, default_hooks.bf16_compress_hook)
    elif settings.compression == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            group, matrix_approximation_rank=4, start_powerSGD_iter=10
        )
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return wrapped


def reduce_on_paper(
    state: tuple[World, list[int]], bucket: GradBucket
) -> torch.futures.Future[Tensor]:
    """Reduce a bucket among ranks that are imagined: torch's own hook waits for numbers of them.

    Args:
        state: the ranks; bytes of the first bucket and of the others, from the second step on.
        bucket: of the first step, whose buckets may be larger.
    """
    world, limits = state
    flat = bucket.buffer()
    if world.plan.settings.compression == "bf16":
        flat = flat.bfloat16()
    ready = bucket.parameters()[::-1]  # about the order in which a backward pass has them ready
    start = 0
    for indices in _compute_bucket_assignment_by_size(ready, limits)[0]:
        count = sum(ready[index].numel() for index in indices)
        dist.all_reduce(flat.narrow(0, start, count), group=world.group("data"))
        start += count
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def leaves_weights_out(engine: nn.Module, inputs: Tensor) -> bool:
    """Return whether some weight gets no gradient: DDP would wait for it.

    Args:
        engine: any model, which is left as it is.
        inputs: a small batch; what the model makes of zeros decides.
    """
    was_training = engine.training
    engine.eval()  # running statistics stay
    try:
        with torch.random.fork_rng(devices=[]):
            engine(inputs).sum().backward()
        return any(p.grad is None for p in engine.parameters() if p.requires_grad)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
        return False  # it shows in training, where the error has a batch to point at
    finally:
        engine.zero_grad(set_to_none=True)
        engine.train(was_training)


def shard(
    root: nn.Module,
    blocks: Sequence[nn.Module],
    world: World,
    dtype: torch.dtype | None,
    *,
    offloads: bool = False,
) -> None:
    """Divide the weights of `root` between ranks, block by block.

    Args:
        root: the model or a stage; changed in place.
        blocks: its parts that are gathered as one.
        world: the ranks.
        dtype: of gathered weights; `None`: their own.
        offloads: keep what is divided in the memory of the host.
    """
    if world.mesh is None:
        return
    has_copies = world.plan.dp_replicate > 1
    mesh = world.mesh[("dp_replicate", "shard")] if has_copies else world.mesh["shard"]
    compressed = torch.bfloat16 if world.plan.settings.compression == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=compressed if dtype is not None or compressed is torch.bfloat16 else None,
        cast_forward_inputs=False,  # autocast decides
    )
    # In a pipeline a block is used once per micro-batch: gathering it anew would cost as often.
    stays_whole = world.plan.pp > 1
    place = (
        CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if offloads else OffloadPolicy()
    )
    divide = partial(fully_shard, mesh=mesh, mp_policy=policy, offload_policy=place)
    for block in blocks:
        divide(block, reshard_after_forward=not stays_whole)
    divide(root, reshard_after_forward=False)


def reduces_now(wrapped: nn.Module, is_last: bool) -> AbstractContextManager:
    """Return a context in which gradients are only kept until the last micro-batch, with DDP.

    FSDP reduces after each: otherwise a rank would hold the gradients of the whole model.
    """
    if isinstance(wrapped, DistributedDataParallel) and not is_last:
        return wrapped.no_sync()
    if isinstance(wrapped, FSDPModule):
        wrapped.set_is_last_backward(is_last)
    return nullcontext()


def average_gradients(
    gradients: Sequence[Tensor], group: dist.ProcessGroup | None, settings: ParallelConfig
) -> None:
    """Average gradients in place over `group`, bucket by bucket."""
    if group is None:
        return
    limit = settings.bucket_mib * MIB
    bucket: list[Tensor] = []
    under_way: list[tuple[Tensor, list[Tensor], dist.Work | None]] = []

    def send() -> None:
        flat = flatten(bucket)
        if settings.compression == "bf16":
            flat = flat.bfloat16()
        under_way.append((flat, list(bucket), dist.all_reduce(flat, group=group, async_op=True)))
        bucket.clear()

    for grad in gradients:
        bucket.append(grad)
        if sum(each.nbytes for each in bucket) >= limit:
            send()
    if bucket:
        send()
    for flat, grads, work in under_way:
        if work is not None:
            work.wait()
        flat.div_(dist.get_world_size(group))
        unflatten_into(flat, grads)


def reduction(world: World, *, by_blocks: bool) -> str:
    """Return in words how gradients are reduced.

    Args:
        world: the ranks.
        by_blocks: whether the model says which its blocks are: else all of it is one unit.
    """
    plan, settings = world.plan, world.plan.settings
    if world.device.type == "cuda":
        version = ".".join(str(number) for number in nccl.version())
        algorithm = "its own choice" if settings.algorithm == "auto" else settings.algorithm
        library = f"NCCL {version} ({algorithm})"
    else:
        library = "Gloo (ring)"
    if plan.uses_fsdp:  # copies of a model that `tp` divides are shards of size one
        how = "reduce-scatter" if plan.dp_shard * plan.cp > 1 else "all-reduce"
        how += " block by block" if by_blocks else " all at once: no blocks are known"
    elif plan.pp > 1:
        how = f"all-reduce after the last micro-batch, in buckets of {settings.bucket_mib:g} MiB"
    else:
        how = f"all-reduce beside the backward pass, in buckets of {settings.bucket_mib:g} MiB"
    packed = "" if settings.compression == "none" else f", as {settings.compression}"
    return f"gradients: {how}{packed}, by {library}"
