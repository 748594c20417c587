"""What each memory policy keeps and costs, beside plain PyTorch and its own recomputation.

The baseline is plain PyTorch with fused attention and no recomputation. `activations` is what is
allocated after the forward pass and was not before (weights' copies for autocast in it); `peak` the
most that is allocated within a step beyond weights, gradients and optimizer state; `in all` is with
them (16 bytes a weight, of AdamW in fp32). On a CPU they are counted from the allocator's events by
torch's profiler, on a GPU by the allocator. Steps are taken in rotation; ratios are medians of
those of a round.

    python benchmarks/memory.py                          on the CPU, one thread
    python benchmarks/memory.py --device cuda            GPT-2 medium and the like
    python benchmarks/memory.py --device cuda --compile  baseline and policies as compiled graphs
"""

import argparse
import contextlib
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter, process_time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from deepseek.memory.blocks import find_blocks
from deepseek.memory.chunked_loss import chunked_loss
from deepseek.memory.head import find_head
from deepseek.memory.policy import MemoryPolicy
from deepseek.models import GPT, Encoder, VisionTransformer
from measure import markdown_table, report, spread

POLICIES = ("pointwise", "selective", "full")
CHUNKS = 8
BYTES_A_WEIGHT = 16


@dataclass
class Subject:
    """A model and its batch; `loss` is a scalar."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def loss(self) -> Tensor:
        """Return the mean cross-entropy."""
        return self.loss_of(self.hidden())

    def hidden(self) -> Tensor:
        """Return what the model makes of the batch: logits, or what a head left out takes."""
        out = self.model(self.inputs)
        return out if isinstance(out, Tensor) else out.logits

    def loss_of(self, logits: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits."""
        return F.cross_entropy(logits.float().flatten(0, -2), self.targets.flatten())

    @property
    def num_weights(self) -> int:
        """Of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def make(name: str, device: str, is_large: bool) -> Subject:
    """Return a model of a kind: sizes of GPT-2 medium, or of a CPU."""
    layers, dim, heads = (24, 1024, 16) if is_large else (6, 512, 8)
    batch, length = (16, 1024) if is_large else (2, 1024)
    vocabulary = 50304 if is_large else 8192
    tokens = torch.randint(0, vocabulary, (batch, length), device=device)
    with torch.device(device):
        if name == "GPT (GELU)":
            model = GPT(
                context_length=length, num_layers=layers, dim=dim, heads=heads,
                num_classes=vocabulary,
            )  # fmt: skip
            return Subject(model, tokens, tokens)
        if name == "Llama (SwiGLU)":
            return Subject(_llama(layers, dim, heads, vocabulary), tokens, tokens)
        if name == "BERT":
            model = Encoder(
                context_length=length, num_layers=layers, dim=dim, heads=heads,
                vocab_size=vocabulary, num_classes=8, dropout=0.0, pad_token=None,
            )  # fmt: skip
            return Subject(model, tokens, torch.arange(batch, device=device) % 8)
        size, patch, images = (224, 14, 64) if is_large else (224, 14, 4)
        model = VisionTransformer(
            image_size=size, patch_size=patch, channels=3, num_layers=layers, dim=dim, heads=heads,
            num_classes=1000,
        )  # fmt: skip
        pictures = torch.randn(images, 3, size, size)
        return Subject(model, pictures, torch.arange(images) % 1000)


def _llama(layers: int, dim: int, heads: int, vocabulary: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=dim, intermediate_size=-(-8 * dim // 3 // 64) * 64, num_hidden_layers=layers,
        num_attention_heads=heads, vocab_size=vocabulary, use_cache=False,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]: of its base class
    )  # fmt: skip
    return LlamaForCausalLM(config)


# -- contestants -----------------------------------------------------------------------------


def keep_products() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return contexts that keep what products and attention make, and recompute the rest."""
    aten = torch.ops.aten
    kept = {
        aten.mm.default, aten.addmm.default, aten.bmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }  # fmt: skip

    def choose(context, op, *args, **kwargs) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(choose)


