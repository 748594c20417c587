"""Events that one learner takes in a second, beside river and Vowpal Wabbit, and what it predicts.

MovieLens-100K in the order of time; a click is 4 stars or more. All get the same four categories
(user, film, its first genre, the user's occupation), predict every event before they learn it, and
choose among the same number of learning rates by the log-loss of the first 20,000 events. AUC and
log-loss are of the second half. Time is that of the processor, of one thread, for all events,
without reading the file.

- service: what `deepseek online serve` does with its log, 256 events at a time: JSON, the join of
  clicks, the guard, the features, and an update of a factorisation machine for 32 examples.
- model: features and update alone, for so many rows at a time.
- river: one event at a time; `FMClassifier` of as many factors, and `LogisticRegression`.
- Vowpal Wabbit: lines of text, one at a time; `--lrq` of as many factors for each pair, and linear.

    python benchmarks/online_learners.py --movielens FOLDER
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deepseek.config.features import SparseFeature
from deepseek.config.validation import validate_settings
from deepseek.datasets import ColumnSource, InteractionDataset, infer_features
from deepseek.models import ModelEngine
from deepseek.recsys import FactorizationMachine, area_under_curve, log_loss, read_movielens
from deepseek.recsys.online.event_log import Record
from deepseek.recsys.online.learner import Learner
from deepseek.recsys.online.online_model import OnlineModel
from deepseek.recsys.online.settings import OnlineSettings
from measure import markdown_table, report

COLUMNS = ["user_id", "item_id", "genre", "occupation"]
DIM, CUT, CHOOSE = 8, 256, 20_000
Rows = Sequence[dict]


@dataclass(frozen=True)
class Learnt:
    """What became of a stream.

    Attributes:
        probs: of a 1, before it was learnt, (N,).
        labels: of the same events, (N,).
        spent_s: of the processor.
    """

    probs: np.ndarray
    labels: np.ndarray
    spent_s: float


def read_rows(folder: Path) -> list[dict]:
    """Return the events as rows of text, with `click`."""
    columns = read_movielens(folder)
    values = [list(map(str, columns[name].tolist())) for name in COLUMNS]
    clicks = np.asarray(columns["click"]).tolist()
    return [
        {**dict(zip(COLUMNS, row, strict=True)), "click": click}
        for *row, click in zip(*values, clicks, strict=True)
    ]


def write_model(path: Path, rows: Rows) -> None:
    """Write an untrained factorisation machine whose ids nobody has to know beforehand."""
    torch.manual_seed(0)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    spec = infer_features(ColumnSource(columns), labels="click")
    hashed = {name: SparseFeature(encoding="hash", buckets=1 << 16) for name in COLUMNS}
    data = InteractionDataset(columns, spec.updated("sparse", **hashed), cache="off")
    engine = ModelEngine.wrap(FactorizationMachine(embedding_dim=DIM))
    engine.bind(data.spec)
    engine.save(path)


def learn_by_service(rows: Rows, lr: float, path: Path) -> Learnt:
    """Learn events as the service does; they are in the order in which their labels came."""
    content = {
        "model": str(path), "learner": {"lr": lr},
        "join": {"labels": {"click": {"event": "click", "window": "1s"}}},
        "gate": {"window": len(rows)},
    }  # fmt: skip
    learner = Learner(OnlineModel.load(path), validate_settings(OnlineSettings, content))
    records: list[Record] = []
    for n, row in enumerate(rows):
        key = {"key": f"r{n}", "client": "the site"}  # a user's day is no attack
        features = {name: row[name] for name in COLUMNS}
        events = [{"kind": "impression", **key, "features": features}]
        events += [{"kind": "click", **key}] if row["click"] else []
        for event in events:
            records.append(Record(len(records), n * 0.01, json.dumps(event).encode()))
    records.append(Record(len(records), len(rows) * 0.01 + 60, b'{"kind":"tick"}'))
    began = time.process_time()
    for start in range(0, len(records), CUT):
        learner.learn(records[start : start + CUT])
    return Learnt(*learner.recent[0].window, time.process_time() - began)


def learn_by_model(rows: Rows, lr: float, path: Path, size: int) -> Learnt:
    """Learn rows, so many at a time."""
    model = OnlineModel.load(path)
    for module in model.engine.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True
    optimizer = torch.optim.Adagrad(model.engine.parameters(), lr=lr)
    probs, labels = np.zeros(len(rows)), labels_of(rows)
    began = time.process_time()
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        logits = model.logits(model.encode(rows[part]))[:, 0]
        probs[part] = logits.detach().sigmoid().numpy()
        optimizer.zero_grad()
        targets = torch.from_numpy(labels[part]).float()
        nn.functional.binary_cross_entropy_with_logits(logits, targets).backward()
        # opted out of by name: torch warns where it is left open
        with torch.sparse.check_sparse_tensor_invariants(False):
            optimizer.step()
    return Learnt(probs, labels, time.process_time() - began)


def learn_by_river(rows: Rows, lr: float, is_linear: bool) -> Learnt:
    """Learn rows one at a time."""
    from river import facto, linear_model, optim  # pyright: ignore[reportMissingImports]

    if is_linear:
        model = linear_model.LogisticRegression(optim.AdaGrad(lr), intercept_lr=lr)
    else:
        model = facto.FMClassifier(
            DIM, optim.AdaGrad(lr), optim.AdaGrad(lr), intercept_lr=lr,
            latent_initializer=optim.initializers.Normal(sigma=0.01, seed=0), seed=0,
        )  # fmt: skip
    probs, labels = np.zeros(len(rows)), labels_of(rows)
    began = time.process_time()
    for n, row in enumerate(rows):
        features = {f"{name}_{row[name]}": 1.0 for name in COLUMNS}
        probs[n] = model.predict_proba_one(features)[True]
        model.learn_one(features, bool(labels[n]))
    return Learnt(probs, labels, time.process_time() - began)


def learn_by_vowpal(rows: Rows, lr: float, is_linear: bool) -> Learnt:
    """Learn rows one at a time, as lines of text."""
    from vowpalwabbit import Workspace  # pyright: ignore[reportMissingImports]

    letters = "abcd"
    options = f"--loss_function logistic --link logistic -b 20 -l {lr} --quiet --random_seed 1"
    if not is_linear:
        options += "".join(f" --lrq {a}{b}{DIM}" for a, b in combinations(letters, 2))
    model = Workspace(options)
    probs, labels = np.zeros(len(rows)), labels_of(rows)
    began = time.process_time()
    for n, row in enumerate(rows):
        parts = [
            f"|{letter} {row[name].replace(' ', '_')}"
            for letter, name in zip(letters, COLUMNS, strict=True)
        ]
        example = model.parse(f"{'1' if labels[n] else '-1'} {' '.join(parts)}")
        probs[n] = model.predict(example)
        model.learn(example)
        model.finish_example(example)
    spent_s = time.process_time() - began
    model.finish()
    return Learnt(probs, labels, spent_s)


def labels_of(rows: Rows) -> np.ndarray:
    """Return labels, (N,)."""
    return np.array([row["click"] for row in rows])


def measure(name: str, learn: Callable[[Rows, float], Learnt], rows: Rows, rates: tuple) -> dict:
    """Return the record of a learner, with the rate that was best on the first events."""
    first = {lr: judge(learn(rows[:CHOOSE], lr))["log_loss"] for lr in rates}
    lr = min(rates, key=lambda rate: first[rate])
    found = learn(rows, lr)
    return {"name": name, "lr": lr, "events_per_s": len(rows) / found.spent_s, **judge(found)}


def judge(found: Learnt) -> dict[str, float]:
    """Return AUC and log-loss (nats) of the second half."""
    half = slice(len(found.labels) // 2, None)
    probs, labels = found.probs[half].astype(np.float64), found.labels[half]
    return {"auc": area_under_curve(probs, labels), "log_loss": log_loss(probs, labels)}


def learners(path: Path) -> list[tuple[str, str | None, Callable[[Rows, float], Learnt], tuple]]:
    """Return name, package, way to learn and learning rates of each."""
    adagrad, vowpal = (0.05, 0.1, 0.3), (0.1, 0.3, 1.0)
    vw = "vowpalwabbit"
    return [
        ("deepseek, service", None, lambda r, lr: learn_by_service(r, lr, path), adagrad),
        *(
            (f"deepseek, model, {n}", None, partial(learn_by_model, path=path, size=n), adagrad)
            for n in (256, 32, 4)
        ),
        ("river, FMClassifier", "river", lambda r, lr: learn_by_river(r, lr, False), adagrad),
        ("river, LogisticRegression", "river", lambda r, lr: learn_by_river(r, lr, True), adagrad),
        ("Vowpal Wabbit, --lrq", vw, lambda r, lr: learn_by_vowpal(r, lr, False), vowpal),
        ("Vowpal Wabbit, linear", vw, lambda r, lr: learn_by_vowpal(r, lr, True), vowpal),
    ]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--movielens", type=Path, required=True, help="folder of ml-100k")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(args.movielens)[: args.events]
    records, cells = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        write_model(path, rows)
        for name, package, learn, rates in learners(path):
            if package is not None and find_spec(package) is None:
                cells.append([name, f"not measured: {package} is not installed", "", "", ""])
                continue
            records.append(found := measure(name, learn, rows, rates))
            numbers = (f"{found['auc']:.4f}", f"{found['log_loss']:.4f}", f"{found['lr']:g}")
            cells.append([name, f"{found['events_per_s']:,.0f}", *numbers])
    args.movielens = str(args.movielens)
    columns = ["", "events/s of processor time", "AUC", "log-loss (nats)", "learning rate"]
    report(args, records, markdown_table(columns, cells), f"{len(rows):,} events.")


if __name__ == "__main__":
    main()
