"""A budget of memory becomes a policy: by trial passes before the first step, as if never taken.

```
look      what a pass of a few samples keeps under `pointwise`, and what giving it up would cost
choose    the cheapest way (`deepseek.memory.budget`); where whole blocks are to be recomputed, look
          again with those recomputed
check     the peak that is predicted with it: where it exceeds a number of bytes, choose again
```
Ranks that hold the same blocks do the same: what they recompute they compute together.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from deepseek.config.memory import parse_bytes
from deepseek.errors import ConfigError
from deepseek.memory.budget import Census, Choice, Group, choose
from deepseek.memory.epsilons import Epsilons
from deepseek.memory.host_copies import HostCopies
from deepseek.trainer.compiled_share import fit_share, tell_kept
from deepseek.trainer.console import MIB
from deepseek.trainer.footprint import describe_savings, predict_footprint
from deepseek.trainer.held_bytes import held_bytes
from deepseek.trainer.host_pace import Pace, find_pace, trial_batch
from deepseek.trainer.memory_budget import NAMES
from deepseek.trainer.throughput import resident_bytes

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

MARGIN = 1.03
"""What a step takes for a moment, beside what is kept: buffers of kernels, a product's output."""
MAX_TRIES = 3
"""Choices that may turn out to be too much before all that can be given up is."""


def keep_to_budget(trainer: "Trainer") -> None:
    """Resolve a budget; every rank calls it.

    Raises:
        ConfigError: not even recomputing everything keeps to a number of bytes, on some rank.
    """
    setting = trainer.config.memory
    if setting in NAMES:
        return
    with _uncompiled(trainer) as is_compiled:
        trial = _Trial(trainer, is_compiled=is_compiled)
        if isinstance(setting, float):
            trial.settle(setting * trial.everything)
        else:
            _settle_bytes(trial, parse_bytes(str(setting)))
    if is_compiled and not trainer.world.is_distributed:
        fit_share(trainer, trial.allowed)
    trial.tell()
    if isinstance(setting, float):
        _warn_of_too_little(trial, setting)
    if is_compiled:
        tell = partial(tell_kept, trainer, trial.allowed, trial.everything)
        trainer.assembly.step.graph.on_compiled = tell


def _settle_bytes(trial: "_Trial", limit: int) -> None:
    """Choose until the peak that is predicted on every rank is within `limit` bytes."""
    trainer = trial.trainer
    fixed, tries = _fixed_bytes(trainer) * MARGIN, 0
    allowed = limit - fixed
    while True:
        trial.settle(allowed if tries < MAX_TRIES else -math.inf)
        trainer.footprint = footprint = predict_footprint(trainer).footprint
        found = trainer.world.exchange(
            [footprint.peak, footprint.describe()]
            if footprint is not None
            else [fixed + trial.kept_bytes, ""]
        )
        peak, rank = max((peak, rank) for rank, (peak, _) in enumerate(found))
        if peak <= limit:
            return
        if not trainer.world.any(not trial.is_least):
            break
        allowed, tries = allowed - (peak - limit), tries + 1
    where = f" on rank {rank}" if trainer.world.is_distributed else ""
    what = found[rank][1] or f"about {peak / MIB:,.0f} MiB"
    raise ConfigError(
        f"memory={trainer.config.memory} cannot be kept to: the least is {what}{where}",
        fix="raise memory or grad_accum_steps, or divide the model: parallel=fsdp",
        see="docs/errors.md#memory",
    )


def _warn_of_too_little(trial: "_Trial", setting: float) -> None:
    """Say what is reached of a share that cannot be."""
    trainer = trial.trainer
    found = trainer.world.exchange([trial.kept_bytes, trial.everything, trial.is_enough])
    short = [(kept / everything, kept) for kept, everything, is_enough in found if not is_enough]
    if not short:
        return
    share, kept = max(short)
    blocks = " with every block recomputed" if trial.policy.blocks else ""
    trainer.warn(
        f"memory={setting:g} cannot be kept to: {share:.1%} of the activations,"
        f" {kept / MIB:,.1f} MiB of a micro-batch, are left{blocks}. Set a larger"
        " trainer.grad_accum_steps (they fall with the micro-batch), loss_chunks (for a language"
        f" model's logits), or offload=activations on a GPU. {describe_savings(trainer)}"
    )


