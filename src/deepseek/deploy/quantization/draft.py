"""A float model with the quantised layers it may get."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepseek.deploy.fusion import fuse_engine, sample_inputs
from deepseek.deploy.quantization.candidates import Candidates
from deepseek.deploy.quantization.observation import measure_noise
from deepseek.deploy.quantization.result import Layer
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.joint_outputs import join_outputs
from deepseek.models.quantization_aware import CHANGE, QuantizationAwareLayer
from deepseek.models.quantized import make_layer

FUSED = ("norms folded", "attentions fused", "activations fused")
"""What `fold_norms` counts: ends of its notes of what was done."""


class Draft:
    """A float model, and the quantised layers that can be put into it.

    Args:
        engine: in float.
        found: its layers.
        tables: for each layer that is to be quantised, as `make_layer` takes it.
        probe: inputs to try things on.

    Raises:
        ConfigError: there is nothing to quantise.
    """

    def __init__(
        self,
        engine: ModelEngine,
        found: Candidates,
        tables: Mapping[str, dict],
        probe: Tensor | None,
    ) -> None:
        self.engine, self.probe = engine, probe
        self._kept = dict(found.kept)
        self._tables = {name: table for name, table in tables.items() if name in found.layers}
        rest = [name for name in found.layers if name not in tables]
        self._kept.update(dict.fromkeys(rest, "was not trained to be quantised"))
        if not self._tables:
            reasons = sorted(set(self._kept.values())) or ["no linear, convolution or embedding"]
            raise ConfigError(
                f"nothing of the model can be quantised: {'; '.join(reasons)}",
                fix="choose another scheme, or keep less",
            )
        self.quantized = {n: make_layer(found.layers[n], t) for n, t in self._tables.items()}
        self._noise: dict[str, float] = {}
        if probe is not None:
            self._noise = measure_noise(engine, found.layers, self.quantized, probe)

    def assemble(self, without: Sequence[str] = ()) -> ModelEngine:
        """Return the quantised model, with some of its layers in float."""
        made = copy.deepcopy(self.engine)
        tables = {name: table for name, table in self._tables.items() if name not in without}
        for name in tables:
            made.module.set_submodule(name, self.quantized[name])
        made.changes = (*made.changes, {"kind": "quantised", "layers": tables})
        return made.requires_grad_(False).eval()

    def keep(self, names: Sequence[str], why: str) -> None:
        """Leave layers in float for good."""
        for name in names:
            del self._tables[name], self.quantized[name]
            self._kept[name] = why

    def finish(self) -> ModelEngine:
        """Return the quantised model, which was seen to compute where there is something to try.

        Raises:
            ConfigError: it does not compute, or not numbers.
        """
        made = self.assemble()
        if self.probe is None:
            return made
        try:
            with torch.no_grad():
                outputs = join_outputs(made(self.probe.to(made.device)))
        except Exception as error:  # a module that looks into the weights of another
            raise ConfigError(
                f"the quantised model does not run: {error}",
                fix="keep the module that fails: keep=[...]",
            ) from error
        if not bool(torch.isfinite(outputs).all()):
            raise ConfigError(
                "the quantised model gives numbers that are not finite",
                fix="fp16 ends at 65504: choose bf16 or an int8 scheme",
            )
        return made

    def report(self) -> tuple[Layer, ...]:
        """Return what became of each layer, in the order of the module."""
        found = []
        for name, _ in self.engine.module.named_modules():
            noise = self._noise.get(name)
            if name in self._tables:
                found.append(Layer(name, self._tables[name]["scheme"], noise))
            elif name in self._kept:
                found.append(Layer(name, None, noise, self._kept[name]))
        return tuple(found)


def float_copy(
    engine: ModelEngine, scheme: str, batches: Sequence[Tensor]
) -> tuple[ModelEngine, dict[str, dict], tuple[str, ...]]:
    """Return a float copy of a model, tables of layers that were trained for it, and notes.

    Batch norms are folded for `int8_static`: they would be computed in float between integers.
    """
    copied = copy.deepcopy(engine).eval()
    copied.graph = "dynamic"
    learnt = {}
    for name, part in list(copied.module.named_modules()):
        if isinstance(part, QuantizationAwareLayer):
            learnt[name] = part.table()
            copied.module.set_submodule(name, part.to_plain())
    copied.changes = tuple(each for each in copied.changes if each["kind"] != CHANGE)
    probe = find_probe(copied, batches)
    if learnt or scheme != "int8_static" or probe is None:
        return copied, learnt, ()
    folded, notes = fold_norms(copied, probe)
    return folded, {}, notes


def fold_norms(engine: ModelEngine, probe: Tensor) -> tuple[ModelEngine, tuple[str, ...]]:
    """Return a copy that is fused where that is possible, and notes: what was done comes first."""
    try:
        fused, done = fuse_engine(engine, engine.prepare(probe[:2].to(engine.device)))
    except ConfigError as error:
        return engine, (f"norms are not folded: {error.message}",)
    counts = map(len, (done.folded, done.attentions, done.activations))
    notes = [f"{count} {what}" for count, what in zip(counts, FUSED, strict=True) if count]
    return fused, (*notes, *(f"{name} is not folded: {why}" for name, why in done.kept))


def find_probe(engine: ModelEngine, batches: Sequence[Tensor]) -> Tensor | None:
    """Return inputs to try things on: real ones, random ones, or none where nothing is known."""
    if batches:
        return batches[0]
    if engine.spec is None or "inputs" not in engine.spec.fields:
        return None
    return sample_inputs(engine)
