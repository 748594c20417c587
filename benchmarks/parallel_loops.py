"""The contestants of `parallel.py`: one process of one of them, which trains in turns.

Every loop trains the same GPT from the same weights on the same batches, with AdamW (fused, decay
for matrices only), a constant learning rate and clipping to norm 1. Commands come through stdin
(steps of the next turn), answers go to stdout as lines of JSON; everything else goes to a log.
"""

import argparse
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from time import perf_counter, process_time
from typing import TextIO

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from deepseek.datasets import TokenDataset
from deepseek.models import GPT

LR = 1e-3
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
IDLE_S = 3600.0
"""Longest wait for a turn; our watch would take a rank that waits for longer as hanging."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all contestants have in common.

    Attributes:
        strategy: `one` process, `ddp` or `fsdp`.
        precision: `fp32` or `bf16`.
        device: `cpu` or `cuda`.
        compiles: by `torch.compile`.
        steps: of the whole training.
        batch_size: samples of a step on each process.
        context, vocabulary, num_layers, dim, heads: of the GPT.
    """

    strategy: str
    precision: str
    device: str
    compiles: bool
    steps: int
    batch_size: int
    context: int
    vocabulary: int
    num_layers: int
    dim: int
    heads: int

    @property
    def rank(self) -> int:
        """Of this process."""
        return int(os.environ["RANK"])

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(os.environ["WORLD_SIZE"])

    @property
    def own_device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda", self.rank) if self.device == "cuda" else torch.device("cpu")

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)


class Turns:
    """Takes the time of the steps of a turn, and waits for the next.

    The first step of a turn is not timed: caches have been used by others. On a GPU only the mean
    of a turn is taken, so that nobody waits for the device within it.
    """

    def __init__(self, setup: Setup, answers: TextIO) -> None:
        self._is_cuda = setup.device == "cuda"
        self._answers = answers
        self._begin()

    def _begin(self) -> None:
        self._length = int(sys.stdin.readline())
        self._losses: list[Tensor | float] = []
        self._ends: list[float] = []

    def tick(self, loss: Tensor | float) -> None:
        """Note that a step has ended.

        Args:
            loss: mean over the tokens of this process, or of all.
        """
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        is_first, is_last = len(self._losses) == 1, len(self._losses) == self._length
        if is_first or is_last or not self._is_cuda:
            if self._is_cuda:
                torch.cuda.synchronize()
            self._ends.append(perf_counter())
        if is_first:
            self._cpu_s = process_time()
        if is_last:
            self._answer()
            self._begin()

    def _answer(self) -> None:
        per_end = max(1, self._length - 1) / max(1, len(self._ends) - 1)
        answer = {
            "steps_s": [(end - begin) / per_end for begin, end in pairwise(self._ends)],
            "cpu_s": (process_time() - self._cpu_s) / max(1, self._length - 1),
            "losses": [float(loss) for loss in self._losses],
        }
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


# -- what is trained -------------------------------------------------------------------------


def make_model(setup: Setup) -> GPT:
    """Return the same weights in every process."""
    torch.manual_seed(0)
    return GPT(
        context_length=setup.context, num_layers=setup.num_layers, dim=setup.dim,
        heads=setup.heads, num_classes=setup.vocabulary,
    )  # fmt: skip


def make_data(setup: Setup) -> TokenDataset:
    """Return one epoch of a row in which a token is the one before, moved a little."""
    length = setup.steps * setup.batch_size * setup.world_size * setup.context + 1
    moves = np.random.default_rng(0).integers(0, 8, length)
    vocabulary = [str(number) for number in range(setup.vocabulary)]
    return TokenDataset(np.cumsum(moves) % setup.vocabulary, setup.context, vocabulary)


