"""Learning-rate range test: the loss while the learning rate rises, before a run is begun.

Paper: Smith 2017, arXiv 1506.01186, section 3.3. Departures: the rate rises exponentially, and the
suggestion is where the smoothed loss falls fastest per decade.
"""

import copy
import math
import warnings
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepseek.checkpoint import RandomState
from deepseek.errors import ConfigError
from deepseek.trainer.device import cpu_threads
from deepseek.trainer.task import Batch

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

SMOOTHING = 0.9
DIVERGED = 4.0  # times the least smoothed loss: nothing is learnt beyond
MIN_POINTS = 10
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 280, 60, 34, 40


@dataclass(frozen=True)
class LRRange:
    """What the loss did at each learning rate.

    Attributes:
        lrs: in rising order, up to where the loss ran away.
        losses: mean of each batch, before the update with that learning rate.
        smoothed: exponentially smoothed, without its bias at the start.
        suggestion: learning rate at which the smoothed loss falls fastest.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float

    def plot(self, path: str | Path | None = None) -> str:
        """Return the curve as SVG, and write it to `path` where given."""
        logs = np.log10(self.lrs)
        ceiling = min(max(self.losses), 2 * self.losses[0])
        low, high = min(self.smoothed), ceiling
        inner_width, inner_height = WIDTH - LEFT - 16, HEIGHT - TOP - BOTTOM

        def place(lr_log: float, loss: float) -> str:
            x = LEFT + (lr_log - logs[0]) / (logs[-1] - logs[0]) * inner_width
            y = TOP + (high - min(loss, high)) / ((high - low) or 1.0) * inner_height
            return f"{x:.1f},{min(max(y, TOP), TOP + inner_height):.1f}"

        lines = [
            '<polyline fill="none" stroke="{}" stroke-width="{}" points="{}"/>'.format(
                color, width, " ".join(map(place, logs, values))
            )
            for color, width, values in (("#bbb", 1, self.losses), ("#0072b2", 2, self.smoothed))
        ]
        at = place(math.log10(self.suggestion), low).split(",")[0]
        ticks = "".join(
            f'<text x="{place(decade, low).split(",")[0]}" y="{HEIGHT - 22}"'
            f' text-anchor="middle">1e{decade}</text>'
            for decade in range(math.ceil(logs[0]), math.floor(logs[-1]) + 1)
        )
        title = escape(f"loss by learning rate; falls fastest at {self.suggestion:.1e}")
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
            ' font-family="sans-serif" font-size="11">'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
            f'<text x="{LEFT}" y="20" font-weight="bold">{title}</text>'
            f'<rect x="{LEFT}" y="{TOP}" width="{inner_width}" height="{inner_height}" fill="none"'
            f' stroke="#bbb"/><line x1="{at}" x2="{at}" y1="{TOP}" y2="{TOP + inner_height}"'
            f' stroke="#d55e00" stroke-dasharray="4 3"/>{"".join(lines)}{ticks}'
            f'<text x="{LEFT - 6}" y="{TOP + 10}" text-anchor="end">{high:.3g}</text>'
            f'<text x="{LEFT - 6}" y="{TOP + inner_height}" text-anchor="end">{low:.3g}</text>'
            f'<text x="{LEFT + inner_width / 2}" y="{HEIGHT - 6}" text-anchor="middle">learning'
            " rate</text></svg>"
        )
        if path is not None:
            Path(path).write_text(svg, encoding="utf-8")
        return svg


def lr_range_test(
    trainer: "Trainer", min_lr: float = 1e-7, max_lr: float = 10.0, num_steps: int = 100
) -> LRRange:
    """Train a few steps with a rising learning rate, and put everything back.

    Args:
        trainer: not begun; its weights, generators and position in the data stay as they are.
        min_lr: learning rate of the first step.
        max_lr: of the last.
        num_steps: optimizer steps; the test ends early where the loss runs away.

    Raises:
        ConfigError: the range is empty, or the loss ran away at once.
    """
    if not 0 < min_lr < max_lr or num_steps < MIN_POINTS:
        raise ConfigError(
            f"min_lr={min_lr}, max_lr={max_lr}, num_steps={num_steps} is no range test",
            fix=f"give 0 < min_lr < max_lr, and at least {MIN_POINTS} steps",
        )
    step, loader = trainer.assembly.step, trainer.train_loader
    if step.parallel.world.is_distributed:
        raise ConfigError(
            "the learning-rate range test runs in one process",
            fix="run it without deepseek launch",
        )
    kept = copy.deepcopy((trainer.model.module.state_dict(), step.optimizer.state_dict()))
    holders = [each for each in (step.guard, step.scaler, step.joint) if each is not None]
    states = copy.deepcopy([each.state_dict() for each in holders])
    random, place, ema = RandomState.read(), loader.state_dict(), step.ema
    graph = step.graph
    notices = step.on_halved, graph.on_other_shape, graph.on_loss_uncompiled
    step.on_halved, graph.on_other_shape = _warn_halved, lambda shape: None  # there is no run
    graph.on_loss_uncompiled = lambda reason: None
    step.ema = None
    trainer.model.train()
    try:
        with cpu_threads(trainer.assembly.cpu_threads):
            lrs, losses = _climb(trainer, min_lr, max_lr, num_steps)
    finally:
        step.boundary.close()
        step.on_halved, graph.on_other_shape, graph.on_loss_uncompiled = notices
        step.ema = ema
        step.optimizer.zero_grad(set_to_none=True)
        trainer.model.module.load_state_dict(kept[0])
        step.optimizer.state.clear()
        step.optimizer.load_state_dict(kept[1])
        for holder, state in zip(holders, states, strict=True):
            holder.load_state_dict(state)
        loader.load_state_dict(place)
        random.restore()
    return _judge(lrs, losses)


def _climb(
    trainer: "Trainer", min_lr: float, max_lr: float, num_steps: int
) -> tuple[list[float], list[float]]:
    step = trainer.assembly.step
    lrs, losses = [], []
    least, average = math.inf, 0.0
    batches = iter(trainer.train_loader)
    for number in range(num_steps):
        batch: Batch | None = next(batches, None)
        if batch is None:
            batches = iter(trainer.train_loader)
            batch = next(batches)
        lr = min_lr * (max_lr / min_lr) ** (number / (num_steps - 1))
        step.boundary.open(is_step=False)  # what a step that is begun anew goes back to
        accumulated = step.accumulate(batch, lr=lr)
        loss = float(accumulated.loss_sum) / max(1, accumulated.num_items)
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING ** (number + 1))
        least = min(least, smoothed)
        if not math.isfinite(loss) or (number > MIN_POINTS and smoothed > DIVERGED * least):
            break
        lrs.append(lr)
        losses.append(loss)
        step.update(batch, step.measure(accumulated), number, lr=lr)
        step.boundary.close()
    return lrs, losses


def _warn_halved(micro_batch_size: int) -> None:
    warnings.warn(
        f"out of memory: micro-batches of {micro_batch_size} samples from now on", stacklevel=2
    )


def _judge(lrs: list[float], losses: list[float]) -> LRRange:
    if len(lrs) < MIN_POINTS:
        raise ConfigError(
            f"the loss ran away after {len(lrs)} steps, at lr={lrs[-1] if lrs else 0:.1e}",
            fix="begin at a smaller min_lr, or look at the data",
        )
    smoothed, average = [], 0.0
    for number, loss in enumerate(losses):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING ** (number + 1)))
    slopes = np.gradient(np.array(smoothed), np.log10(lrs))
    # the first points are hardly smoothed, and the minimum ends the descent
    end = max(MIN_POINTS, int(np.argmin(smoothed)) + 1)
    best = MIN_POINTS // 2 + int(np.argmin(slopes[MIN_POINTS // 2 : end]))
    return LRRange(tuple(lrs), tuple(losses), tuple(smoothed), lrs[best])
