"""Recommendation: crossing, several labels, and the lift inside slates, beside strong baselines.

Nothing is chosen on what is tested: the last weights of a fixed number of epochs count. Intervals
are of 95 %, drawn by row, by visitor or by user; `auc_lead` is the difference to the linear model
on the same draws.

- crossing: AUC and log-loss on Criteo's sample and on adult (income).
- folds: all rows of Criteo's sample, each judged by models that have not seen it (five folds). The
  settings are those of `deepseek init table`, and a tenth of the other folds says which epoch
  counts; the linear model has the best C of 0.03, 0.1 and 0.3 on these very folds.
- joint: adult, income from all columns and never-married without marital status and relationship,
  by one model (the tower of income alone sees those two) and by one for each; retailrocket, a view
  that becomes a cart and a purchase, by ESMM and by two towers of their own.
- lift: MovieLens-100K in the order of time; the second half in slates of ten events of a user.
  Everything is scored by what was before the first event of the slate. `popularity` is the share
  of likes of a film so far; `frozen` a model of the first half whose counters stand still; `live`
  the same weights with counters that move; `nightly` is trained anew before each day, on all slates
  before it and with the counters of that night; `online` is trained on each day of slates after it
  was scored.
- stream: the same events one by one, clicks and stars, learnt in batches, at night, and as they
  come; see `recsys_stream.py`.

    python benchmarks/recsys.py --data ../shared/data --movielens FOLDER --only crossing
"""

import argparse
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from deepseek.datasets import ColumnSource, InteractionDataset, infer_features
from deepseek.datasets.table_reading import TableOptions
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.recsys import area_under_curve, log_loss
from deepseek.trainer import Trainer
from deepseek.trainer.bootstrap import Interval, bootstrap_interval
from measure import markdown_table, report, silenced
from recsys_slates import measure_lift
from recsys_stream import measure_stream

ADULT = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation",
    "relationship", "race", "sex", "capital_gain", "capital_loss", "hours_per_week",
    "native_country", "income",
]  # fmt: skip
CATEGORIES = [
    "workclass", "education", "education_num", "occupation", "race", "sex", "native_country"
]  # fmt: skip
LINEAR_C = (0.03, 0.1, 0.3)
VALUES = {  # numbers of which single values mean something
    "age_value": {"column": "age"},
    "gain_value": {"column": "capital_gain"},
    "loss_value": {"column": "capital_loss"},
    "hours_value": {"column": "hours_per_week"},
}
NUMBERS = {
    "age": {},
    "age_range": {"column": "age", "buckets": 10},
    "capital_gain": {"log": True},
    "capital_loss": {"log": True},
    "hours_per_week": {},
}
INCOME = {"income": {"positive": [">50K", ">50K."]}}
SINGLE = {"column": "marital_status", "positive": ["Never-married"]}
TELLING = ["marital_status", "relationship"]
"""What says who is married: income is learnt from it, too."""
TOWER = [32]
"""Of 16 and 32: on a fifth of the training rows, two seeds, never-married by PLE has an AUC of .880
and .884, by MMoE .880 and .881."""
MODELS = {
    "criteo": {
        "logistic_regression": ({}, {"epochs": 6, "lr": 1e-2}),
        "fm": ({"embedding_dim": 8}, {"epochs": 4, "lr": 2e-3}),
        "deepfm": ({"embedding_dim": 8, "dropout": 0.3}, {"epochs": 4, "lr": 2e-3}),
        "dcn_v2": ({"embedding_dim": 8, "dropout": 0.3}, {"epochs": 4, "lr": 2e-3}),
    },
    "adult": {
        "logistic_regression": ({}, {"epochs": 6, "lr": 1e-2}),
        "fm": ({"embedding_dim": 8}, {"epochs": 6, "lr": 2e-3}),
        "deepfm": ({"embedding_dim": 8, "dropout": 0.1}, {"epochs": 6, "lr": 2e-3}),
        "dcn_v2": ({"embedding_dim": 8, "dropout": 0.1}, {"epochs": 6, "lr": 2e-3}),
    },
}
"""Epochs and rates of Criteo: from five folds of its training and dev rows, the test part aside."""
FOUND = (
    {"embedding_dim": 16, "hidden_dims": [64, 32], "dropout": 0.1},
    {"epochs": 5, "lr": 1e-3, "weight_decay": 0.05},
)
"""What `deepseek init table` writes."""
NUM_ROUNDS, NUM_FOLDS = 300, 5