@contextlib.contextmanager
def checkpointed(blocks: list[nn.Module], **options):
    """Recompute blocks as torch does."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **options)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@dataclass(frozen=True)
class Way:
    """How a loss is computed: in which context, and by what."""

    context: Callable[[], AbstractContextManager]
    loss: Callable[[], Tensor]


def contestants(subject: Subject, compiles: bool) -> dict[str, Way]:
    """Return all ways, by name."""
    blocks = find_blocks(subject.model)

    def way(context: Callable[[], AbstractContextManager], in_parts: bool = False) -> Way:
        if in_parts:
            return Way(context, loss_in_parts(subject, compiles))
        return Way(context, captured(subject.loss) if compiles else subject.loss)

    policies = {
        name: MemoryPolicy(name, [subject.model], blocks, compiles=compiles).saving
        for name in POLICIES
    }
    ways = {
        "plain torch": way(nullcontext),
        **{f"memory={name}": way(context) for name, context in policies.items()},
        "torch checkpoint, all but products": way(
            partial(checkpointed, blocks, context_fn=keep_products)
        ),
        "torch checkpoint": way(partial(checkpointed, blocks)),
    }
    has_tokens = subject.inputs.shape == subject.targets.shape  # and a loss for each
    if has_tokens:
        ways[f"loss_chunks={CHUNKS}"] = way(nullcontext, in_parts=True)
        for name in ("pointwise", "selective"):
            ways[f"memory={name}, loss_chunks={CHUNKS}"] = way(policies[name], in_parts=True)
    if compiles:  # the compiler remakes what is pointwise by itself
        ways = {name: own for name, own in ways.items() if "pointwise" not in name}
        ways["plain torch, not compiled"] = Way(nullcontext, subject.loss)
    elif has_tokens and subject.inputs.is_cuda:
        part = loss_in_parts(subject, compiles=False, compiles_loss=True)
        name = f"loss_chunks={CHUNKS}, its loss compiled"
        ways |= {name: Way(nullcontext, part)}
        ways |= {f"memory=pointwise, {name}": Way(policies["pointwise"], part)}
        as_run = MemoryPolicy("pointwise", [subject.model], blocks)
        as_run.keeps_norms = True  # as a run does on a GPU
        ways |= {"memory=pointwise, norms kept": way(as_run.saving)}
        ways |= {f"memory=pointwise, norms kept, {name}": Way(as_run.saving, part)}
    return ways


def loss_in_parts(
    subject: Subject, compiles: bool, compiles_loss: bool = False
) -> Callable[[], Tensor]:
    """Return what gives the loss with logits of some tokens at a time."""
    model = subject.model
    head = find_head(model, model.hints.head if isinstance(model, GPT) else ())
    if head is None:
        raise TypeError(f"{type(model).__name__} has no head for each token")
    hidden_of = captured(subject.hidden) if compiles else subject.hidden

    def loss_of(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head(hidden).float()
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")

    compute = captured(loss_of) if compiles or compiles_loss else loss_of

    def loss() -> Tensor:
        with head.left_out():
            hidden = hidden_of()
        return chunked_loss(
            hidden, head.parameters(),
            lambda part, tokens: compute(part, subject.targets[:, tokens]), CHUNKS,
        ) / subject.targets.numel()  # fmt: skip

    return loss


def captured(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function or method by itself: torch keeps graphs by code, whatever the context."""
    of = getattr(compute, "__self__", None)
    function = getattr(compute, "__func__", compute)
    alone = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__,
        function.__defaults__, function.__closure__,
    )  # fmt: skip
    compiled = torch.compile(alone, dynamic=False)
    return compiled if of is None else partial(compiled, of)


# -- measuring -------------------------------------------------------------------------------


@dataclass
class Result:
    """What was measured of one contestant."""

    activation_bytes: int = 0
    peak_bytes: int = 0
    seconds: list[float] = field(default_factory=list)


