"""The lift inside slates of MovieLens-100K: what `recsys.py --only lift` measures.

What a user likes more or less than others (a rating less the means of film and user) goes through
EASE to the films of a slate; it is fitted anew after every 20,000 events, and stands beside the
counters of `RealTimeCrosses` as one more number. How strongly it is regularised is chosen on slates
of the first half.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from deepseek.config.features import DenseFeature, FeatureSpec
from deepseek.datasets import InteractionDataset
from deepseek.models import ModelEngine
from deepseek.recsys import EASE, RealTimeCrosses, cut_slates, read_movielens, replay_slates
from deepseek.trainer import Trainer
from measure import silenced

SIZE, HALF, CHOOSE_FROM, TRAIN_FROM, REFIT = 10, 50_000, 40_000, 15_000, 20_000
STRENGTHS = (300.0, 1000.0, 3000.0)
KEYS = [
    "user_id", "item_id", "release_year", ("user_id", "genre"), ("item_id", "gender"),
    ("item_id", "decade"), ("item_id", "occupation"), ("user_id", "release_year"),
]  # fmt: skip
COLUMNS = ["user_id", "item_id", "genre", "release_year", "gender", "occupation"]
DAY_S = 86_400.0


class Stream:
    """The events in their order, and the slates of both halves.

    Args:
        folder: of ml-100k.
        size: events of a slate; 1: every event is one.
        num_events: the first ones; by default all.
    """

    def __init__(self, folder: Path, size: int = SIZE, num_events: int | None = None) -> None:
        columns: dict = {n: each[:num_events] for n, each in read_movielens(folder).items()}
        self.columns = {name: columns[name].to_pylist() for name in COLUMNS}
        ages = columns["age"].to_pylist()
        self.columns["decade"] = [str(int(float(age)) // 10) for age in ages]
        self.time, self.click, self.rating = (columns[n] for n in ("time", "click", "rating"))
        users = np.array(self.columns["user_id"])
        self.users, self.user = users, np.unique(users, return_inverse=True)[1]
        self.item = np.unique(np.array(self.columns["item_id"]), return_inverse=True)[1]
        if size == 1:
            self.slates = np.arange(len(users))[:, None]
        else:
            halves = [cut_slates(users[:HALF], size), cut_slates(users[HALF:], size) + HALF]
            self.slates = np.concatenate(halves)
        self.first = {int(slate[0]): slate for slate in self.slates}
        self.day = (self.time // DAY_S).astype(np.int64)

    def event(self, row: int, time: float | None = None) -> dict:
        """Return an event, at its own time or another."""
        event = {name: values[row] for name, values in self.columns.items()}
        when = self.time[row] if time is None else time
        return {**event, "time": float(when), "click": int(self.click[row])}

    def between(self, start: int, stop: int) -> np.ndarray:
        """Return the slates that begin with these events."""
        return self.slates[(self.slates[:, 0] >= start) & (self.slates[:, 0] < stop)]


def counters(
    stream: Stream, freeze_at: int | None = None, *, nightly: bool = False
) -> dict[str, np.ndarray]:
    """Return the counters of each event as they stood before the first event of its slate.

    `nightly`: as they stood when its day began.
    """
    crosses = RealTimeCrosses(KEYS, windows=["all"], prior=0.55, smoothing=5)
    found = {name: np.zeros(len(stream.time), np.float32) for name in crosses.feature_names}
    waiting: list[dict] = []
    taken = stream.day[0]
    for row in range(len(stream.time)):
        if row in stream.first:
            is_due = not nightly or row == 0 or stream.day[row] > taken
            if waiting and is_due:
                taken = stream.day[row]
                crosses.update(waiting)
                waiting = []
            slate = stream.first[row]
            seen = crosses.read([stream.event(each, stream.time[row]) for each in slate])
            for name, values in seen.items():
                found[name][slate] = values
        if freeze_at is None or row < freeze_at:
            waiting.append(stream.event(row))
    return found


def residuals(stream: Stream) -> np.ndarray:
    """Return each rating less the mean of its film and of its user, as they were before it."""
    sums, counts = np.zeros(stream.item.max() + 1), np.zeros(stream.item.max() + 1)
    bias, met = np.zeros(stream.user.max() + 1), np.zeros(stream.user.max() + 1)
    found = np.zeros(len(stream.time), np.float32)
    for row, (user, item, rating) in enumerate(
        zip(stream.user, stream.item, stream.rating, strict=True)
    ):
        above = rating - (sums[item] + 5 * 3.5) / (counts[item] + 5)
        found[row] = above - bias[user] / (met[user] + 5)
        bias[user] += above
        met[user] += 1
        sums[item] += rating
        counts[item] += 1
    return found


def affinity(
    stream: Stream,
    values: np.ndarray,
    strength: float,
    freeze_at: int | None = None,
    *,
    nightly: bool = False,
    refit: int = REFIT,
) -> np.ndarray:
    """Return what EASE says of each event, by what its user did before the slate.

    `nightly`: before the day of it. It is fitted anew after every `refit` events.
    """
    num_items = int(stream.item.max()) + 1
    met = np.zeros((int(stream.user.max()) + 1, num_items), np.float32)
    model, found, taken = None, np.zeros(len(stream.time), np.float32), 0
    for row in range(len(stream.time)):
        is_open = freeze_at is None or row <= freeze_at
        if nightly and row and stream.day[row] > stream.day[row - 1]:
            met[stream.user[taken:row], stream.item[taken:row]] = values[taken:row]
            taken = row
        if row and row % refit == refit // 2 and is_open:
            end = taken if nightly else row
            model = EASE(strength).fit(
                stream.user[:end], stream.item[:end], num_items, values[:end]
            )
        if model is not None and row in stream.first:
            slate = stream.first[row]
            found[slate] = met[stream.user[row]] @ model.weights[:, stream.item[slate]]
        if is_open and not nightly:
            met[stream.user[row], stream.item[row]] = values[row]
    return found


def table_of(stream: Stream, numbers: Mapping[str, np.ndarray], slates: np.ndarray, spec=None):
    """Return the events of slates as a data set."""
    rows = slates.ravel()
    columns = {name: values[rows] for name, values in numbers.items()}
    if spec is None:
        dense = {name: DenseFeature(log=name.endswith("shown")) for name in columns}
        spec = FeatureSpec.from_json({"label": {"click": {}}}).updated("dense", **dense)
    return InteractionDataset({**columns, "click": stream.click[rows]}, spec, cache="off")


def fit(data: InteractionDataset, seed: int) -> ModelEngine:
    """Return a logistic regression after three epochs."""
    torch.manual_seed(seed)
    with silenced():
        trainer = Trainer(
            ModelEngine("logistic_regression"), data, batch_size=256, epochs=3, lr=1e-2, seed=seed,
            num_workers=0, device="cpu", loggers=["jsonl"], output=Path("runs/recsys"),
            weight_decay=0.0,
        )  # fmt: skip
        trainer.fit()
    return trainer.model


@torch.no_grad()
def scores_of(model: ModelEngine, data: InteractionDataset) -> np.ndarray:
    """Return the logits of slates, (S, K)."""
    batch, _ = data.get_batch(range(len(data)), 0)
    return model.eval()(batch).numpy().reshape(-1, SIZE)


def online_scores(model: ModelEngine, data: InteractionDataset, days: np.ndarray) -> np.ndarray:
    """Return scores of slates by a model that learns each day's slates after they were scored."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    found = []
    for day in np.unique(days):
        slates = np.flatnonzero(days == day)
        rows = (slates[:, None] * SIZE + np.arange(SIZE)).ravel()
        batch, _ = data.get_batch(rows.tolist(), 0)
        found.append(scores_of(model, data.part(rows)))
        for part in torch.arange(len(rows)).split(256):
            logits = model.train()({name: each[part] for name, each in batch.items()})
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, batch["targets"][part]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return np.concatenate(found)


