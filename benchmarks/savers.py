"""What each saver of memory beside activations takes and costs, beside plain AdamW.

A GPT of 25 M parameters takes steps of few tokens, so that what belongs to weights is most of it.
`weights` and `optimizer` are the bytes of the tensors that are there between steps; `gradients`
what is there beyond them at the end of the backward pass; `peak` the most at any time of a step,
weights and state included. On a CPU what is made within a step is counted from the allocator's
events by torch's profiler, on a GPU by the allocator. Steps are taken in rotation; speed is the
median of the ratios to plain AdamW.

    python benchmarks/savers.py                     on the CPU, one thread
    python benchmarks/savers.py --only "loss_chunks: 8"   that and plain AdamW alone
    python benchmarks/savers.py --device cuda       and offload; GPT-2 medium's size
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.memory.chunked_loss import chunked_loss
from deepseek.memory.head import find_head
from deepseek.memory.host_copies import HostCopies
from deepseek.memory.policy import MemoryPolicy
from deepseek.memory.weightwise import BackwardUpdate, HostState, WeightwiseOptimizer
from deepseek.models import GPT
from deepseek.parallel.layout import LocalWeights
from deepseek.trainer import Optimizer
from deepseek.trainer.precision import cast_weights
from measure import markdown_table, report, spread
from memory import allocated, time_step

VOCABULARY = 8192
MIB = 2**20
PLAIN = "plain (adamw)"
WAYS: dict[str, dict] = {
    PLAIN: {},
    "optimizer: adamw8bit": {"algorithm": "adamw8bit"},
    "optimizer: adafactor": {"algorithm": "adafactor"},
    "optimizer: lion": {"algorithm": "lion"},
    "param_dtype: bf16": {"is_bf16": True},
    "optimizer_in_backward": {"is_in_backward": True},
    "loss_chunks: 8": {"loss_chunks": 8},
    "adamw8bit, bf16": {"algorithm": "adamw8bit", "is_bf16": True},
    "adamw8bit, bf16, in backward": {
        "algorithm": "adamw8bit", "is_bf16": True, "is_in_backward": True,
    },
}  # fmt: skip
GPU_WAYS: dict[str, dict] = {
    "offload: optimizer": {"offload": "optimizer"},
    "offload: activations": {"offload": "activations"},
}
ELSEWHERE = ("offload: parameters", "expandable_segments")
"""What a step of one process, counted by what is allocated, does not show: the first is of `fsdp`,
the second of what the allocator reserves."""


@dataclass
class Run:
    """A model with one way to keep and update it."""

    model: GPT
    optimizer: torch.optim.Optimizer
    tokens: Tensor
    update: Callable[[], object]
    in_backward: BackwardUpdate | None = None
    loss_chunks: int = 1
    memory: MemoryPolicy | None = None
    peak_bytes: int = 0
    gradient_bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    def backward(self) -> None:
        """Go forward and backward."""
        kept = nullcontext() if self.memory is None else self.memory.saving()
        with torch.autocast(self.tokens.device.type, torch.bfloat16), kept:
            loss = self._loss_in_chunks() if self.loss_chunks > 1 else self._loss()
        loss.backward()

    def _loss(self) -> Tensor:
        logits = self.model(self.tokens)
        return F.cross_entropy(logits.float().flatten(0, -2), self.tokens.flatten())

    def _loss_in_chunks(self) -> Tensor:
        head = find_head(self.model, self.model.hints.head)
        if head is None:
            raise RuntimeError("the model has no head to leave out")

        def loss_of(hidden: Tensor, tokens: slice) -> Tensor:
            logits, targets = head(hidden), self.tokens[:, tokens]
            whole = F.cross_entropy(
                logits.float().flatten(0, -2), targets.flatten(), reduction="sum"
            )
            return whole / self.tokens.numel()

        with head.left_out():
            hidden = self.model(self.tokens)
        return chunked_loss(hidden, head.parameters(), loss_of, self.loss_chunks)

    def step(self) -> None:
        """Take one optimizer step."""
        if self.in_backward is not None:
            with self.in_backward.armed(1e-4):
                self.backward()
        else:
            self.backward()
            self.update()
        self.drop()

    def drop(self) -> None:
        """Free all gradients."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def weight_bytes(self) -> int:
        """Return the bytes of the weights."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def state_bytes(self) -> int:
        """Return the bytes of the optimizer's state on the device."""
        tensors = [v for s in self.optimizer.state.values() for v in s.values()]
        device = self.tokens.device.type
        own = [v for v in tensors if isinstance(v, Tensor) and v.device.type == device]
        return sum(tensor.nbytes for tensor in own)