def train(
    name: str,
    args: Mapping,
    data: InteractionDataset,
    settings: Mapping,
    seed: int,
    val_data: InteractionDataset | None = None,
) -> ModelEngine:
    """Return a model after its last epoch, or after the best one by validation."""
    torch.manual_seed(seed)
    with silenced():
        trainer = Trainer(
            ModelEngine(name, **args), data, val_data, batch_size=256, seed=seed, num_workers=0,
            device="cpu", loggers=["jsonl"], output=Path("runs/recsys"), name=name,
            **{"weight_decay": 0.0, **settings},
        )  # fmt: skip
        trainer.fit()
    return trainer.model if val_data is None else ModelEngine.load(trainer.folder.model)


@torch.inference_mode()
def logits_of(engine: ModelEngine, data: InteractionDataset) -> dict[str, np.ndarray]:
    """Return the logits of every row by label."""
    found: dict[str, list[torch.Tensor]] = {}
    with evaluating(engine):
        for start in range(0, len(data), 4096):
            batch, _ = data.get_batch(range(start, min(start + 4096, len(data))), 0)
            outputs = engine(batch)
            if isinstance(outputs, torch.Tensor):
                outputs = {data.class_names[0]: outputs}
            for name, values in outputs.items():
                found.setdefault(name, []).append(values.float())
    return {name: torch.cat(parts).numpy().astype(np.float64) for name, parts in found.items()}


def scikit_probs(
    data: InteractionDataset, test: InteractionDataset, kind: str, c: float = 0.1
) -> np.ndarray:
    """Return probabilities of a linear model on one-hot ids, or of boosted trees on all columns."""
    (x, y), (given, _) = _matrix(data), _matrix(test)
    num_ids = len(data.features.ids)
    if kind == "linear":
        codes = OneHotEncoder(handle_unknown="ignore", min_frequency=5)
        numbers = list(range(num_ids, x.shape[1]))
        parts = [("ids", codes, list(range(num_ids))), ("numbers", StandardScaler(), numbers)]
        model = make_pipeline(ColumnTransformer(parts), LogisticRegression(C=c, max_iter=500))
    elif kind == "lightgbm":
        import lightgbm  # pyright: ignore[reportMissingImports]

        model = lightgbm.LGBMClassifier(
            n_estimators=150, learning_rate=0.05, n_jobs=1, random_state=0, verbose=-1
        )
    else:
        model = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.05, random_state=0)
    return np.asarray(model.fit(x, y).predict_proba(given))[:, 1]


def _matrix(data: InteractionDataset) -> tuple[np.ndarray, np.ndarray]:
    batch, _ = data.get_batch(range(len(data)), 0)
    columns = [batch["sparse"].numpy().astype(np.float64), batch["dense"].numpy()]
    return np.concatenate(columns, 1), data.labels[:, 0]


def open_adult(folder: Path, labels: Mapping, extra: list[str]) -> list[InteractionDataset]:
    """Return training and test rows."""
    sparse = {name: {} for name in [*CATEGORIES, *extra]} | VALUES
    features = {"sparse": sparse, "dense": NUMBERS}
    options = TableOptions(column_names=tuple(ADULT))
    found = []
    for name in ("adult.data", "adult.test"):
        parts = list(ColumnSource(folder / "adult" / name, options).chunks())
        columns = {key: pa.concat_arrays([part[key] for part in parts]) for key in parts[0]}
        given = found[0].features if found else {**features, "label": labels}
        found.append(InteractionDataset(columns, given, cache="off"))
    return found


def open_criteo(folder: Path) -> list[InteractionDataset]:
    """Return training and test rows."""
    path = folder / "criteo_kaggle_head8k"
    data = InteractionDataset(path / "train.tsv", layout="criteo", cache="off")
    test = InteractionDataset(path / "test.tsv", data.features, layout="criteo", cache="off")
    return [data, test]


def measure_crossing(args: argparse.Namespace) -> list[dict]:
    """Return AUC and log-loss of every model on both tables."""
    records = []
    for table in args.tables:
        if table == "criteo":
            data, test = open_criteo(args.data)
        else:
            data, test = open_adult(args.data, INCOME, TELLING)
        labels = test.labels[:, 0]
        probs = {
            "linear (scikit-learn)": scikit_probs(data, test, "linear"),
            "trees (scikit-learn's histogram boosting)": scikit_probs(data, test, "trees"),
        }
        if find_spec("lightgbm") is None:
            records.append({"part": "crossing", "data": table, "name": "LightGBM: not installed"})
        else:
            probs["trees (LightGBM)"] = scikit_probs(data, test, "lightgbm")
        for name, (model_args, settings) in MODELS[table].items():
            models = [train(name, model_args, data, settings, seed) for seed in range(args.seeds)]
            label = data.class_names[0]
            probs[name] = np.mean([sigmoid(logits_of(m, test)[label]) for m in models], 0)
        records += [judged(table, name, said, labels, probs) for name, said in probs.items()]
    return records