class Batches(torch.utils.data.Dataset):
    """The batches of this process, in memory: pairs (B, T) of tokens and the tokens after."""

    def __init__(self, setup: Setup) -> None:
        data, size = make_data(setup), setup.batch_size
        starts = [(step * setup.world_size + setup.rank) * size for step in range(setup.steps)]
        whole = [data.get_batch(range(start, start + size), 0)[0] for start in starts]
        self._pairs = [(batch["inputs"], batch["targets"]) for batch in whole]
        if setup.device == "cuda":
            self._pairs = [(x.pin_memory(), y.pin_memory()) for x, y in self._pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self._pairs[number]

    def on_device(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield them where they are computed with."""
        for x, y in self._pairs:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, in float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def make_adamw(named: dict[str, Tensor], *, fused: bool = True) -> torch.optim.Optimizer:
    """Return the optimizer that all share; vectors and positions do not decay."""
    plain = [each for name, each in named.items() if each.ndim <= 1 or "pos_embed" in name]
    ids = {id(each) for each in plain}
    decayed = [each for each in named.values() if id(each) not in ids]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, fused=fused)


def shard_blocks(module: GPT, setup: Setup, mesh) -> None:
    """Divide the weights of every block, and of what is around them."""
    policy = MixedPrecisionPolicy()
    if setup.precision == "bf16":
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in module.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


# -- contestants -----------------------------------------------------------------------------


def train_deepseek(setup: Setup, turns: Turns, folder: str) -> None:
    """Our own, at its defaults but for what all share; no console."""
    from deepseek import Optimizer, Trainer
    from deepseek.datasets import DataLoader
    from deepseek.trainer import Callback

    class Stamp(Callback):
        def on_step_end(self, trainer, result) -> None:
            # the sum is on the device of one process, and on the host of several
            turns.tick(result.loss_sum / result.num_items)

    axis = {"one": {}, "ddp": {"dp_replicate": "auto"}, "fsdp": {"dp_shard": "auto"}}
    batch_size = setup.batch_size * setup.world_size
    Trainer(
        make_model(setup),
        DataLoader(make_data(setup), batch_size=batch_size, shuffle=False),
        max_steps=setup.steps,
        parallel={**axis[setup.strategy], "timeout_s": IDLE_S, "start_timeout_s": IDLE_S},
        optimizer=Optimizer("adamw", LR, WEIGHT_DECAY),
        schedule="constant",
        warmup=0,
        precision=setup.precision,
        device=setup.device,
        graph="static" if setup.compiles else "dynamic",
        loggers=("jsonl", "tensorboard"),
        checkpoint_every=None,
        callbacks=[Stamp()],
        run_dir=f"{folder}/run",
    ).fit()


def train_torch(setup: Setup, turns: Turns, folder: str) -> None:
    """The bare loop; on one process, or with DDP."""
    model: nn.Module = make_model(setup).to(setup.own_device)
    opt = make_adamw(dict(model.named_parameters()))
    parameters = list(model.parameters())
    if setup.strategy == "ddp":
        model = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)

    def forward(x: Tensor, y: Tensor) -> Tensor:
        return loss_of(model(x), y)

    if setup.compiles:
        forward = torch.compile(forward, fullgraph=True, dynamic=False)
    for x, y in Batches(setup).on_device(setup.own_device):
        with setup.autocast():
            loss = forward(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        opt.step()
        opt.zero_grad()
        turns.tick(loss)


def train_torch_fsdp(setup: Setup, turns: Turns, folder: str) -> None:
    """The bare loop with `fully_shard`, as torch's own tutorial has it."""
    mesh = init_device_mesh(setup.device, (setup.world_size,))
    model = make_model(setup).to(setup.own_device)
    shard_blocks(model, setup, mesh)
    opt = make_adamw(dict(model.named_parameters()))
    for x, y in Batches(setup).on_device(setup.own_device):
        with setup.autocast():
            loss = loss_of(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        opt.step()
        opt.zero_grad()
        turns.tick(loss)


def train_torch_fsdp_local(setup: Setup, turns: Turns, folder: str) -> None:
    """The same, but clipping and AdamW see plain tensors: DTensor's dispatch costs on a CPU."""
    mesh = init_device_mesh(setup.device, (setup.world_size,))
    model = make_model(setup).to(setup.own_device)
    shard_blocks(model, setup, mesh)
    pairs = {name: (p, p.to_local().detach()) for name, p in model.named_parameters()}
    opt = make_adamw({name: local for name, (_, local) in pairs.items()})
    shards = [local for _, local in pairs.values()]
    for x, y in Batches(setup).on_device(setup.own_device):
        with setup.autocast():
            loss = loss_of(model(x), y)
        loss.backward()
        for parameter, local in pairs.values():
            local.grad, parameter.grad = parameter.grad._local_tensor, None
        square = nn.utils.get_total_norm([local.grad for local in shards]).square()
        dist.all_reduce(square)
        nn.utils.clip_grads_with_norm_(shards, CLIP_NORM, square.sqrt())
        opt.step()
        turns.tick(loss)


def train_lightning(setup: Setup, turns: Turns, folder: str) -> None:
    """Lightning's `Trainer` at its defaults; no bar, no checkpoints; in bf16 AdamW is not fused."""
    import lightning
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model(setup)

        def configure_model(self) -> None:
            if setup.strategy == "fsdp":
                shard_blocks(self.model, setup, self.device_mesh["data_parallel"])

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            loss = loss_of(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            # under autocast Lightning refuses to clip for a fused optimizer
            is_fused = setup.precision == "fp32"
            return make_adamw(dict(self.model.named_parameters()), fused=is_fused)

    class Stamp(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *more) -> None:
            turns.tick(outputs["loss"])

    backend = "nccl" if setup.device == "cuda" else "gloo"
    strategies = {
        "one": lambda: "auto",
        "ddp": lambda: DDPStrategy(process_group_backend=backend),
        "fsdp": lambda: ModelParallelStrategy(
            data_parallel_size=setup.world_size, tensor_parallel_size=1
        ),
    }
    loader = torch.utils.data.DataLoader(Batches(setup), batch_size=None)
    lightning.Trainer(
        accelerator="gpu" if setup.device == "cuda" else "cpu",
        devices=setup.world_size,
        strategy=strategies[setup.strategy](),
        plugins=[TorchElasticEnvironment()] if setup.world_size > 1 else None,
        precision="bf16-mixed" if setup.precision == "bf16" else "32-true",
        max_epochs=1,
        gradient_clip_val=CLIP_NORM,
        use_distributed_sampler=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Stamp()],
    ).fit(Module(), loader)


def train_accelerate(setup: Setup, turns: Turns, folder: str) -> None:
    """The bare loop with Accelerate's objects."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    plugin = None
    if setup.strategy == "fsdp":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["GPTBlock"],
            reshard_after_forward=True,
            cpu_ram_efficient_loading=False,
        )
    accelerator = Accelerator(
        cpu=setup.device == "cpu",
        fsdp_plugin=plugin,
        mixed_precision="bf16" if setup.precision == "bf16" else "no",
    )
    model = make_model(setup)
    model, opt = accelerator.prepare(model, make_adamw(dict(model.named_parameters())))
    if plugin is not None and not isinstance(model, FSDPModule):
        raise RuntimeError(f"FSDP was asked for, and the model is a {type(model).__name__}")
    for x, y in Batches(setup).on_device(accelerator.device):
        loss = loss_of(model(x), y)  # pyright: ignore[reportCallIssue]: it is a module, too
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
        opt.step()
        opt.zero_grad()
        turns.tick(loss)


Loop = Callable[[Setup, Turns, str], None]
LOOPS: dict[str, dict[str, Loop]] = {
    "one": {"deepseek": train_deepseek, "torch": train_torch},
    "ddp": {
        "deepseek": train_deepseek,
        "torch": train_torch,
        "Lightning": train_lightning,
        "Accelerate": train_accelerate,
    },
    "fsdp": {
        "deepseek": train_deepseek,
        "torch": train_torch_fsdp,
        "torch, plain shards": train_torch_fsdp_local,
        "Lightning": train_lightning,
        "Accelerate": train_accelerate,
    },
}


def main() -> None:
    """Train as `parallel.py` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the contestant")
    parser.add_argument("setup", type=json.loads, help="as JSON")
    parser.add_argument("log", help="file for everything else that is said")
    args = parser.parse_args()
    name, setup, log = args.name, Setup(**args.setup), args.log
    answers = os.fdopen(os.dup(1), "w")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if setup.device == "cuda":
        torch.cuda.set_device(setup.own_device)
    is_bare = name.startswith("torch")
    if is_bare and setup.world_size > 1:
        dist.init_process_group("nccl" if setup.device == "cuda" else "gloo")
    try:
        LOOPS[setup.strategy][name](setup, Turns(setup, answers), os.path.dirname(log))
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        answers.write(json.dumps({"error": f"{type(error).__name__}: {first}"}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
