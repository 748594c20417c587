"""A rank that runs out of memory, to be run by `run_ranks`."""

import os

import torch
from tests.distributed.ranks import Trajectory, make_data, make_model

from deepseek.trainer import Trainer
from deepseek.trainer.run_folder import RunFolder


class Shortage:
    """Raises torch's error at a place of the model, on one rank, for more samples than a limit."""

    def __init__(self, place, rank, limit, step):
        self.place, self.rank, self.limit, self.step = place, rank, limit, step
        self.trainer = None

    def put_into(self, trainer):
        """Watch a block of the model, forward or backward."""
        self.trainer = trainer
        if trainer.world.rank != self.rank:
            return
        blocks = trainer.assembly.step.parallel.blocks()
        if self.place == "first forward":
            blocks[0].register_forward_pre_hook(lambda module, args: self._check(args[0]))
        elif self.place == "last forward":
            blocks[-1].register_forward_hook(lambda module, args, out: self._check(out))
        else:
            block = blocks[-1 if self.place == "early backward" else 1]
            block.register_forward_hook(self._watch_backward)

    def _watch_backward(self, module, args, output):
        def check(grad):
            self._check(grad)

        if output.requires_grad:
            output.register_hook(check)

    def _check(self, tensor):
        if self.trainer.step >= self.step and len(tensor) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def train_short(run_dir, plan, place, *, rank=1, limit=3, step=0, kind="gpt", **settings):
    """Train with a rank that is short of memory.

    Returns:
        Losses, gradient norms, sizes that micro-batches were halved to, and the last weights.
    """
    trajectory = Trajectory()
    trainer = Trainer(
        make_model(kind), make_data(kind), run_dir=run_dir, callbacks=[trajectory], parallel=plan,
        **{
            "batch_size": 16, "max_steps": 8, "lr": 1e-3, "precision": "fp32", "num_workers": 0,
            "loggers": ["jsonl"], "device": "cpu", **settings,
        },
    )  # fmt: skip
    if place is not None:
        Shortage(place, rank, limit, step).put_into(trainer)
    trainer.fit()
    events = RunFolder(run_dir).read_events() if int(os.environ["RANK"]) == 0 else []
    sizes = [e["micro_batch_size"] for e in events if e["kind"] == "out_of_memory"]
    weights = {w.name: w.local.detach().clone() for w in trainer.trained.weights.weights}
    return trajectory.losses, trajectory.norms, sizes, weights
