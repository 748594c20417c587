"""What became of a model and of each of its layers."""

from dataclasses import asdict, dataclass

from torch import nn

from deepseek.models import ModelEngine

HURTS = "hurts most"
"""Why a layer stays in float that would cost more than the tolerance."""


@dataclass(frozen=True)
class Layer:
    """A layer that was quantised, or was not.

    Attributes:
        name: in the module.
        scheme: of `models.quantized`; `None` in float.
        noise_db: ratio of signal to noise of its outputs, in dB; `None` where it was not measured.
        why: it stays in float.
    """

    name: str
    scheme: str | None
    noise_db: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Quantization:
    """A quantised model, and what it took.

    Attributes:
        model: saves, loads and predicts as any other, in evaluation.
        scheme: that was asked for.
        layers: all that could be meant, in the order of the module.
        bytes_before, bytes_after: of the weights and buffers.
        metric: what the model is judged by; empty where there were no data.
        before, after: the metric; higher is better.
        num_samples: that it was measured on.
        notes: what else there is to know.
    """

    model: ModelEngine
    scheme: str
    layers: tuple[Layer, ...]
    bytes_before: int
    bytes_after: int
    metric: str = ""
    before: float | None = None
    after: float | None = None
    num_samples: int = 0
    notes: tuple[str, ...] = ()

    @property
    def drop(self) -> float | None:
        """How far the metric fell."""
        return None if self.before is None or self.after is None else self.before - self.after

    def describe(self) -> str:
        """Return it in words, and a line for each layer."""
        done = [layer for layer in self.layers if layer.scheme is not None]
        head = f"{self.scheme}: {len(done)} of {len(self.layers)} layers"
        parts = [head, f"{_size(self.bytes_before)} -> {_size(self.bytes_after)}"]
        if self.before is not None and self.after is not None:
            parts.append(
                f"{self.metric} {self.before:.4f} -> {self.after:.4f}"
                f" on {self.num_samples:,} samples"
            )
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"  {layer.name:<{width}}  {_noise(layer)}"
            if layer.scheme
            else f"  {layer.name:<{width}}  in float: {layer.why}"
            for layer in self.layers
        ]
        return "\n".join(["; ".join(parts), *self.notes, *lines])

    def to_json(self) -> dict:
        """Return all but the model, JSON-able."""
        return {
            "scheme": self.scheme,
            "layers": [asdict(layer) for layer in self.layers],
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "num_samples": self.num_samples,
            "notes": list(self.notes),
        }


def count_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's weights and buffers, shared ones once."""
    tensors = {id(each): each for each in (*module.parameters(), *module.buffers())}
    return sum(each.numel() * each.element_size() for each in tensors.values())


def _noise(layer: Layer) -> str:
    return "quantised" if layer.noise_db is None else f"{layer.noise_db:5.1f} dB"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
