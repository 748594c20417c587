"""Quantities: what the name of a metric says about it, and numbers as people read them."""

import math
import re
from dataclasses import dataclass

_SHARES = re.compile(
    r"(?:^|_)(accuracy|acc|top\d+|f1|precision|recall|sensitivity|cpm|auc|auroc|dice|iou|miou|map"
    r"|r2|share)(?:_|$)"
)
_WORDS = {"lr": "learning rate", "val": "validation", "grad": "gradient", "auc": "AUC", "f1": "F1",
          "iou": "IoU", "auroc": "AUROC"}  # fmt: skip
_SYMBOLS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True)
class Unit:
    """A value times `factor` is shown with `symbol` behind it."""

    symbol: str = ""
    factor: float = 1.0

    def show(self, value: float) -> str:
        """Return `value` (unscaled) with its unit."""
        if self.symbol == "%":
            return f"{value * self.factor:.3g}\u202f%"
        space = "\u202f" if self.symbol and self.symbol != "/s" else ""
        return f"{number(value * self.factor)}{space}{self.symbol}"


def unit_of(name: str, largest: float) -> Unit:
    """Return the unit of the metric `name` whose values go up to `largest`."""
    if name.endswith("_bytes"):
        for size, symbol in _BYTES:
            if largest >= size:
                return Unit(symbol, 1 / size)
        return Unit("B")
    if _SHARES.search(name) and 0 <= largest <= 1:
        return Unit("%", 100.0)
    if name.endswith("_per_s"):
        return Unit("/s")
    return Unit(name.rpartition("_")[2] if name.endswith(("_s", "_ms", "_mm")) else "")


def is_higher_better(name: str) -> bool:
    """Return whether the metric `name` is one to maximise; a loss or the unknown is not."""
    return _SHARES.search(name) is not None


def title_of(name: str) -> str:
    """Return the metric `name` in words: `val_loss` -> `Validation loss`."""
    name = re.sub(r"_bytes$", "", name)
    name = re.sub(r"(\w+)_per_s$", r"\1_per_second", name)
    words = " ".join(_WORDS.get(word, word) for word in name.split("_") if word)
    return words[:1].upper() + words[1:]


def number(value: float) -> str:
    """Return `value` with up to four significant digits."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e5:
        for least, symbol in _SYMBOLS:
            if size >= least:
                return f"{value / least:.4g}\u202f{symbol}" if size < 1e15 else f"{value:.3g}"
    if 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share 0..1 as a percentage."""
    return f"{100 * share:.{digits}f}\u202f%"


def duration(seconds: float) -> str:
    """Return a time span with its two largest units: `3 h 12 min`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f}\u202fs"
    whole = round(seconds)
    for size, name, small, small_name in (
        (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")
    ):  # fmt: skip
        if whole >= size:
            return f"{whole // size}\u202f{name} {whole % size // small}\u202f{small_name}"
    return f"{whole}\u202fs"