def allocated(compute: Callable[[], object], device: str) -> tuple[int, int]:
    """Return the bytes that are allocated after `compute`, and the most within, beyond before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        held = compute()
        after, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        del held
        return after - before, peak - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        held = compute()
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    total = peak = 0
    for event in results.events() if results is not None else ():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    del held
    return total, peak


def measure(subject: Subject, args: argparse.Namespace) -> dict[str, Result]:
    """Take steps of all contestants in rotation."""
    ways = contestants(subject, args.compile)
    if args.ways:
        ways = {name: own for name, own in ways.items() if name in ("plain torch", *args.ways)}
    results = {name: Result() for name in ways}
    parameters = list(subject.model.parameters())
    cast = partial(torch.autocast, args.device, torch.bfloat16)

    def forward(way: Way) -> Tensor:
        with cast(), way.context():
            return way.loss()

    def step(way: Way) -> None:
        forward(way).backward()
        for parameter in parameters:
            parameter.grad = None

    for name, way in ways.items():
        step(way)
        results[name].activation_bytes = allocated(partial(forward, way), args.device)[0]
        # gradients are there before, as from the second micro-batch on
        forward(way).backward()
        peak = allocated(lambda way=way: forward(way).backward(), args.device)[1]
        results[name].peak_bytes = peak
        for parameter in parameters:
            parameter.grad = None
    for _ in range(args.rounds):
        for name, way in ways.items():
            results[name].seconds.append(time_step(partial(step, way), args.device))
    return results


def time_step(step: Callable[[], object], device: str) -> float:
    """Return seconds of a step: of the processor on a CPU, by the clock on a GPU."""
    if device == "cpu":
        began = process_time()
        step()
        return process_time() - began
    step()
    torch.cuda.synchronize()
    began = perf_counter()
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    return (perf_counter() - began) / 5


def rows_of(name: str, num_weights: int, results: dict[str, Result]) -> list[dict]:
    """Return what the table shows."""
    plain, held = results["plain torch"], BYTES_A_WEIGHT * num_weights
    rows = []
    for way, result in results.items():
        ratio = [a / b for a, b in zip(plain.seconds, result.seconds, strict=True)]
        rows.append(
            {
                "model": name,
                "way": way,
                "activation_mib": result.activation_bytes / 2**20,
                "activation_saved": 1 - result.activation_bytes / plain.activation_bytes,
                "peak_mib": result.peak_bytes / 2**20,
                "peak_saved": 1 - result.peak_bytes / plain.peak_bytes,
                "in_all_mib": (held + result.peak_bytes) / 2**20,
                "in_all_saved": 1 - (held + result.peak_bytes) / (held + plain.peak_bytes),
                "step_ms": median(result.seconds) * 1e3,
                "speed": spread(ratio),
            }
        )
    return rows


def table_of(records: list[dict]) -> str:
    """Return the records as a table."""
    header = (
        "model", "", "activations MiB", "less", "peak MiB", "less", "in all MiB", "less", "step ms",
        "speed",
    )  # fmt: skip
    return markdown_table(
        header,
        [
            (
                r["model"], r["way"], f"{r['activation_mib']:,.0f}", f"{r['activation_saved']:.1%}",
                f"{r['peak_mib']:,.0f}", f"{r['peak_saved']:.1%}", f"{r['in_all_mib']:,.0f}",
                f"{r['in_all_saved']:.1%}", f"{r['step_ms']:,.0f}",
                f"{r['speed'][0]:.3f} ± {r['speed'][1]:.3f} x",
            )
            for r in records
        ],
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--models", nargs="+", default=["GPT (GELU)", "Llama (SwiGLU)", "ViT", "BERT"]
    )
    parser.add_argument("--ways", nargs="+", help="beside plain torch; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="compiled baseline, and policies")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    records = []
    for name in args.models:
        torch.manual_seed(0)
        subject = make(name, args.device, args.device == "cuda")
        records += rows_of(name, subject.num_weights, measure(subject, args))
        print(table_of(records), file=sys.stderr, flush=True)  # what is known, should it be cut off
        del subject
        torch._dynamo.reset()
    table = table_of(records)
    report(args, records, table, (__doc__ or "").split("\n\n")[1].replace("\n", " "))


if __name__ == "__main__":
    main()