@contextmanager
def _uncompiled(trainer: "Trainer") -> Iterator[bool]:
    """Let passes run operator by operator; yields whether a step of the run will not."""
    graph = trainer.assembly.step.graph
    is_static, compiles, compiles_loss = graph.is_static, graph.memory.compiles, graph.compiles_loss
    graph.is_static = graph.memory.compiles = graph.compiles_loss = False
    is_compiled = is_static or compiles
    try:
        with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            yield is_compiled
    finally:
        graph.is_static, graph.memory.compiles = is_static, compiles
        graph.compiles_loss = compiles_loss


class _Trial:
    """Trial passes, and the policy that they lead to.

    Args:
        trainer: whose policy is set.
        is_compiled: whether steps are: blocks are recomputed all or none then, and the rest is the
            compiler's to choose.

    Attributes:
        everything: bytes of all activations of a micro-batch.
        kept_bytes: of them, what is left.
        allowed: of them, what may be left; or what is, if that is more.
        is_enough: whether that is what was allowed.
        is_least: whether nothing more can be given up.
    """

    def __init__(self, trainer: "Trainer", *, is_compiled: bool) -> None:
        self.trainer = trainer
        self.policy = trainer.assembly.step.graph.memory
        self._is_compiled = is_compiled
        self._paces: list[Pace | None] = []  # one, once it was measured
        self._choice, self._blocks_s = Choice(), 0.0
        self._begin()
        self.policy.name, self.policy.copied_places = "pointwise", frozenset()
        self._pass()  # the first is slow
        self._look()
        self.everything = self._census.all_bytes * self._scale
        self.kept_bytes = self.allowed = self.everything
        self.is_enough, self.is_least = True, False

    def settle(self, allowed: float) -> None:
        """Set the cheapest policy with which a micro-batch keeps no more than `allowed` bytes.

        Every rank calls it, and what it waits for in it is the same on all.
        """
        has_recomputed = self._recomputed_when_looked
        self._begin()
        if self.trainer.world.any(has_recomputed):
            self._look()
        keeps_all = max(self._of_stage(self.everything - allowed)) <= 0
        # stages of a pipeline go forward and backward together
        while self._choose(allowed, keeps_all=keeps_all):
            self._look()
        self.allowed = max(allowed, self.kept_bytes)
        if self._is_compiled:
            self._hand_over()

    def _begin(self) -> None:
        self.policy.recomputed, self.policy.share = frozenset(), None
        self._blocks_s = 0.0

    def _choose(self, allowed: float, *, keeps_all: bool) -> bool:
        """Choose, and return whether any rank is to recompute more blocks: then that is all."""
        policy, kept = self.policy, self._census.kept_bytes * self._scale
        to_free = max(self._of_stage(kept - allowed))
        pace = self._find_pace((kept - to_free) / max(1, kept))
        choice, is_enough = Choice(), True
        if not keeps_all:
            choice, is_enough = self._cheapest(to_free / self._scale, pace)
        wish = [
            is_enough, [block.number for block in choice.blocks], sorted(_places(choice.remade)),
            sorted(_places(choice.copied)), choice.remade_bytes + choice.copied_bytes,
        ]  # fmt: skip
        is_enough, numbers, remade, copied, freed = self._of_stage(wish)[0]
        policy.recomputed |= frozenset(numbers)
        costs = (block.cost_s for block in self._census.blocks if block.number in set(numbers))
        self._blocks_s += sum(costs)
        if self.trainer.world.any(bool(numbers)):
            return True
        self.is_enough, self.is_least = is_enough, not is_enough
        policy.name = "off" if keeps_all else "selective" if remade else "pointwise"
        policy.remade_places, policy.copied_places = frozenset(remade), frozenset(copied)
        if copied and policy.copies is None:
            policy.copies = HostCopies()
        self._choice = choice
        self.kept_bytes = self.everything if keeps_all else kept - freed * self._scale
        return False

    def _cheapest(self, to_free: float, pace: Pace | None) -> tuple[Choice, bool]:
        """Return what is given up of a pass, and whether that is enough."""
        census, scale = self._census, self._scale
        host = None if pace is None else pace.host(census.kept_bytes * scale, scale)
        blocks = [each for each in census.blocks if each.number not in self.policy.recomputed]
        choice = choose(census.groups, to_free, host, () if self._is_compiled else blocks)
        if choice is not None:
            return choice, True
        if blocks:
            return Choice(blocks=tuple(blocks)), False
        waits = host is not None and (host.link is not None or host.hidden_bytes == math.inf)
        remade = tuple(each for each in census.groups if each.cost_s is not None)
        rest = (each for each in census.groups if each.cost_s is None and each.can_be_copied)
        cost_s = sum(each.cost_s or 0.0 for each in remade)
        return Choice(remade, tuple(rest) if waits else (), cost_s=cost_s), False

    def _hand_over(self) -> None:
        """Say in the compiler's words what was chosen operator by operator."""
        policy = self.policy
        if policy.recomputed:
            policy.name, policy.recomputed = "full", frozenset()
        elif policy.name != "off":
            policy.share = self.kept_bytes / max(1, self._census.kept_bytes * self._scale)

    def _of_stage(self, value: object) -> list:
        """Return what the ranks that hold the same blocks gave."""
        world = self.trainer.world
        stage = world.coordinate("pp")
        return [given for at, given in world.exchange([stage, value]) if at == stage]

    def _find_pace(self, share: float) -> Pace | None:
        if not self._paces:
            self._paces.append(find_pace(self.trainer, share))
        return self._paces[0]

    # -- passes ------------------------------------------------------------------------------

    def _pass(self, census: Census | None = None) -> float:
        """Take one, and return how much more a full micro-batch has."""
        step = self.trainer.assembly.step
        size = min(2, step.micro_batch_size)
        with trial_batch(self.trainer, size) as batch:
            self.policy.observer = census
            try:
                step.accumulate_once(batch)
            finally:
                self.policy.observer = None
        return step.micro_batch_size / size if step.parallel.pipeline is None else 1.0

    def _look(self) -> None:
        policy = self.policy
        policy.name, policy.remade_places, policy.copied_places = "pointwise", None, frozenset()
        self._recomputed_when_looked = bool(policy.recomputed)
        self._census = Census(Epsilons(*policy.modules), self.trainer.assembly.step.device)
        with self._census.watching(dict(enumerate(policy.blocks))):
            self._scale = self._pass(self._census)
        self._census.forget()

    # -- what is said ------------------------------------------------------------------------

    def tell(self) -> None:
        """Say what came of the budget."""
        trainer, policy, choice = self.trainer, self.policy, self._choice
        what = [policy.name]
        if policy.recomputed:
            what.append(f"{len(policy.recomputed)} of {len(policy.blocks)} blocks recomputed")
        if choice.remade:
            count = len(policy.remade_places or ())
            what.append(f"{count} matrix product{'s' * (count > 1)} done again")
        if policy.share is not None:
            what.append(f"a compiled graph may keep {policy.share:.0%} of what pointwise keeps")
        offloaded = choice.copied_bytes * self._scale
        sizes = {
            "": self.kept_bytes,
            "recomputed ": self.everything - self.kept_bytes - offloaded,
            "offloaded ": offloaded,
        }
        parts = ", ".join(f"{name}{size / MIB:,.0f}" for name, size in sizes.items())
        text = (
            f"memory={trainer.config.memory}: {', '.join(what)}; activations"
            f" {self.everything / MIB:,.0f} MiB: kept {parts}"
        )
        if cost_s := self._scale * (choice.cost_s + self._blocks_s):
            text += f"; adds {1e3 * cost_s:,.1f} ms to a micro-batch"
            pace = self._paces[0] if self._paces else None
            text += "" if pace is None or not pace.pass_s else f" of {1e3 * pace.pass_s:,.1f} ms"
        trainer.folder.add_event("memory", step=trainer.step, policy=policy.name, message=text)
        trainer.recorder.console.line(text)


def _places(groups: Iterable[Group]) -> frozenset[int]:
    return frozenset(place for group in groups for place in group.places)


def _fixed_bytes(trainer: "Trainer") -> float:
    """Return the bytes that do not depend on the batch: weights, gradients, optimizer, process."""
    held, assembly = held_bytes(trainer), trainer.assembly
    is_host = trainer.device.type == "cpu"
    now = resident_bytes(trainer.device) if is_host else sum(held.values())
    gradients = sum(weight.local.nbytes for weight in assembly.step.parallel.weights.trained)
    return now + gradients + assembly.optimizer_bytes - held["optimizer"]
