"""Activations that selective recomputation saves: by the planner's formula, and measured.

Korthikanti et al. 2022, arXiv 2205.05198. A block keeps `sbh (34 + 5 a s / h)` bytes, and without
the core of its attention `34 sbh` (equations 2 and 6, one GPU).

Letters: s tokens of a sequence, b samples, h width, a heads.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepseek.planner import ParallelPlan, TransformerShape, find_shape
from deepseek.planner.footprint import count_block_bytes

SMALL = {"dim": 256, "heads": 8, "context_length": 256}
NUM_BLOCKS = 2
SAMPLES = 2
PLAIN = ParallelPlan(attention="plain", sequence_parallel=False)


def drop_out(x: Tensor) -> Tensor:
    """Drop a tenth, with a mask of one byte, as on a GPU."""
    return torch.native_dropout(x, 0.1, True)[0]


class Block(nn.Module):
    """A block of a GPT as Megatron had it: scores are written to memory; bf16, dropout 0.1."""

    def __init__(self, dim: int, heads: int, is_selective: bool) -> None:
        super().__init__()
        self.heads, self.is_selective = heads, is_selective
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def core(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scores, softmax, dropout, sum over values: what is computed again."""
        s = q.shape[-2]
        later = torch.ones(s, s, dtype=torch.bool).triu(1)
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        return torch.matmul(drop_out(scores.masked_fill(later, -torch.inf).softmax(-1)), v)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, s, h)."""
        b, s, h = x.shape
        # three products, each with an output of its own, laid out as the scores' product wants it
        q, k, v = (
            part.view(b, s, self.heads, -1).transpose(1, 2).contiguous()
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        if self.is_selective:
            mixed = checkpoint(self.core, q, k, v, use_reentrant=False)
        else:
            mixed = self.core(q, k, v)
        x = x + drop_out(self.out(mixed.transpose(1, 2).reshape(b, s, h)))
        return x + drop_out(self.down(F.gelu(self.up(self.norm2(x)))))


def measure(is_selective: bool) -> int:
    """Return the bytes that a block keeps for its backward pass, weights left out."""
    torch.manual_seed(0)
    dim, heads = SMALL["dim"], SMALL["heads"]
    blocks = nn.Sequential(*(Block(dim, heads, is_selective) for _ in range(NUM_BLOCKS)))
    blocks = blocks.bfloat16()
    weights = {weight.untyped_storage().data_ptr() for weight in blocks.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    inputs = torch.randn(SAMPLES, SMALL["context_length"], dim).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        blocks(inputs)
    return sum(kept.values()) // NUM_BLOCKS


def predict(shape: TransformerShape, samples: int = 1) -> tuple[float, float]:
    """Return bytes of a block without and with selective recomputation, by the planner."""
    plan = replace(PLAIN, micro_batch_size=samples)
    selective = replace(plan, recompute="selective")
    return count_block_bytes(shape, plan).kept, count_block_bytes(shape, selective).kept


def saved(everything: float, selective: float) -> float:
    """Return the share that is saved, in per cent."""
    return 100 * (1 - selective / everything)


def main() -> None:
    """Count, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    small = TransformerShape("small", NUM_BLOCKS, vocab_size=1024, dropout=True, **SMALL)
    expected = predict(small, SAMPLES)
    measured = measure(False), measure(True)
    found = {
        "gpt3_saved": saved(*predict(find_shape("gpt3-175b"))),
        "mt_nlg_saved": saved(*predict(find_shape("megatron-530b"))),
        "small_saved_by_formula": saved(*expected),
        "small_saved_measured": saved(*measured),
        "small_bytes_by_formula": expected,
        "small_bytes_measured": measured,
        "small_ratio": measured[0] / expected[0],
        "small_ratio_selective": measured[1] / expected[1],
    }
    args.output.write_text(json.dumps(found, indent=1))
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
