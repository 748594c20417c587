"""Tables that grow beside hashing into a table of a fixed size: rate, memory, quality.

Rate: a table is filled with `--ids` ids, 62-bit numbers, and then learns from a zipf stream of them
(exponent 1). One row is one batch size; a look-up with its update counts once. Beside it
`nn.Embedding` with sparse gradients and `torch.optim.Adagrad`, ids hashed into as many rows as take
the same bytes. Memory: all of the table after the ids not used for longest went, against what the
vectors, the optimizer's sums, ids and times of those left take.

Quality: ids with an effect each, and a click drawn by it; every day a part of the ids is replaced
by new ones. Both tables learn the stream once, batch by batch, each batch judged before it is
learnt from; the last day counts. `no collisions` is a table as large as all ids that ever come.

    python benchmarks/recsys_tables.py
    python benchmarks/recsys_tables.py --ids 200000 --events 400000
"""

import argparse
from time import perf_counter, process_time

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from deepseek.recsys.tables import AdaGrad, GrowingEmbedding
from deepseek.recsys.tables.mixing import mix
from measure import markdown_table, report, spread

LR = 0.05
DAYS, REPLACED = 8, 0.2
NOTES = (
    "Rates: millions of ids a second, median of the rounds. Memory: bytes of the whole table for"
    " each id in it; needed: vector, sums, id and time of each. Quality: of the last day's events,"
    " each before it is learnt from."
)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=5_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 65536, 262144])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=2_000_000, help="of the quality task")
    parser.add_argument("--live", type=int, default=100_000, help="ids at a time, quality task")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the processor: on a shared machine"
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [*rates(args), *quality(args)]
    header = ["what", "table", "value", "+-", "unit"]
    table = [[str(row[column]) for column in header] for row in rows]
    report(args, rows, markdown_table(header, table), NOTES)


def row(what: str, table: str, values: list[float], unit: str, digits: int = 2) -> dict:
    """Return a line of the table."""
    middle, off = spread(values)
    found = {"what": what, "table": table, "value": f"{middle:.{digits}f}"}
    found |= {"+-": f"{off:.{digits}f}" if len(values) > 1 else "", "unit": unit}
    print(f"  {found}", flush=True)
    return found


# -- rate and memory -------------------------------------------------------------------------------


