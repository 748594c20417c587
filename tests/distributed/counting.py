"""Which collectives each part of an optimizer step asks for, and how many numbers they move.

`Collectives` sees what is asked of c10d. Torch's flight recorder sees what Gloo does, which is
another thing where Gloo has no such operation (its reduce-scatter is an all-reduce); the counts of
both must agree, or something went by unseen.
"""

import json
from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch
import torch._C._distributed_c10d as c10d
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from deepseek.datasets import TokenDataset
from deepseek.models import GPT
from deepseek.models.attention import attention, causal_attention
from deepseek.parallel.collectives import KINDS, Collectives
from deepseek.parallel.context import ContextAttention, Entry, TokenShare
from deepseek.trainer import Callback, Trainer
from deepseek.trainer.clock import Clock

DIM, CONTEXT, VOCABULARY, NUM_ROWS = 32, 8, 67, 128  # the vocabulary, padded to 64s


class Phases(Clock):
    """Knows which phase of the step the main thread is in."""

    def __init__(self):
        self.current = ""

    def now(self):
        return self.current

    @contextmanager
    def phase(self, name):
        before, self.current = self.current, name
        yield
        self.current = before


def num_recorded():
    """Return how many operations Gloo has begun in this process."""
    dump = json.loads(c10d._dump_fr_trace_json(includeCollectives=True, onlyActive=False))
    return max((entry["record_id"] + 1 for entry in dump["entries"]), default=0)


class Steps(Callback):
    """What each step asked for, and what Gloo did in it."""

    def __init__(self, collectives):
        self.asked, self.done = [], []
        self._collectives = collectives
        self._position = self._recorded = 0

    def on_fit_begin(self, trainer):
        self._position, self._recorded = len(self._collectives.seen), num_recorded()

    def on_step_end(self, trainer, result):
        seen, recorded = len(self._collectives.seen), num_recorded()
        self.asked.append(self._collectives.seen[self._position :])
        self.done.append(recorded - self._recorded)
        self._position, self._recorded = seen, recorded


class Reader(Callback):
    """Reads every number of every step, as a progress bar would."""

    def __init__(self):
        self.read = []

    def on_step_end(self, trainer, result):
        self.read.append((float(result.loss_sum), float(result.grad_norm), result.lr))


class Talker(Callback):
    """Does what no callback should: it waits for the other ranks."""

    def on_step_end(self, trainer, result):
        trainer.world.agree([1.0])


class TorchCounts(Callback):
    """What torch's own `CommDebugMode` counts up to the end of each step, by kind."""

    def __init__(self, mode):
        self.by_step = []
        self._mode = mode

    def on_step_end(self, trainer, result):
        names = {op: str(op).rpartition(".")[2] for op in self._mode.get_comm_counts()}
        counts = Counter()
        for op, count in self._mode.get_comm_counts().items():
            if names[op] in KINDS:
                counts[KINDS[names[op]]] += count
        self.by_step.append(counts)


def count_with_torch(plans, run_dir):
    """Return what `CommDebugMode` counts in the last step of each plan, and what we count."""
    found = {}
    for plan in plans:
        mode = CommDebugMode()
        counts = TorchCounts(mode)
        with mode:
            ours = trace_steps({plan: {"parallel": plan, "callbacks": [counts]}}, run_dir)
        asked = Counter(each.kind for each in ours[plan][0])
        found[plan] = (counts.by_step[-1] - counts.by_step[-2], asked)
    return found


def trace_steps(runs, run_dir):
    """Train a model for four steps of each of some settings, one after the other.

    In the third DDP tells the other ranks its buckets, once and for all.

    Args:
        runs: name -> settings of `Trainer`, and `build` (`GPT` by default) and `num_layers`.
        run_dir: run folders go here.

    Returns:
        name -> (collectives of the last step, operations of Gloo in it, numbers of the model).
    """
    found = {}
    for name, settings in runs.items():
        chosen = {
            "batch_size": 16, "max_steps": 4, "lr": 1e-3, "grad_accum_steps": 1,
            "precision": "fp32", "clip_grad_norm": 0.5, "loggers": ["jsonl"], "num_workers": 0,
            "device": "cpu", "checkpoint_every": None, **settings,
        }  # fmt: skip
        torch.manual_seed(1)
        build = chosen.pop("build", GPT)
        model = build(CONTEXT, chosen.pop("num_layers", 2), DIM, heads=4)
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, 70 * CONTEXT + 1)
        data = TokenDataset(tokens, CONTEXT, [chr(40 + i) for i in range(VOCABULARY)])
        phases = Phases()
        collectives = Collectives(phases.now)
        steps = Steps(collectives)
        callbacks = [steps, *chosen.pop("callbacks", ())]
        trainer = Trainer(
            model, data, run_dir=run_dir / name, callbacks=callbacks, predict_memory=False, **chosen
        )
        trainer.assembly.step.clock = phases
        with collectives:
            trainer.fit()
        found[name] = (steps.asked[-1], steps.done[-1], steps.done)
    return found


def cut_and_gather(lengths):
    """Cut sequences between all ranks, and put them together again.

    Returns:
        (length, causal) -> (this rank's tokens, all of them, gradient of this rank's tokens).
    """
    dist.init_process_group("gloo")
    found = {}
    for is_causal in (False, True):
        share = TokenShare(dist.group.WORLD, "cpu", is_causal=is_causal)
        for length in lengths:
            whole = torch.arange(1.0, 2 * length + 1).view(1, length, 2)
            own = share.cut(whole, 1).requires_grad_()
            together = share.gather(own, 1, length)
            (together * whole).sum().backward()
            found[length, is_causal] = (own.tolist(), together.tolist(), own.grad.tolist())
    dist.destroy_process_group()
    return found


def attend_in_shares(lengths):
    """Return (length, causal) -> largest differences of output and gradients from one process."""
    dist.init_process_group("gloo")
    found = {}
    for is_causal in (False, True):
        share = TokenShare(dist.group.WORLD, "cpu", is_causal=is_causal)
        for length in lengths:
            generator = torch.Generator().manual_seed(length)
            whole = torch.randn(3, 2, 2, length, 4, generator=generator).requires_grad_()
            one = causal_attention if is_causal else attention
            expected = one(*whole)
            (expected.square().sum()).backward()
            entry = Entry(share)
            entry.num_tokens = length
            own = share.cut(whole.detach(), 3).requires_grad_()
            mixed = ContextAttention(share, entry)(*own)
            together = share.gather(mixed, 2, length)
            (together.square().sum() / share.degree).backward()  # each rank has the whole loss
            gradient = share.gather(own.grad, 3, length)
            found[length, is_causal] = (
                float((together - expected).abs().max()),
                float((gradient - whole.grad).abs().max()),
            )
    dist.destroy_process_group()
    return found
