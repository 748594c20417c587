"""A stream that is learnt as it comes, beside batches: what `recsys.py --only stream` measures.

MovieLens-100K in the order of time: will a user give 4 stars or more (AUC), and how many (MAE)?
Every event is predicted by what was before it. All models of ours are factorisation machines on
the same features: ids of user, film, genre, year and occupation, the counters of `RealTimeCrosses`,
the means of user and film, and what EASE makes of the user's ratings so far.

- means: of the film so far, and how far the user is above the means of films; for clicks the share
  of likes of the film.
- frozen: trained on the first half; neither weights nor counters move in the second.
- live: the same weights, counters that move.
- nightly: trained anew before each day on all before it, with the counters of that night.
- online: untrained at the start, predicts 8 events and learns them.
- river: one event at a time, untrained at the start: for clicks on user, film, genre and
  occupation; for ratings `BiasedMF` with the settings of its own tutorial on these data.

The rate of `online` and of river's clicks is the one that is best on the first fifth of the events;
how often batches pass over their events is chosen on the last fifth of the first half, and so were
the size of vectors (4 or 8) and how often EASE is fitted anew (after 10,000 or 20,000 events).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from deepseek.config.features import FeatureSpec
from deepseek.datasets import InteractionDataset, fit_features
from deepseek.models import ModelEngine
from deepseek.recsys import Popularity, RealTimeCrosses, area_under_curve, log_loss
from deepseek.trainer.bootstrap import Interval, bootstrap_interval
from online_learners import learn_by_river, read_rows
from recsys_slates import KEYS, Stream, affinity

IDS = ["user_id", "item_id", "genre", "release_year", "occupation"]
STEP, STARS = 8, (2, 3, 4, 5)
STRENGTH, REFIT = 1000.0, 10_000
RATES, RIVER_RATES, PASSES = (2e-4, 5e-4, 1e-3), (0.05, 0.1, 0.3), (1, 2, 4)
NUM_ROUNDS = 300


@dataclass(frozen=True)
class Table:
    """What a model takes of every event, and what it is to learn.

    Attributes:
        data: features of all events.
        batch: the same as tensors.
        targets: 1 or 0, or stars, float32 (N,).
        start: what the model's output is added to, float32 (N,).
    """

    data: InteractionDataset
    batch: Mapping[str, Tensor]
    targets: Tensor
    start: Tensor

    def loss(self, said: Tensor, rows: Tensor) -> Tensor:
        """Return the mean loss of rows: nats, or stars with small errors squared."""
        if self.data.spec.task == "binary":
            return torch.nn.functional.binary_cross_entropy_with_logits(said, self.targets[rows])
        return torch.nn.functional.huber_loss(said, self.targets[rows], delta=0.5)

    def said(self, model: ModelEngine, rows: Tensor) -> Tensor:
        """Return logits, or stars."""
        batch = {name: self.batch[name][rows] for name in ("sparse", "dense")}
        return model(batch) + self.start[rows]

    def step(self, model: ModelEngine, rows: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Learn rows, and return what the model said of them before."""
        said = self.said(model, rows)
        optimizer.zero_grad()
        self.loss(said, rows).backward()
        optimizer.step()
        return said.detach()

    def new_model(self) -> ModelEngine:
        """Return an untrained factorisation machine."""
        torch.manual_seed(0)
        engine = ModelEngine("fm", embedding_dim=4)
        engine.bind(self.data.spec)
        return engine


# -- what is known before an event -----------------------------------------------------------


def counted(stream: Stream, freeze_at: int | None, *, nightly: bool) -> dict[str, np.ndarray]:
    """Return how often each key was rated, and the shares of ratings from 2, 3, 4 and 5 stars on.

    Args:
        stream: the events.
        freeze_at: event from which on nothing is counted any more; `None`: none.
        nightly: whether counters move at night only.
    """
    found = {}
    size = len(stream.time)
    nights = (np.flatnonzero(np.diff(stream.day)) + 1).tolist() if nightly else []
    cuts = [0, *nights, size if freeze_at is None else freeze_at, size]
    for stars in STARS:
        likes = (stream.rating >= stars).astype(np.int64)
        columns = {**stream.columns, "time": stream.time, "click": likes}
        prior = float(likes[:1000].mean())
        crosses = RealTimeCrosses(KEYS, windows=["1h", "all"], smoothing=5, prior=prior)
        parts = []
        for start, stop in pairwise(cuts):
            part = {name: values[start:stop] for name, values in columns.items()}
            is_frozen = freeze_at is not None and start >= freeze_at
            seen = crosses.read_columns(part) if nightly or is_frozen else None
            taken = None if is_frozen else crosses.replay(part)
            parts.append(seen or taken or {})
        for name in crosses.feature_names:
            if name.endswith(".rate") or (name.endswith(".shown") and stars == STARS[-1]):
                shown = f"{name}_{stars}" if name.endswith(".rate") else name
                found[shown] = np.concatenate([part[name] for part in parts])
    return found


