"""What tells a lack of memory from any other failure, and where it is the end."""

from typing import NoReturn

import torch

from deepseek.errors import ConfigError

# torch's CPU allocator raises a plain RuntimeError; so do cuBLAS and cuDNN, which have memory of
# their own
_WORDS = (
    "can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that the device or the host ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def first_line(error: BaseException) -> str:
    """Return what torch said of the lack, in a line."""
    return str(error).splitlines()[0] if str(error) else "out of memory"


def free_cache(device: torch.device) -> None:
    """Give back what the allocator of a GPU keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def check_can_halve(micro_batch_size: int, rank: int, why_not: str, shortage: str) -> None:
    """Refuse to go on with smaller micro-batches where that cannot be.

    Args:
        micro_batch_size: samples that did not fit.
        rank: that ran out.
        why_not: in words, why one of several ranks cannot; empty where it can.
        shortage: what torch said.

    Raises:
        ConfigError: it cannot be.
    """
    if micro_batch_size == 1:
        raise ConfigError(
            f"one sample alone does not fit into memory: {shortage}",
            fix="set memory=full or precision=bf16, use smaller inputs or a smaller model, or"
            " divide it: fsdp, tp",
            see="docs/errors.md#memory",
        )
    if why_not:
        raise ConfigError(
            f"rank {rank} is out of memory with micro-batches of {micro_batch_size} samples, and"
            f" cannot halve them: {why_not}: {shortage}",
            fix="raise grad_accum_steps (or parallel.micro_batches in a pipeline), or divide the"
            " model further: fsdp, tp",
            see="docs/errors.md#memory",
        )


def refuse_update_in_backward(shortage: str) -> NoReturn:
    """Say that a step cannot begin anew that has updated weights already.

    Args:
        shortage: what torch said.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        f"out of memory in a backward pass that updates weights: {shortage}",
        fix="set memory=pointwise, selective or full, a smaller batch_size, or"
        " grad_accum_steps and optimizer_in_backward=false",
        see="docs/errors.md#memory",
    )
