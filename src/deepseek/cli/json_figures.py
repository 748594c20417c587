"""What `--json` prints: figures as JSON has them, and nothing else on standard output."""

import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout


def json_figures(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Return figures by name, `None` for those that are not finite: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def only_json(as_json: bool) -> AbstractContextManager:
    """Context in which what training says goes to standard error, not before the JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()
