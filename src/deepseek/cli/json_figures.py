"""Figures as JSON has them: a loss that diverged is no number, and there is no NaN."""

import math
from collections.abc import Mapping


def json_figures(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Return figures by name, `None` for those that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