def nightly_scores(stream: Stream, numbers: Mapping, slates: np.ndarray) -> np.ndarray:
    """Return scores of slates by a model that is trained anew before each day, on all before it."""
    data = table_of(stream, numbers, stream.between(TRAIN_FROM, HALF))
    found = np.zeros(slates.shape, np.float32)
    days = stream.day[slates[:, 0]]
    for day in np.unique(days):
        start = int(np.searchsorted(stream.day, day))
        before = stream.between(TRAIN_FROM, start)
        before = before[before.max(1) < start]  # a slate may end on a later day
        model = fit(table_of(stream, numbers, before, data.features), 0)
        given = table_of(stream, numbers, slates[days == day], data.features)
        found[days == day] = scores_of(model, given)
    return found


def choose_strength(stream: Stream, counted: Mapping, values: np.ndarray, seed: int) -> tuple:
    """Return the strength that is best on the slates before the second half, and its numbers."""
    best = (-1.0, 0.0, {})
    for strength in STRENGTHS:
        numbers = {**counted, "affinity": affinity(stream, values, strength)}
        data = table_of(stream, numbers, stream.between(TRAIN_FROM, CHOOSE_FROM))
        slates = stream.between(CHOOSE_FROM, HALF)
        said = scores_of(fit(data, seed), table_of(stream, numbers, slates, data.features))
        clicked = stream.click[slates]
        reached = replay_slates({"it": said}, clicked, stream.users[slates[:, 0]]).clicks["it"]
        best = max(best, (float(reached.mean()), strength, numbers), key=lambda each: each[0])
    return best[1:]


def measure_lift(args: argparse.Namespace) -> list[dict]:
    """Return CTR@1 of every order of the same slates, with lifts drawn by user."""
    stream = Stream(args.movielens)
    counted, values = counters(stream), residuals(stream)
    strength, live = choose_strength(stream, counted, values, 0)
    frozen = {
        **counters(stream, freeze_at=HALF),
        "affinity": affinity(stream, values, strength, freeze_at=HALF),
    }
    data = table_of(stream, live, stream.between(TRAIN_FROM, HALF))
    slates = stream.between(HALF, len(stream.time))
    on_live = table_of(stream, live, slates, data.features)
    model = fit(data, 0)
    scores = {
        "popularity": counted["item_id.all.rate"][slates],
        "frozen": scores_of(model, table_of(stream, frozen, slates, data.features)),
        "live": scores_of(model, on_live),
    }
    by_night = {
        **counters(stream, nightly=True),
        "affinity": affinity(stream, values, strength, nightly=True),
    }
    scores["nightly"] = nightly_scores(stream, by_night, slates)
    scores["online"] = online_scores(model, on_live, stream.day[slates[:, 0]])
    replay = replay_slates(scores, stream.click[slates], stream.users[slates[:, 0]])
    records = []
    for name in ("random", *scores):
        record: dict = {"part": "lift", "data": f"{len(slates)} slates", "name": name}
        record["ctr@1"] = _shown(replay.click_rate(name))
        if name != "random":
            record["over_random"] = _shown(replay.lift(name, "random"))
        if name not in ("random", "popularity"):
            record["over_popularity"] = _shown(replay.lift(name, "popularity"))
        records.append({**record, "strength": strength})
    return records


def _shown(interval) -> list[float]:
    return [round(float(each), 4) for each in (interval.value, interval.low, interval.high)]
