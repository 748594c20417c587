"""Ranks that misbehave, to be run by `run_ranks`."""

import os
import signal
import time
from pathlib import Path

import torch
from tests.distributed.ranks import Trajectory, make_data, make_model, train

from deepseek.config.parallel import ParallelConfig
from deepseek.errors import CommunicationError
from deepseek.parallel.plan import BatchFacts, ModelFacts, resolve_plan
from deepseek.parallel.world import World
from deepseek.trainer import Callback, Trainer, signals
from deepseek.trainer import trainer as trainer_module
from deepseek.trainer.chaos.poison import Poison
from deepseek.trainer.saving import Saving


class On(Callback):
    """Acts on one rank after one step."""

    def __init__(self, rank, step, act):
        self.rank, self.at, self.act = rank, step, act

    def on_step_end(self, trainer, result):
        if trainer.world.rank == self.rank and trainer.step == self.at:
            self.act(trainer)


def train_poisoned(place, run_dir, plan, **settings):
    """Spoil a number on the last rank in the fourth step; return what was taken."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    trajectory = Trajectory()
    callbacks = [trajectory]
    if rank == size - 1:
        callbacks.append(Poison(place, float("nan"), at=3))
    trainer = Trainer(
        make_model("vit"), make_data("vit"), run_dir=run_dir, callbacks=callbacks, parallel=plan,
        batch_size=16, max_steps=8, lr=1e-3, precision="fp32", loggers=["jsonl"], num_workers=0,
        device="cpu", checkpoint_every=2, **settings,
    )  # fmt: skip
    trainer.fit()
    finite = all(torch.isfinite(w.local).all() for w in trainer.trained.weights.weights)
    return trajectory.losses, bool(finite)


class Foreign(torch.nn.Module):
    """A user's own model: a batch norm, and a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.used = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(), torch.nn.Linear(16, 5),
        )  # fmt: skip
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


def train_foreign(run_dir, plan):
    """Return losses and the running mean that each rank ends with."""
    torch.manual_seed(0)
    trajectory = Trajectory()
    trainer = Trainer(
        Foreign(), make_data("vit"), run_dir=run_dir, callbacks=[trajectory], parallel=plan,
        batch_size=16, max_steps=8, lr=1e-3, precision="fp32", loggers=["jsonl"], num_workers=0,
        device="cpu",
    )  # fmt: skip
    trainer.fit()
    return trajectory.losses, trainer.trained.buffers()["used.2.running_mean"].tolist()


