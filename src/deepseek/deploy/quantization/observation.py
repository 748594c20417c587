"""What goes into each layer on real samples: the codes of its inputs, and how exact they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.errors import DataError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.registry import import_extra

RANGES = ("minmax", "percentile", "mse")
PERCENTILE = 99.99
"""Share of the inputs, in percent, that `percentile` leaves below its upper end, and above its
lower."""


def find_codes(
    engine: ModelEngine,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Tensor],
    ranges: str,
    is_symmetric: bool,
) -> dict[str, tuple[float, int]]:
    """Return the scale and the zero point of each layer's inputs; layers nobody calls are left out.

    Args:
        engine: in float.
        layers: by name, of its module.
        batches: inputs of the engine.
        ranges: how far the codes reach, one of `RANGES`: to the smallest and largest input
            (`minmax`), to a percentile, or to where the mean squared error is least (`mse`).
        is_symmetric: whether zero has the middle code.

    Raises:
        DataError: an input is not finite.
    """
    own = import_extra("torchao.quantization.pt2e.observer", "deploy")
    scheme = torch.per_tensor_symmetric if is_symmetric else torch.per_tensor_affine
    kind = own.MinMaxObserver if ranges == "minmax" else own.HistogramObserver
    observers = {name: kind(dtype=torch.uint8, qscheme=scheme) for name in layers}
    seen: set[str] = set()

    def observe(name: str, x: Tensor) -> None:
        _check_finite(name, x)
        seen.add(name)
        observers[name](x.float())

    with _watching(layers, observe), evaluating(engine), torch.no_grad():
        for batch in batches:
            engine(batch.to(engine.device))
    found = {}
    for name in layers:
        if name not in seen:
            continue
        observer: Any = observers[name]
        if ranges == "percentile":
            low, high = _percentiles(observer)
            observer = own.MinMaxObserver(dtype=torch.uint8, qscheme=scheme)
            observer(torch.stack([low, high]))
        scale, zero_point = observer.calculate_qparams()
        found[name] = float(scale), int(zero_point)
    return found


def find_called(
    engine: ModelEngine, layers: Mapping[str, nn.Module], batch: Tensor
) -> frozenset[str]:
    """Return the layers that are called, and not merely looked into.

    Raises:
        DataError: an input is not finite.
    """
    called: set[str] = set()

    def note(name: str, x: Tensor) -> None:
        _check_finite(name, x)
        called.add(name)

    with _watching(layers, note), evaluating(engine), torch.no_grad():
        engine(batch.to(engine.device))
    return frozenset(called)


def measure_noise(
    engine: ModelEngine,
    layers: Mapping[str, nn.Module],
    quantized: Mapping[str, nn.Module],
    batch: Tensor,
) -> dict[str, float]:
    """Return the ratio of signal to noise of each layer on the inputs of the float model, in dB."""
    found: dict[str, float] = {}

    def compare(name: str, x: Tensor) -> None:
        want, got = layers[name](x).float(), quantized[name](x).float()
        found[name] = signal_to_noise(want, got)

    chosen = {name: layers[name] for name in quantized}
    with _watching(chosen, compare), evaluating(engine), torch.no_grad():
        engine(batch.to(engine.device))
    return found


def signal_to_noise(want: Tensor, found: Tensor) -> float:
    """Return `10 log10(sum want^2 / sum (want - found)^2)`, in dB."""
    noise = (want - found).square().sum()
    return float(10 * torch.log10(want.square().sum() / noise))


@contextmanager
def _watching(
    layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `see(name, inputs)` before a layer computes."""
    is_busy = False

    def hook_of(name: str) -> Callable[[nn.Module, tuple], None]:
        def hook(module: nn.Module, arguments: tuple) -> None:
            nonlocal is_busy
            if not is_busy:  # what `see` itself calls is not watched
                is_busy = True
                try:
                    see(name, arguments[0])
                finally:
                    is_busy = False

        return hook

    handles = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _percentiles(observer: Any) -> tuple[Tensor, Tensor]:
    """Return the ends between which all but a small share of the inputs at each side lie."""
    shares = observer.histogram.cumsum(0) / observer.histogram.sum()
    edges = torch.linspace(float(observer.min_val), float(observer.max_val), len(shares) + 1)
    tail = 1 - PERCENTILE / 100
    low = edges[int((shares <= tail).sum())]
    high = edges[int((shares < 1 - tail).sum()) + 1]
    return low, high


def _check_finite(name: str, x: Tensor) -> None:
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):  # waits for the device
        raise DataError(
            f"an input of layer {name!r} is NaN or infinite on the calibration data",
            fix="look for broken samples in the data, and whether the model's outputs are finite",
        )