def measure_folds(args: argparse.Namespace) -> list[dict]:
    """Return AUC and log-loss of the models on all rows of Criteo's sample."""
    options = TableOptions(layout="criteo")
    files = [args.data / "criteo_kaggle_head8k" / f"{n}.tsv" for n in ("train", "dev", "test")]
    sources = [ColumnSource(file, options) for file in files]
    parts = [part for source in sources for part in source.chunks()]
    columns = {name: pa.concat_arrays([part[name] for part in parts]) for name in parts[0]}
    num_rows = len(columns["label"])
    fold = np.random.default_rng(0).permutation(num_rows) % NUM_FOLDS
    names = [f"linear (scikit-learn), C={c}" for c in LINEAR_C]
    kinds = {name: ("linear", c) for name, c in zip(names, LINEAR_C, strict=True)}
    if find_spec("lightgbm") is not None:
        kinds["trees (LightGBM)"] = ("lightgbm", 0.1)
    probs = {name: np.zeros(num_rows) for name in [*kinds, "deepfm", "dcn_v2"]}
    labels = np.zeros(num_rows)
    for each in range(NUM_FOLDS):
        rest, held = np.flatnonzero(fold != each), np.flatnonzero(fold == each)
        given = {name: column.take(pa.array(rest)) for name, column in columns.items()}
        data = InteractionDataset(given, infer_features(sources[0]), cache="off")
        given = {name: column.take(pa.array(held)) for name, column in columns.items()}
        test = InteractionDataset(given, data.features, cache="off")
        labels[held] = test.labels[:, 0]
        for name, (kind, c) in kinds.items():
            probs[name][held] = scikit_probs(data, test, kind, c)
        train_part, val_part = data.split(0.1)
        for name in ("deepfm", "dcn_v2"):
            model = train(name, FOUND[0], train_part, FOUND[1], each, val_part)
            probs[name][held] = sigmoid(logits_of(model, test)["label"])
    best = max(names, key=lambda name: area_under_curve(probs[name], labels))
    probs["linear (scikit-learn)"] = probs[best]
    shown_names = [best, *(name for name in probs if not name.startswith("linear"))]
    return [judged("criteo, folds", name, probs[name], labels, probs) for name in shown_names]


def judged(table: str, name: str, said: np.ndarray, labels: np.ndarray, all_probs: Mapping) -> dict:
    """Return the record of one model, with its lead over the linear one on the same draws."""
    rows = np.stack([said, all_probs["linear (scikit-learn)"], labels], 1)
    return {
        "part": "crossing", "data": table, "name": name,
        "auc": shown(bootstrap_interval(rows, auc_of(0), num_rounds=NUM_ROUNDS)),
        "auc_lead": shown(
            bootstrap_interval(
                rows, lambda part: auc_of(0)(part) - auc_of(1)(part), num_rounds=NUM_ROUNDS
            )
        ),
        "log_loss": shown(
            bootstrap_interval(
                rows, lambda part: log_loss(part[:, 0], part[:, 2]), num_rounds=NUM_ROUNDS
            )
        ),
    }  # fmt: skip


def auc_of(column: int, labels: int = 2) -> Callable[[np.ndarray], float]:
    """Return a statistic of rows: the area under the curve of one column."""
    return lambda part: area_under_curve(part[:, column], part[:, labels])


def measure_joint(args: argparse.Namespace) -> list[dict]:
    """Return the AUC of each label by models of one and of both."""
    records = []
    both = {**INCOME, "never_married": SINGLE}
    data, test = open_adult(args.data, both, TELLING)
    settings = {"epochs": 6, "lr": 2e-3}
    wide = {"embedding_dim": 8, "dropout": 0.1}
    joint = {**wide, "own_features": {"income": TELLING}, "tower_dims": TOWER}
    for name in ("mmoe", "ple"):
        found = logits_of(train(name, joint, data, settings, 0), test)
        records += [_area(name, label, found[label], test, number)
                    for number, label in enumerate(both)]  # fmt: skip
    for number, label in enumerate(both):
        seen = TELLING if label in INCOME else []
        alone, alone_test = open_adult(args.data, {label: both[label]}, seen)
        found = logits_of(train("mlp", wide, alone, settings, 0), alone_test)[label]
        records.append(_area("mlp of its own", label, found, test, number))
        probs = scikit_probs(alone, alone_test, "linear")
        records.append(_area("linear (scikit-learn)", label, probs, test, number))
    return records + measure_chain(args)


