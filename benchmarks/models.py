"""Our models beside those of timm and transformers: the same sizes, tasks and batches, in one run.

Both train by the same bare loop (forward, cross-entropy, backward, fused AdamW) or infer without
gradients, eager or compiled. Contestants take turns of a few steps in rotation; ratios are medians
of those of a round, above 1 ours is faster. Attention is fused (SDPA) on both sides.

    python benchmarks/models.py                     on the CPU, in bf16
    python benchmarks/models.py --only GPT --modes train --graphs eager
"""

import argparse
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.models import GPT, Encoder, Llama, VisionTransformer
from measure import markdown_table, report, spread

VOCABULARY = 8192
CLASSES = 1000


@dataclass(frozen=True)
class Match:
    """Two implementations of one architecture.

    Attributes:
        ours, theirs: build the model.
        library: of the other.
        inputs: of one batch.
        unit: that a batch is counted in.
        count: of them in a batch.
    """

    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    library: str
    inputs: Callable[[], Tensor]
    unit: str
    count: int


def make_matches(batch: int, length: int) -> dict[str, Match]:
    """Return the pairs by name; sequences of `length` tokens."""
    sizes = {"num_layers": 6, "dim": 384, "heads": 6}
    tokens, count = (lambda: torch.randint(1, VOCABULARY, (batch, length))), batch * length
    return {
        "ViT-S/16": Match(
            lambda: VisionTransformer(
                image_size=224, patch_size=16, num_layers=12, dim=384, heads=6, channels=3,
                num_classes=CLASSES,
            ),
            lambda: importlib.import_module("timm").create_model("vit_small_patch16_224"),
            "timm", lambda: torch.randn(batch, 3, 224, 224), "images", batch,
        ),
        "BERT": Match(
            lambda: Encoder(
                vocab_size=VOCABULARY, context_length=length, num_classes=8, dropout=0.0, **sizes
            ),
            lambda: _transformers(
                "BertForSequenceClassification", "BertConfig", hidden_size=384,
                num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536, num_labels=8,
                vocab_size=VOCABULARY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            ),
            "transformers", tokens, "tokens", count,
        ),
        "GPT-2": Match(
            lambda: GPT(length, num_classes=VOCABULARY, bias=True, activation="gelu_tanh", **sizes),
            lambda: _transformers(
                "GPT2LMHeadModel", "GPT2Config", n_embd=384, n_layer=6, n_head=6,
                n_positions=length, vocab_size=VOCABULARY, resid_pdrop=0.0, embd_pdrop=0.0,
                attn_pdrop=0.0,
            ),
            "transformers", tokens, "tokens", count,
        ),
        "Llama": Match(
            lambda: Llama(
                length, num_classes=VOCABULARY, kv_heads=2, hidden_dim=1024, **sizes
            ),
            lambda: _transformers(
                "LlamaForCausalLM", "LlamaConfig", hidden_size=384, num_hidden_layers=6,
                num_attention_heads=6, num_key_value_heads=2, intermediate_size=1024,
                max_position_embeddings=length, vocab_size=VOCABULARY,
            ),
            "transformers", tokens, "tokens", count,
        ),
    }  # fmt: skip


def _transformers(model: str, config: str, **sizes: float) -> nn.Module:
    library = importlib.import_module("transformers")
    settings = getattr(library, config)(**sizes, attn_implementation="sdpa")
    if hasattr(settings, "use_cache"):
        settings.use_cache = False
    return getattr(library, model)(settings)


class Contestant:
    """A model in one mode, ready to take turns."""

    def __init__(self, model: nn.Module, match: Match, mode: str, graph: str, args) -> None:
        self._device, self._dtype = args.device, args.dtype
        self._model = model.to(args.device).train(mode == "train")
        self._inputs = match.inputs().to(args.device)
        self._is_training = mode == "train"
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self._run = torch.compile(self._model) if graph == "compiled" else self._model
        with torch.no_grad():
            logits = self._logits()
        self._targets = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=args.device)
        self.take(2)

    def take(self, steps: int) -> float:
        """Return the mean seconds of some steps."""
        began = perf_counter()
        for _ in range(steps):
            if self._is_training:
                loss = F.cross_entropy(self._logits().flatten(0, -2), self._targets.flatten())
                loss.backward()
                self._optimizer.step()
                self._optimizer.zero_grad()
            else:
                with torch.inference_mode():
                    self._logits()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return (perf_counter() - began) / steps

    def _autocast(self) -> AbstractContextManager:
        is_half = self._dtype == "bf16"
        return torch.autocast(self._device, dtype=torch.bfloat16, enabled=is_half)

    def _logits(self) -> Tensor:
        with self._autocast():
            out = self._run(self._inputs)
        return (out if isinstance(out, Tensor) else out.logits).float()


def measure(name: str, match: Match, mode: str, graph: str, args) -> dict:
    """Return what a pair does in one mode."""
    torch.manual_seed(0)
    ours = match.ours()
    theirs = match.theirs()
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    pair = [Contestant(model, match, mode, graph, args) for model in (ours, theirs)]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(args.rounds):
        for at in (0, 1) if number % 2 == 0 else (1, 0):
            times[at].append(pair[at].take(args.steps))
    ratio, half = spread([theirs / ours for ours, theirs in zip(*times, strict=True)])
    torch.compiler.reset()
    return {
        "model": name, "library": match.library, "mode": mode, "graph": graph, "unit": match.unit,
        "ours_per_s": match.count / median(times[0]),
        "theirs_per_s": match.count / median(times[1]),
        "ratio": ratio, "spread": half, "parameters": counts,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="models, by the beginning of their names")
    parser.add_argument("--modes", nargs="+", default=("train", "infer"))
    parser.add_argument("--graphs", nargs="+", default=("eager", "compiled"))
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    matches = make_matches(args.batch, args.length)
    chosen = {
        name: match
        for name, match in matches.items()
        if not args.only or name.startswith(tuple(args.only))
    }
    records = [
        measure(name, match, mode, graph, args)
        for name, match in chosen.items()
        for mode in args.modes
        for graph in args.graphs
    ]
    header = ("model", "mode", "graph", "ours", "theirs", "unit", "theirs / ours", "parameters")
    rows = [
        (
            r["model"], r["mode"], r["graph"], f"{r['ours_per_s']:,.0f}",
            f"{r['theirs_per_s']:,.0f} ({r['library']})", f"{r['unit']}/s",
            f"{r['ratio']:.3f} ± {r['spread']:.3f}",
            " / ".join(f"{count / 1e6:.2f} M" for count in r["parameters"]),
        )
        for r in records
    ]  # fmt: skip
    notes = (
        f"Batches of {args.batch}, {args.length} tokens, {args.dtype}; median of {args.rounds}"
        f" rounds of {args.steps} steps in rotation."
    )
    report(args, records, markdown_table(header, rows), notes)


if __name__ == "__main__":
    main()