def train_signalled(run_dir, plan, **settings):
    """Rank 1 alone gets SIGTERM after the fifth step."""
    act = On(1, 5, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
    return train("gpt", run_dir, parallel=plan, callbacks=[act], max_steps=5000, **settings)


def train_signalled_in_evaluation(run_dir, plan):
    """Rank 1 alone gets SIGTERM when its first evaluation begins."""

    class AtFirst(Callback):
        def on_fit_begin(self, trainer):
            if trainer.world.rank == 1:
                check = trainer.world.mark

                def mark(phase, step=None):
                    if phase == "evaluation":
                        os.kill(os.getpid(), signal.SIGTERM)
                    check(phase, step)

                trainer.world.mark = mark

    return train("gpt", run_dir, parallel=plan, callbacks=[AtFirst()], val_size=70, epochs=3,
                 max_steps=None)  # fmt: skip


def train_with_wish(run_dir, plan):
    """Rank 1 alone asks to stop after the third step."""
    act = On(1, 3, lambda trainer: trainer.request_stop("rank 1 has seen enough"))
    return train("gpt", run_dir, parallel=plan, callbacks=[act], max_steps=50)


def train_hanging(run_dir, plan, how):
    """Rank 1 hangs after the third step: `sleep`s, or stops as a whole (`stop`)."""
    act = On(1, 3, lambda trainer: time.sleep(600))
    if how == "stop":
        act = On(1, 3, lambda trainer: os.kill(os.getpid(), signal.SIGSTOP))
    settings = {"timeout_s": 8.0, "start_timeout_s": 60.0, **plan}
    return train("gpt", run_dir, parallel=settings, callbacks=[act], max_steps=50)


def count_passes(run_dir, plan, num_micro_batches):
    """Return how often this rank says that it has come further, in each of two steps."""
    counts = []

    class Counting(World):
        def note_progress(self):
            counts[-1] += 1
            super().note_progress()

    class EachStep(Callback):
        def on_fit_begin(self, trainer):
            counts.append(0)

        def on_step_end(self, trainer, result):
            counts.append(0)

    trainer_module.World = Counting
    settings = {**plan, "micro_batches": num_micro_batches}
    train("gpt", run_dir, parallel=settings, callbacks=[EachStep()], max_steps=2,
          grad_accum_steps=1)  # fmt: skip
    return counts[:2]


def train_with_frozen_rank_0(run_dir):
    """Rank 0, which keeps the store, stops as a whole after the third step."""
    act = On(0, 3, lambda trainer: os.kill(os.getpid(), signal.SIGSTOP))
    settings = {"timeout_s": 8.0, "start_timeout_s": 60.0, "dp_replicate": 2}
    return train("gpt", run_dir, parallel=settings, callbacks=[act], max_steps=50)


def train_dying(run_dir, plan):
    """Rank 1 is killed after the third step."""
    act = On(1, 3, lambda trainer: os.kill(os.getpid(), signal.SIGKILL))
    return train("gpt", run_dir, parallel=plan, callbacks=[act], max_steps=50)


def log_different_keys(run_dir, plan):
    """Each rank logs keys of its own: nothing is reduced for them, so nothing can lock."""

    class Logs(Callback):
        def on_step_end(self, trainer, result):
            trainer.recorder.log({"kind": "own", "step": trainer.step,
                                  f"rank_{trainer.world.rank}": 1.0})  # fmt: skip

    return train("gpt", run_dir, parallel=plan, callbacks=[Logs()], max_steps=6)


def train_with_own_plan(run_dir):
    """Each rank has been given another plan."""
    rank = int(os.environ["RANK"])
    return train("gpt", run_dir, parallel=("dp2", "fsdp2")[rank])


def dropped(plan, dropout=0.5):
    """Return which activations each place drops on this rank, in one training forward pass."""
    trainer = Trainer(
        make_model("gpt", dropout), make_data("gpt"), parallel=plan, batch_size=16, max_steps=1,
        precision="fp32", num_workers=0, device="cpu", loggers=[],
    )  # fmt: skip
    parallel = trainer.assembly.step.parallel
    trainer.world.seed(0)
    parallel.train(True)
    found = {}

    def keep(name):
        def hook(module, args, output):
            found.setdefault(name, []).append((output == 0).flatten().tolist())

        return hook

    module = parallel.engine.module
    module.dropout.register_forward_hook(keep("embedding"))
    module.blocks[0].dropout.register_forward_hook(keep("residual"))
    original = module.blocks[0].attn.attend

    def attend(q, k, v, *, dropout, **options):
        found["attention"] = torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()
        return original(q, k, v, dropout=dropout, **options)

    module.blocks[0].attn.attend = attend
    parallel.forward(make_data("gpt").get_batch(list(range(8)), 0)[0]["inputs"])
    return found


def train_poisoned_on_a_slow_disk(run_dir, plan):
    """The save of the second step is under way on all ranks when the fourth step is bad."""
    flush = os.fsync

    def slowly(file):
        time.sleep(0.3)
        flush(file)

    os.fsync = slowly
    return train_poisoned("gradient", run_dir, plan)


def save_for_long(run_dir, plan):
    """Both ranks get SIGTERM, and their save takes longer than a rank waits for agreement."""
    signals.RANK_GRACE_S, signals.GRACE_S = 20.0, 0.5
    save = Saving.save

    def slowly(self):
        time.sleep(22)
        return save(self)

    Saving.save = slowly
    rank = int(os.environ["RANK"])
    act = On(rank, 3, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
    return train("gpt", run_dir, parallel=plan, callbacks=[act], max_steps=50)


def lead_to_a_full_disk():
    """What rank 0 alone does fails in a way that is no error of ours."""
    plan = resolve_plan(ParallelConfig(dp_replicate=2), 2, ModelFacts("GPT"), BatchFacts(8))
    world = World(plan, torch.device("cpu"))
    try:
        world.lead(lambda: Path("/dev/null/folder").mkdir())
    except (OSError, CommunicationError) as error:
        return type(error).__name__, str(error)