def make(
    args: argparse.Namespace,
    algorithm: str = "adamw",
    *,
    is_bf16: bool = False,
    is_in_backward: bool = False,
    loss_chunks: int = 1,
    offload: str = "none",
) -> Run:
    """Return a model with a way to update it."""
    torch.manual_seed(0)
    layers, dim, heads, tokens = (24, 1024, 16, 4096) if args.device == "cuda" else (6, 512, 8, 256)
    with torch.device(args.device):
        model = GPT(
            context_length=256, num_layers=layers, dim=dim, heads=heads, num_classes=VOCABULARY
        )
        batch = torch.randint(0, VOCABULARY, (tokens // 256, 256))
    if is_bf16:
        cast_weights(model, shards=False)
    optimizer = Optimizer(algorithm, 1e-4).bind(model, rounds=is_bf16)
    waits = offload == "optimizer"
    weightwise = WeightwiseOptimizer(optimizer, HostState() if waits else None)
    if is_in_backward:
        in_backward = BackwardUpdate(weightwise, LocalWeights([model]).trained)
        return Run(model, optimizer, batch, optimizer.step, in_backward)
    memory = None
    if offload == "activations":
        memory = MemoryPolicy("off", [model])
        memory.copies = HostCopies()
    update = weightwise.step if waits else optimizer.step
    return Run(model, optimizer, batch, update, loss_chunks=loss_chunks, memory=memory)


def contestants(args: argparse.Namespace) -> dict[str, Run]:
    """Return a run for each saver and for some together."""
    ways = WAYS | (GPU_WAYS if args.device == "cuda" else {})
    asked = {PLAIN, *args.only} if args.only else ways.keys()
    ways = {name: options for name, options in ways.items() if name in asked}
    return {name: make(args, **options) for name, options in ways.items()}


def measure(runs: dict[str, Run], args: argparse.Namespace) -> None:
    """Take steps of all in rotation."""
    for run in runs.values():
        for _ in range(2):  # the first makes the state, and compiles
            run.step()
        run.peak_bytes = allocated(run.step, args.device)[1]
        run.peak_bytes += run.weight_bytes() + run.state_bytes()
        if run.in_backward is not None:
            run.gradient_bytes = max(p.nbytes for p in run.model.parameters())
        else:
            run.gradient_bytes = allocated(run.backward, args.device)[0]
            run.drop()
    for _ in range(args.rounds):
        for run in runs.values():
            run.seconds.append(time_step(run.step, args.device))


def records_of(runs: dict[str, Run]) -> list[dict]:
    """Return what the table shows."""
    plain = next(iter(runs.values()))
    return [
        {
            "way": name,
            "weights_mib": run.weight_bytes() / MIB,
            "gradients_mib": run.gradient_bytes / MIB,
            "optimizer_mib": run.state_bytes() / MIB,
            "peak_mib": run.peak_bytes / MIB,
            "less": 1 - run.peak_bytes / plain.peak_bytes,
            "speed": spread([a / b for a, b in zip(plain.seconds, run.seconds, strict=True)]),
        }
        for name, run in runs.items()
    ]


def not_measured(args: argparse.Namespace) -> list[list[str]]:
    """Return the rows of what this device or this benchmark cannot show."""
    if args.only:
        return []
    names = [*(GPU_WAYS if args.device == "cpu" else ()), *ELSEWHERE]
    return [[name, "GPU only, not measured here", *[""] * 5] for name in names]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    known = [*WAYS, *GPU_WAYS]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=known, help=f"of {known}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    runs = contestants(args)
    measure(runs, args)
    records = records_of(runs)
    size = sum(p.numel() for p in next(iter(runs.values())).model.parameters())
    mib = partial("{:,.1f}".format)
    table = markdown_table(
        ["", "weights MiB", "gradients MiB", "optimizer MiB", "peak MiB", "less", "speed"],
        [
            [
                record["way"],
                mib(record["weights_mib"]),
                mib(record["gradients_mib"]),
                mib(record["optimizer_mib"]),
                mib(record["peak_mib"]),
                f"{record['less']:.0%}",
                "{:.3f} ± {:.3f}".format(*record["speed"]),
            ]
            for record in records
        ]
        + not_measured(args),
    )
    report(args, records, table, f"GPT of {size / 1e6:.1f} M parameters, autocast to bf16.")


if __name__ == "__main__":
    main()