def zipf(num_ids: int, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Return numbers below `num_ids`, number n in proportion to 1 / (n + 1)."""
    shares = np.cumsum(1 / np.arange(1, num_ids + 1))
    return torch.from_numpy(np.searchsorted(shares, rng.random(shape) * shares[-1]))


def rates(args: argparse.Namespace) -> list[dict]:
    """Return what a full table takes and how fast it is, beside one of a fixed size."""
    now = process_time if args.cpu_time else perf_counter
    rng = np.random.default_rng(0)
    names = torch.from_numpy(rng.integers(-(2**62), 2**62, args.ids))
    table = GrowingEmbedding(args.dim, AdaGrad(lr=LR))
    began = now()
    for part in names.split(262144):
        table.learn(part, torch.zeros(len(part), args.dim))
    took = now() - began
    found = [row("first time, with growth", "growing", [args.ids / took / 1e6], "M/s")]
    needed = args.dim * 8 + 16
    num_rows = len(table) * (needed + 6) // (args.dim * 8)
    hashed = nn.Embedding(num_rows, args.dim, sparse=True)
    adagrad = torch.optim.Adagrad(hashed.parameters(), lr=LR)
    for size in args.batches:
        batches = names[zipf(args.ids, (args.rounds + 1, max(1, 524288 // size), size), rng)]
        gradients = torch.randn(size, args.dim)

        def learn(ids: Tensor, gradients: Tensor = gradients) -> None:
            table(ids).backward(gradients)
            table.step()

        def learn_hashed(ids: Tensor, gradients: Tensor = gradients) -> None:
            hashed(mix(ids).remainder(num_rows)).backward(gradients)
            adagrad.step()
            adagrad.zero_grad()

        def look_up(ids: Tensor) -> None:
            with torch.no_grad():
                table(ids)

        ways = [
            ("look-up + update", "growing", learn),
            ("look-up + update", "hashed", learn_hashed),
            ("look-up", "growing", look_up),
        ]
        for what, name, act in ways:
            speeds = []
            for several in batches:
                began = now()
                for ids in several:
                    act(ids)
                speeds.append(batches[0].numel() / (now() - began) / 1e6)
            found.append(row(f"{what}, batches of {size}", name, speeds[1:], "M/s"))
    for share in (0.9, 0.5, 0.1):
        table.expire(keep=int(args.ids * share))
        size = table.nbytes / len(table)
        what = f"memory, {len(table):,} ids left"
        found.append(row(what, "growing", [size], "bytes an id", 1))
        found.append(row(what, "growing", [size / needed], "of needed", 3))
    return found


# -- quality ---------------------------------------------------------------------------------------


def quality(args: argparse.Namespace) -> list[dict]:
    """Return how well each table predicts the clicks of the last day."""
    rng = np.random.default_rng(1)
    days, effects = stream(args, rng)
    per_id = args.dim * 8 + 16 + 6
    num_rows = args.live * per_id // (args.dim * 8)
    tables = {
        "growing": GrowingEmbedding(args.dim, AdaGrad(lr=LR), max_ids=args.live),
        "hashed, equal bytes": nn.Embedding(num_rows, args.dim, sparse=True),
        "no collisions": nn.Embedding(len(effects), args.dim, sparse=True),
    }
    found = []
    for name, table in tables.items():
        if isinstance(table, nn.Embedding):
            nn.init.normal_(table.weight, std=0.01)
        scores, labels = learn_stream(table, days, args)
        found.append(row("quality: AUC", name, [float(roc_auc_score(labels, scores))], "", 4))
        found.append(row("quality: log-loss", name, [float(log_loss(labels, scores))], "nats", 4))
    ids, clicks = days[-1]
    truth = torch.sigmoid(effects[ids])
    found.append(row("quality: AUC", "the truth", [float(roc_auc_score(clicks, truth))], "", 4))
    found.append(row("quality: log-loss", "the truth", [float(log_loss(clicks, truth))], "nats", 4))
    return found


def stream(
    args: argparse.Namespace, rng: np.random.Generator
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return ids and clicks by day, and the effect of each id that ever comes."""
    live = np.arange(args.live)
    num_new = int(args.live * REPLACED)
    effects = torch.from_numpy(rng.normal(-1, 1.5, args.live + DAYS * num_new)).float()
    ranks = torch.arange(args.live)
    days = []
    for day in range(DAYS):
        gone = rng.choice(args.live, num_new, replace=False)
        live[gone] = args.live + day * num_new + np.arange(num_new)
        drawn = ranks[zipf(args.live, (args.events // DAYS,), rng)]
        ids = torch.from_numpy(live)[drawn]
        clicks = (torch.from_numpy(rng.random(len(ids))) < torch.sigmoid(effects[ids])).float()
        days.append((ids, clicks))
    return days, effects


def learn_stream(
    table: nn.Module, days: list[tuple[Tensor, Tensor]], args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Learn all days, and return scores and clicks of the last one."""
    adagrad = None
    if isinstance(table, nn.Embedding):
        adagrad = torch.optim.Adagrad(table.parameters(), lr=LR)
    scores = []
    for day, (ids, clicks) in enumerate(days):
        for part, wanted in zip(ids.split(2048), clicks.split(2048), strict=True):
            if isinstance(table, nn.Embedding):
                is_whole = table.num_embeddings >= args.live * (1 + DAYS * REPLACED)
                part = part if is_whole else mix(part).remainder(table.num_embeddings)
            logits = table(part).sum(1)
            if day == DAYS - 1:
                scores.append(logits.detach().sigmoid())
            binary_cross_entropy_with_logits(logits, wanted, reduction="sum").backward()
            if isinstance(table, GrowingEmbedding):
                table.step()
            elif adagrad is not None:
                adagrad.step()
                adagrad.zero_grad()
    return torch.cat(scores), days[-1][1]


if __name__ == "__main__":
    main()