def _area(name: str, label: str, scores: np.ndarray, test: InteractionDataset, number: int) -> dict:
    rows = np.stack([scores, test.labels[:, number]], 1)
    interval = bootstrap_interval(rows, auc_of(0, 1), num_rounds=NUM_ROUNDS)
    return {"part": "joint", "data": f"adult {label}", "name": name, "auc": shown(interval)}


def open_chain(folder: Path) -> dict[str, np.ndarray]:
    """Return views of retailrocket: who, what, and whether it became a cart and a purchase."""
    path = folder / "retailrocket" / "RetailRocket_Ecommerce"
    pairs = {}
    for kind in ("view", "add_to_cart", "purchase"):
        table = np.loadtxt(path / f"{kind}_ecommerce.dat", skiprows=1, usecols=(0, 1), dtype=int)
        pairs[kind] = table[:, 0] * 10**7 + table[:, 1]
    views = np.unique(pairs["view"])
    cart = np.isin(views, pairs["add_to_cart"])
    return {
        "visitor_id": views // 10**7, "item_id": views % 10**7,
        "cart": cart.astype(int),
        "purchase": (cart & np.isin(views, pairs["purchase"])).astype(int),
    }  # fmt: skip


def measure_chain(args: argparse.Namespace) -> list[dict]:
    """Return the AUC of view to purchase by ESMM and by two towers of their own."""
    columns = open_chain(args.data)
    features = {"sparse": {"visitor_id": {}, "item_id": {}}}
    both = {"cart": {}, "purchase": {}}
    whole = InteractionDataset(columns, {**features, "label": both}, cache="off")
    alone = {
        name: InteractionDataset(
            columns, {**whole.features.to_json(), "label": {name: {}}}, cache="off"
        )
        for name in both
    }
    order = np.random.default_rng(0).permutation(len(whole))
    test, rest = order[: len(whole) // 5], order[len(whole) // 5 :]
    rows = {"cart": rest, "purchase": rest[columns["cart"][rest] == 1]}
    options, settings = {"embedding_dim": 8, "dropout": 0.2}, {"epochs": 3, "lr": 2e-3}
    joint, towers = np.zeros(len(test)), np.zeros(len(test))
    for seed in range(args.seeds):
        model = train("esmm", options, whole.part(rest), settings, seed)
        joint += sigmoid(logits_of(model, whole.part(test))["purchase"])
        product = np.ones(len(test))
        for name, data in alone.items():
            model = train("mlp", options, data.part(rows[name]), settings, seed)
            product *= sigmoid(logits_of(model, data.part(test))[name])
        towers += product
    judged_rows = np.stack([joint, towers, columns["purchase"][test]], 1)
    visitors = columns["visitor_id"][test].tolist()
    statistics = {
        "esmm": auc_of(0), "two towers": auc_of(1),
        "esmm less two towers": lambda part: auc_of(0)(part) - auc_of(1)(part),
    }  # fmt: skip
    records = []
    for name, statistic in statistics.items():
        interval = bootstrap_interval(
            judged_rows, statistic, groups=visitors, num_rounds=NUM_ROUNDS
        )
        record = {"part": "joint", "data": "retailrocket, view to purchase", "name": name}
        records.append({**record, "auc": shown(interval)})
    return records


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return probabilities."""
    return np.exp(-np.logaddexp(0, -x))


def shown(interval: Interval) -> list[float]:
    """Return value, low and high."""
    return [round(float(each), 4) for each in (interval.value, interval.low, interval.high)]


def text(values: list[float] | float | None) -> str:
    """Return a value, with its interval if it has one."""
    if isinstance(values, float):
        return f"{values:.4f}"
    return "" if values is None else f"{values[0]:.4f} ({values[1]:.4f} to {values[2]:.4f})"


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with criteo_kaggle_head8k, adult, ...")
    parser.add_argument("--movielens", type=Path, help="folder of ml-100k, of the recbole wheel")
    parts = {
        "crossing": measure_crossing, "folds": measure_folds, "joint": measure_joint,
        "lift": measure_lift, "stream": measure_stream,
    }  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--tables", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3, help="models whose mean is taken")
    parser.add_argument("--events", type=int, help="of the stream, the first ones; by default all")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    records = [record for part in args.only for record in parts[part](args)]
    columns = [
        "auc", "auc_lead", "log_loss", "ctr@1", "over_random", "over_popularity", "ndcg@10", "mae",
        "online_less_it", "all_events",
    ]  # fmt: skip
    columns = [name for name in columns if any(name in record for record in records)]
    rows = [
        [record["data"], record["name"], *(text(record.get(name)) for name in columns)]
        for record in records
    ]
    args.data, args.movielens = str(args.data), str(args.movielens)
    report(args, records, markdown_table(["", "", *columns], rows), f"Seeds: {args.seeds}.")


if __name__ == "__main__":
    main()
