"""The peak of a rank's step, walked on paper beside the real ranks.

The whole model is mirrored before it is divided: weights with shapes only. At the start of the run
the mirror is divided again, among ranks that are imagined, and takes one step; see `dry_run`.
"""

import copy
import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from deepseek.memory.host_copies import HostCopies
from deepseek.memory.mirror import mirror
from deepseek.models import ModelEngine
from deepseek.parallel.paper import ranks_aside
from deepseek.parallel.plan import Plan
from deepseek.trainer.dry_run import Walk, in_words
from deepseek.trainer.memory_budget import NAMES

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer


class WalkedPeak(NamedTuple):
    """What a rank has at the peak of a step.

    Attributes:
        parts: bytes by category.
        host_bytes: of activations that wait on the host.
        why_not: reason that there is none, in words.
    """

    parts: dict[str, int]
    host_bytes: int = 0
    why_not: str = ""


def is_divided(plan: Plan) -> bool:
    """Return whether ranks have other weights or activations than the whole model has."""
    return plan.divides_weights or plan.pp > 1 or plan.cp > 1


def wants_prediction(trainer: "Trainer") -> bool:
    """Return whether a peak is to be predicted: it is asked for, or a budget needs it."""
    return trainer.config.predict_memory or trainer.config.memory not in NAMES


def mirror_whole(trainer: "Trainer") -> ModelEngine | None:
    """Return a trainer's model with shapes only, to be walked on paper, before it is divided.

    `None`: nothing is to be walked, or the model cannot be copied.
    """
    if trainer.world.is_paper or not is_divided(trainer.plan) or not wants_prediction(trainer):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mirror(trainer.model, "cpu", FakeTensorMode(allow_non_fake_inputs=True))
    except Exception:  # any model may hold anything
        return None


def walk_peak(trainer: "Trainer") -> WalkedPeak:
    """Take a step on paper as this rank; the other ranks do not take part."""
    if trainer.mirrored is None:
        return WalkedPeak({}, why_not="the model cannot be copied without its numbers")
    world, notes = trainer.world, []
    devices = [torch.cuda.current_device()] if trainer.device.type == "cuda" else []
    with (
        ranks_aside(world.size, world.rank),
        torch.random.fork_rng(devices),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the run says them itself
        try:
            walk = Walk(_on_paper(trainer, trainer.mirrored), notes, counts_traffic=False)
            _take_policy(trainer, walk)
            walk.take_step()
        except Exception as error:  # any model and any task may do anything
            return WalkedPeak({}, why_not=in_words(error))
    if walk.why_not:
        return WalkedPeak({}, why_not=walk.why_not)
    return WalkedPeak(walk.peak(), walk.host_bytes())


def _on_paper(trainer: "Trainer", mirrored: ModelEngine) -> "Trainer":
    """Return a trainer like this one, which shares nothing with it that a step changes."""
    paper = copy.copy(trainer)
    paper.model, paper.mirrored = mirrored, None
    paper.task = copy.copy(trainer.task)
    paper.train_loader, paper.val_loader = copy.copy(trainer.train_loader), None
    paper.config = trainer.config.model_copy(
        update={"memory": trainer.assembly.step.graph.memory.name}
    )
    paper.forget_world()
    return paper


def _take_policy(trainer: "Trainer", walk: Walk) -> None:
    """Give the walk what a budget has come to, and micro-batches as they are by now."""
    real, own = trainer.assembly.step, walk.step
    own.micro_batch_size = real.micro_batch_size
    memory, given = own.graph.memory, real.graph.memory
    memory.recomputed, memory.remade_places = given.recomputed, given.remade_places
    memory.copied_places, memory.keeps_norms = given.copied_places, given.keeps_norms
    if given.copies is not None:
        walk.copy_to_host(HostCopies())
