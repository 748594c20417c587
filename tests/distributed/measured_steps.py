"""Real steps whose collectives and allocations are counted, to be run by `run_ranks`."""

import numpy as np
import torch
from tests.allocator import most_allocated
from torch.nn.parallel import DistributedDataParallel

from deepseek.datasets import TokenDataset
from deepseek.models import GPT
from deepseek.parallel.collectives import Collectives
from deepseek.trainer import Trainer

CONTEXT, VOCABULARY = 128, 500


def make_trainer(settings, device="cpu"):
    """Return a trainer of a GPT that is large enough for its tensors to outweigh small change."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT(CONTEXT, 4, 128, heads=4)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 16 * CONTEXT + 1)
    data = TokenDataset(tokens, CONTEXT, [str(i) for i in range(VOCABULARY)])
    chosen = {
        "batch_size": 8, "max_steps": 2, "precision": "fp32", "loggers": [], "num_workers": 0,
        "device": "cpu", **settings,
    }  # fmt: skip
    return Trainer(model, data, **chosen)


def measure_steps(runs):
    """Take eight steps of each run, and look at the last: in the third DDP orders its buckets.

    Returns:
        name -> (collectives as (kind, bytes), most bytes allocated beyond before, bytes before,
        and of them those that a pipeline receives in).
    """
    found = {}
    for name, settings in runs.items():
        trainer = make_trainer({"predict_memory": False, **settings})
        step = trainer.assembly.step
        trainer.model.train()
        batches = [batch for _ in range(4) for batch in trainer.train_loader]

        def take(number, step=step, batches=batches):
            batch = batches[number]
            step.boundary.open(is_step=True)
            measured = step.measure(step.accumulate(batch, num_samples=8))
            step.update(batch, measured, number)
            step.boundary.close()

        for number in range(3):
            take(number)
        with Collectives() as collectives:
            take(3)
        # Gloo's threads hold what they have sent for a while: the least is what a step needs
        peak = min(most_allocated(lambda n=n, take=take: take(n)) for n in range(4, 8))
        held = [w.local for w in step.parallel.weights.weights]
        states = [v for each in step.optimizer.state.values() for v in each.values()]
        before = sum(t.nbytes for t in (*held, *step.parallel.buffers().values(), *states))
        if isinstance(step.parallel.forward, DistributedDataParallel):  # its buckets stay
            before += sum(weight.nbytes for weight in held)
        seen = [(each.kind, each.num_bytes) for each in collectives.seen]
        found[name] = (seen, peak, before, _count_received(step.parallel.pipeline))
    return found


def _count_received(pipeline):
    """Return the bytes of buffers that are made in the first step, and stay."""
    buffers = {}
    for stage in pipeline._torchs if pipeline is not None else ():
        for infos in (*stage.args_recv_info.values(), *stage.grad_recv_info.values()):
            for info in infos:
                if isinstance(buffer := getattr(info, "buffer", None), torch.Tensor):
                    buffers[buffer.untyped_storage()._cdata] = buffer.untyped_storage().nbytes()
    return sum(buffers.values())
