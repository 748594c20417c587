"""What may wait on the host without making a step slower: measured before the first step."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from deepseek.memory.budget import Host
from deepseek.memory.host_link import HostLink, measure_link
from deepseek.trainer.probe import free_host_bytes
from deepseek.trainer.task import Batch

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

HOST_SHARE = 0.25
"""Of the host's free memory that activations may take: pinned blocks are rounded up to powers of
two, and loaders need some."""
FORWARD_SHARE = 1 / 3
"""Of a pass: the backward pass does twice the forward's work."""


class Pace(NamedTuple):
    """How fast a micro-batch is computed, and copied.

    Attributes:
        pass_s: seconds of a full micro-batch forward and backward; 0 where nobody has asked.
        link: to the host; `None`: copies are wanted at any cost.
        room: bytes that the host has for this rank.
    """

    pass_s: float
    link: HostLink | None
    room: float

    @property
    def forward_s(self) -> float:
        """Seconds of the forward pass, which is what recomputing everything costs."""
        return FORWARD_SHARE * self.pass_s

    def host(self, kept: float, scale: float) -> Host:
        """Return what the host may take of a pass that is smaller by `scale` than a micro-batch.

        Args:
            kept: bytes of a micro-batch, all of which may go if there is room.
            scale: how much smaller the pass is.
        """
        if self.link is None:
            return Host(math.inf)
        hidden = self.link.hidden_bytes(self.forward_s, self.pass_s - self.forward_s)
        return Host(min(hidden, self.room) / scale, self.link if kept <= self.room else None)


def find_pace(trainer: "Trainer", share: float) -> Pace | None:
    """Measure the link to the host, and a pass of as many samples as memory is allowed for.

    Args:
        trainer: whose budget is resolved.
        share: of what a micro-batch keeps under `pointwise` that is allowed.

    Returns:
        `None` where the host takes nothing: its memory is the device's, or all may be kept.
    """
    if trainer.config.offload == "activations":
        return Pace(0.0, None, math.inf)
    link = measure_link(trainer.device)
    # every rank takes the passes, or none
    if link is None or not trainer.world.any(share < 1):
        return None
    step = trainer.assembly.step
    wanted = int(step.micro_batch_size * min(1.0, share))
    size = max(1, min(trainer.world.exchange(wanted)))
    with trial_batch(trainer, size) as batch:
        step.accumulate_once(batch)  # kernels are chosen for its shapes
        _wait(trainer.device)
        began = perf_counter()
        step.accumulate_once(batch)
        _wait(trainer.device)
        taken_s = perf_counter() - began
    is_part = step.parallel.pipeline is None
    free, ranks = free_host_bytes(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    room = math.inf if free is None else HOST_SHARE * free / ranks
    return Pace(taken_s * step.micro_batch_size / size if is_part else taken_s, link, room)


@contextmanager
def trial_batch(trainer: "Trainer", num_samples: int) -> Iterator[Batch]:
    """Return a context of passes that leave nothing behind, with the next batch of the data.

    Args:
        trainer: whose data stays where it is.
        num_samples: that the batch is cut to; not for a pipeline, which takes whole ones only.
    """
    step, loader = trainer.assembly.step, trainer.train_loader
    place, graph = loader.state_dict(), step.graph
    counts = graph.num_compiled, graph.num_eager  # of the run's own micro-batches
    step.boundary.open(is_step=False)
    batch = next(iter(loader), None) or next(iter(loader))  # an epoch may have just ended
    loader.load_state_dict(place)
    if step.parallel.pipeline is None:
        batch = {name: value[:num_samples] for name, value in batch.items()}
    try:
        yield batch
    finally:
        step.abandon()
        step.boundary.close()
        graph.num_compiled, graph.num_eager = counts


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