def means(stream: Stream, freeze_at: int | None, *, nightly: bool) -> np.ndarray:
    """Return the mean of the film and what the user is above such means, as they were known."""
    sums, counts = np.zeros(stream.item.max() + 1), np.zeros(stream.item.max() + 1)
    bias, met = np.zeros(stream.user.max() + 1), np.zeros(stream.user.max() + 1)
    found, waiting = np.zeros(len(stream.time), np.float32), []

    def of_film(item: int) -> float:
        return (sums[item] + 5 * 3.5) / (counts[item] + 5)

    for row, (user, item) in enumerate(zip(stream.user, stream.item, strict=True)):
        if not nightly or (row and stream.day[row] > stream.day[row - 1]):
            for known in waiting:
                mine, film = stream.user[known], stream.item[known]
                bias[mine] += stream.rating[known] - of_film(film)
                met[mine] += 1
                sums[film] += stream.rating[known]
                counts[film] += 1
            waiting = []
        found[row] = of_film(item) + bias[user] / (met[user] + 5)
        if freeze_at is None or row < freeze_at:
            waiting.append(row)
    return found


def tables_of(
    stream: Stream, freeze_at: int | None = None, *, nightly: bool = False
) -> dict[str, Table]:
    """Return the events with what was known of them, to learn clicks and to learn stars."""
    known = {"freeze_at": freeze_at, "nightly": nightly}
    expected = means(stream, **known)
    above = stream.rating - means(stream, None, nightly=False)
    numbers = {
        **counted(stream, **known),
        "affinity": affinity(stream, above, STRENGTH, **known, refit=REFIT),
        "means": expected,
    }
    dense = {name: {"log": name.endswith("shown"), "indicator": False} for name in numbers}
    first = {name: values[: len(expected) // 5] for name, values in numbers.items()}
    columns = {name: stream.columns[name] for name in IDS} | numbers
    found = {}
    kinds = (("click", {}, np.zeros(len(expected))), ("rating", {"kind": "number"}, expected))
    for name, label, start in kinds:
        spec = FeatureSpec.from_json({"dense": dense, "label": {name: label}})
        ids = FeatureSpec.from_json({"sparse": {each: {"min_count": 1} for each in IDS}})
        spec = fit_features(spec, [first]).updated("sparse", **ids.sparse)
        given = {**columns, name: stream.click if name == "click" else stream.rating}
        data = InteractionDataset(given, spec, cache="off")
        batch, _ = data.get_batch(range(len(data)), 0)
        begin = torch.from_numpy(np.asarray(start, np.float32))
        found[name] = Table(data, batch, batch["targets"], begin)
    return found


# -- ways to learn ---------------------------------------------------------------------------


def learn_online(table: Table, lr: float, num_events: int | None = None) -> np.ndarray:
    """Return what an untrained model says of each event before it learns it."""
    model = table.new_model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    rows = torch.arange(len(table.targets))[:num_events]
    return torch.cat([table.step(model, part, optimizer) for part in rows.split(STEP)]).numpy()


@torch.no_grad()
def predict(table: Table, model: ModelEngine, start: int, stop: int) -> np.ndarray:
    """Return what a model says of events."""
    return table.said(model.eval(), torch.arange(start, stop)).numpy()


def learn_batch(table: Table, stop: int, num_passes: int) -> ModelEngine:
    """Return a model that was trained on all events before one."""
    model = table.new_model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_passes):
        for rows in torch.randperm(stop, generator=generator).split(256):
            table.step(model, rows, optimizer)
    return model


def learn_nightly(stream: Stream, table: Table, half: int, num_passes: int) -> np.ndarray:
    """Return what a model says of the second half that is trained anew before each day."""
    cuts = (np.flatnonzero(np.diff(stream.day)) + 1).tolist()
    starts = [half, *(cut for cut in cuts if cut > half)]
    found = []
    for start, stop in zip(starts, [*starts[1:], len(stream.time)], strict=True):
        night = max([cut for cut in cuts if cut <= start], default=start)
        found.append(predict(table, learn_batch(table, night, num_passes), start, stop))
    return np.concatenate(found)


def river_ratings(stream: Stream) -> np.ndarray:
    """Return what river's tutorial model says of each rating before it learns it."""
    from river import optim, reco  # pyright: ignore[reportMissingImports]

    model = reco.BiasedMF(
        n_factors=10, bias_optimizer=optim.SGD(0.025), latent_optimizer=optim.SGD(0.05),
        weight_initializer=optim.initializers.Zeros(), l2_bias=0.0, l2_latent=0.0,
        latent_initializer=optim.initializers.Normal(mu=0.0, sigma=0.1, seed=73),
    )  # fmt: skip
    found = np.zeros(len(stream.time))
    names = (stream.columns["user_id"], stream.columns["item_id"], stream.rating.tolist())
    for row, (user, item, rating) in enumerate(zip(*names, strict=True)):
        found[row] = model.predict_one(user=user, item=item)
        model.learn_one(user=user, item=item, y=rating)
    return found


# -- the table -------------------------------------------------------------------------------


def measure_stream(args: argparse.Namespace) -> list[dict]:
    """Return AUC of clicks and MAE of stars of every way to learn the stream."""
    torch.set_num_threads(1)
    stream = Stream(args.movielens, 1, args.events)
    half = len(stream.time) // 2
    live, night = tables_of(stream), tables_of(stream, nightly=True)
    frozen = tables_of(stream, half)
    said = {"click": {"means": popularity(stream)}, "rating": {"means": live["rating"].start}}
    for target, own in said.items():
        passes = min(PASSES, key=partial(_batch_loss, live[target], half))
        model = learn_batch(live[target], half, passes)
        own["frozen"] = predict(frozen[target], model, half, len(stream.time))
        own["live"] = predict(live[target], model, half, len(stream.time))
        own["nightly"] = learn_nightly(stream, night[target], half, passes)
        rate = min(RATES, key=partial(_online_loss, live[target]))
        own["online"] = learn_online(live[target], rate)
        print(f"{target}: {passes} passes, rate {rate:g}", file=sys.stderr)
    if find_spec("river") is not None:
        said["click"] |= river_clicks(read_rows(args.movielens)[: args.events])
        said["rating"]["river, BiasedMF"] = river_ratings(stream)
    return [
        _judged(stream, target, name, np.asarray(own[name]), np.asarray(own["online"]))
        for target, own in said.items()
        for name in own
    ]


def popularity(stream: Stream) -> np.ndarray:
    """Return the share of likes of each event's film before it."""
    model, found = Popularity(prior=0.55, smoothing=5), np.zeros(len(stream.time))
    for row, item in enumerate(stream.item.tolist()):
        found[row] = model.scores([item])[0]
        model.update(item, stream.click[row])
    return found


def river_clicks(rows: Sequence[dict]) -> dict[str, np.ndarray]:
    """Return what river says of each click, by model."""
    found = {}
    for name, is_linear in (("FMClassifier", False), ("LogisticRegression", True)):

        def loss(lr: float, is_linear: bool = is_linear) -> float:
            first = learn_by_river(rows[: len(rows) // 5], lr, is_linear)
            return log_loss(first.probs, first.labels)

        found[f"river, {name}"] = learn_by_river(rows, min(RIVER_RATES, key=loss), is_linear).probs
    return found


def _batch_loss(table: Table, half: int, num_passes: int) -> float:
    start = half - half // 5
    said = predict(table, learn_batch(table, start, num_passes), start, half)
    return float(table.loss(torch.from_numpy(said), torch.arange(start, half)))


def _online_loss(table: Table, lr: float) -> float:
    said = torch.from_numpy(learn_online(table, lr, len(table.targets) // 5))
    return float(table.loss(said, torch.arange(len(said))))


def _judged(
    stream: Stream, target: str, name: str, said: np.ndarray, online: np.ndarray
) -> dict[str, object]:
    """Return the record of one way: the second half with an interval, and all events."""
    half = len(stream.time) // 2
    truth = stream.click if target == "click" else stream.rating
    statistic = _auc if target == "click" else _mae
    rows = np.stack([said[-half:], online[-half:], truth[-half:]], 1).astype(np.float64)
    whole = np.stack([said, said, truth[-len(said) :]], 1)
    drawn = {"groups": stream.users[-half:].tolist(), "num_rounds": NUM_ROUNDS}
    measure = "auc" if target == "click" else "mae"
    record: dict[str, object] = {"part": "stream", "data": target, "name": name}
    record[measure] = _shown(bootstrap_interval(rows, lambda part: statistic(part, 0), **drawn))
    if name != "online":
        behind = bootstrap_interval(
            rows, lambda part: statistic(part, 1) - statistic(part, 0), **drawn
        )
        record["online_less_it"] = _shown(behind)
    if len(said) == len(truth):
        record["all_events"] = round(statistic(whole, 0), 4)
    return record


def _auc(rows: np.ndarray, column: int) -> float:
    return area_under_curve(rows[:, column], rows[:, 2])


def _mae(rows: np.ndarray, column: int) -> float:
    return float(np.abs(rows[:, column].clip(1, 5) - rows[:, 2]).mean())


def _shown(interval: Interval) -> list[float]:
    return [round(float(each), 4) for each in (interval.value, interval.low, interval.high)]
