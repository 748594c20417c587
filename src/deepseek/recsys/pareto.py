"""Which of several models are not beaten in every objective, and a picture of them.

Shapes: N models, M objectives.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from deepseek.deploy.report.chart import Point, scatter_chart
from deepseek.errors import ConfigError


def pareto_front(values: Sequence | np.ndarray) -> np.ndarray:
    """Return which rows no other one is at least as good as everywhere and better somewhere.

    Args:
        values: of each model and objective, higher is better, (N, M).

    Returns:
        bool (N,).

    Example:
        >>> pareto_front([[1, 3], [2, 2], [1, 2]]).tolist()
        [True, True, False]
    """
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2:
        raise ConfigError(f"values of shape {rows.shape} are no table", fix="give (N, M)")
    no_worse = (rows[:, None] >= rows).all(2)
    better = (rows[:, None] > rows).any(2)
    is_beaten = np.asarray((no_worse & better).any(0))
    return ~is_beaten


def pareto_chart(values: Mapping[str, Sequence[float]], names: tuple[str, str], title: str) -> str:
    """Return a `<figure>` of two objectives; rings are beaten by another model.

    Args:
        values: model -> both objectives, higher is better.
        names: of the objectives.
        title: heading, plain text.
    """
    rows = np.array(list(values.values()), dtype=np.float64)
    if rows.shape[1:] != (2,):
        raise ConfigError(f"values of shape {rows.shape}", fix="give two objectives a model")
    is_best = pareto_front(rows)
    points = [
        Point(float(x), float(y), name, f"{name}: {names[0]} {x:.4g}, {names[1]} {y:.4g}",
              "not beaten" if best else "beaten", is_hollow=not best)
        for name, (x, y), best in zip(values, rows, is_best, strict=True)
    ]  # fmt: skip
    line = sorted((float(x), float(y)) for x, y in rows[is_best])
    kept = ", ".join(name for name, best in zip(values, is_best, strict=True) if best)
    return scatter_chart(
        points, title=title, x_name=names[0], line=line,
        summary=f"{names[1]} over {names[0]}; not beaten in both: {kept}",
    )  # fmt: skip
