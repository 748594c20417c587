"""A model in fewer bits, and not worse than a tolerance allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from deepseek.deploy.quantization.candidates import Candidates, find_candidates
from deepseek.deploy.quantization.draft import Draft, find_probe, float_copy
from deepseek.deploy.quantization.judge import Judge
from deepseek.deploy.quantization.observation import RANGES, find_codes
from deepseek.deploy.quantization.result import HURTS, Quantization, count_bytes
from deepseek.deploy.quantization.sensitivity import find_fewest, rank_by_harm
from deepseek.deploy.samples import Samples
from deepseek.deploy.shares import parse_tolerance
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.quantization_aware import is_aware
from deepseek.models.quantized import DTYPES, SCHEMES, is_quantised
from deepseek.registry import did_you_mean

ACTIVATIONS = ("affine", "symmetric")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Calibration:
    """How the ranges of the inputs are found, for `int8_static`.

    Attributes:
        data: samples as `quantize` takes them; `None`: a part of what the model is judged on,
            which the metric then leaves out.
        ranges: to the smallest and largest input (`minmax`), to a percentile (`percentile`), or to
            where the mean squared error is least (`mse`).
        activations: `affine`, or `symmetric` about zero.
        num_samples: at most.
    """

    data: object = None
    ranges: str = "mse"
    activations: str = "affine"
    num_samples: int = 256

    def __post_init__(self) -> None:
        for name, known in (("ranges", RANGES), ("activations", ACTIVATIONS)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"{name}={value!r} is not known", fix=did_you_mean(value, known))
        if self.num_samples < 1:
            raise ConfigError(f"num_samples={self.num_samples} is below 1", fix="give 64 or more")


def quantize(
    model: nn.Module,
    scheme: str,
    data=None,
    *,
    tolerance: float | str | None = None,
    metric: str | None = None,
    keep: Sequence[str] = (),
    embeddings: bool | None = None,
    calibration: Calibration = Calibration(),
    batch_size: int = 64,
    say: Say = lambda text: None,
) -> Quantization:
    """Return a copy of a model with linears and convolutions in 8 or 16 bits.

    Norms, softmax and the layer that makes the logits stay in float, and so does what `keep` names.
    A model that was trained by `quantization_aware` has its ranges already.

    Args:
        model: an engine, or a module; it stays as it is.
        scheme: `fp16`, `bf16`: weights and products in 16 bits. `int8_weight_only`: weights in 8
            bits, computed as before. `int8_dynamic`: linears in integers, inputs scaled row by row.
            `int8_static`: linears and convolutions in integers, inputs scaled as `calibration`
            finds; batch norms are folded first.
        data: what the model is judged on: labelled data by a metric of their task; a data set
            without labels, or batches (B, ...) of inputs, by the cosine to the original's outputs,
            or, of a model that gives numbers, by R2 with those as targets.
            `int8_static` is calibrated on some of them, half at most, and judged on the others,
            unless `calibration` has data of its own.
        tolerance: how far the metric may fall, 0.005 or "0.5%" for half a point; layers that hurt
            most are left in float until it holds. `None`: none is.
        metric: `accuracy`, `macro_f1`, `cosine`, ...; by default what the task is judged by.
        keep: names of layers, or of modules that hold them, that stay in float.
        embeddings: whether tables of embeddings are meant, too; by default for 16 bits only.
        calibration: of the inputs' ranges.
        batch_size: samples at a time.
        say: is told what is being done.

    Raises:
        ConfigError: an argument is wrong, or the tolerance cannot be held; says what was reached.
        DataError: an input is not finite, or the samples are too few.

    Paper:
        Jacob et al. 2017, arXiv 1712.05877 (integer arithmetic, folded norms); Wu et al. 2020,
        arXiv 2004.09602 (calibration, and layers left in float).
    """
    engine = ModelEngine.wrap(model)
    allowed = None if tolerance is None else parse_tolerance(tolerance)
    _check(engine, scheme, data, allowed, batch_size)
    samples, batches = _open_data(engine, scheme, data, calibration, batch_size)
    learns = scheme == "int8_static" and not is_aware(engine.module)
    holds_out = learns and calibration.data is None
    judge = None if samples is None else Judge(engine, samples, holds_out, metric)
    if embeddings is None:
        embeddings = scheme in DTYPES
    copied, learnt, notes = float_copy(engine, scheme, batches)
    probe = find_probe(copied, batches)
    found = find_candidates(copied, scheme, keep, embeddings, probe)
    tables = learnt or _find_tables(copied, found, scheme, batches, calibration, say)
    draft = Draft(copied, found, tables, probe)
    before = after = None
    if judge is not None:
        say(f"measuring {judge.metric} on {judge.num_samples:,} samples")
        notes += _doubts(judge, allowed)
        before, after = judge.measure(engine), judge.measure(draft.assemble())
        say(f"{judge.metric} {before:.4f} -> {after:.4f}")
        if allowed is not None and not before - after <= allowed:
            after = _leave_out(draft, judge, batches[0], before, after, allowed, say)
    quantized = draft.finish()
    return Quantization(
        quantized, scheme, draft.report(), count_bytes(engine), count_bytes(quantized),
        judge.metric if judge else "", before, after, judge.num_samples if judge else 0, notes,
    )  # fmt: skip


def _doubts(judge: Judge, tolerance: float | None) -> tuple[str, ...]:
    """Return what is to be said of a tolerance that so few samples cannot tell."""
    share = 1 / judge.num_samples
    if tolerance is None or not judge.counts_samples or share <= tolerance:
        return ()
    return (
        f"measured on {judge.num_samples:,} samples, of which one is {100 * share:.2g} points: too"
        f" few for a tolerance of {100 * tolerance:.2g}",
    )


def _check(
    engine: ModelEngine, scheme: str, data: object, tolerance: float | None, batch_size: int
) -> None:
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme={scheme!r} is not known", fix=did_you_mean(scheme, SCHEMES))
    if is_quantised(engine.changes):
        raise ConfigError(
            "the model is quantised already", fix="quantise the model that it was made of"
        )
    if is_aware(engine.module) and scheme != "int8_static":
        raise ConfigError(
            f"the model was trained to be quantised as int8_static, not as {scheme}",
            fix="scheme='int8_static'",
        )
    if tolerance is not None and data is None:
        raise ConfigError(f"tolerance={tolerance:g} needs data to be measured on", fix="give data=")
    if tolerance == 1:
        raise ConfigError("tolerance=1 is no share below 1", fix="0.005 is half a point")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is below 1", fix="give 1 or more")


def _open_data(
    engine: ModelEngine, scheme: str, data: object, calibration: Calibration, batch_size: int
) -> tuple[Samples | None, list[Tensor]]:
    """Return what the model is judged on, and batches to calibrate with."""
    count = calibration.num_samples
    samples = None if data is None else Samples(data, batch_size, count, num_workers="auto")
    source = samples
    if calibration.data is not None:
        source = Samples(calibration.data, batch_size, count)
    if source is None and scheme == "int8_static" and not is_aware(engine.module):
        raise ConfigError(
            "int8_static needs samples, to find the ranges of the inputs",
            fix="give data=, or use int8_dynamic or int8_weight_only",
        )
    return samples, [] if source is None else source.calibration()


def _find_tables(
    engine: ModelEngine,
    found: Candidates,
    scheme: str,
    batches: Sequence[Tensor],
    calibration: Calibration,
    say: Say,
) -> dict[str, dict]:
    """Return what is needed to make each quantised layer."""
    if scheme != "int8_static":
        return {name: {"scheme": scheme} for name in found.layers}
    say(f"calibrating {len(found.layers)} layers on {sum(map(len, batches))} samples")
    is_symmetric = calibration.activations == "symmetric"
    codes = find_codes(engine, found.layers, batches, calibration.ranges, is_symmetric)
    return {
        name: {"scheme": scheme, "input_scale": scale, "input_zero_point": zero_point}
        for name, (scale, zero_point) in codes.items()
    }


def _leave_out(
    draft: Draft,
    judge: Judge,
    probe: Tensor,
    before: float,
    after: float,
    tolerance: float,
    say: Say,
) -> float:
    """Leave layers in float until the tolerance holds; return the metric then.

    Raises:
        ConfigError: it holds only if all are.
    """
    ranked = rank_by_harm(draft.engine, draft.quantized, probe, say)

    def drop_without(names: Sequence[str]) -> float:
        drop = before - judge.measure(draft.assemble(names))
        say(f"{len(names)} of {len(ranked)} layers in float: {judge.metric} falls by {drop:.4f}")
        return drop

    count, drop = find_fewest(ranked, drop_without, tolerance)
    if count == len(ranked):
        raise ConfigError(
            f"tolerance={tolerance:g} cannot be held: {judge.metric} falls by"
            f" {min(drop, before - after):.2g} at least, from {before:.4f}",
            fix="allow more, choose bf16 or int8_weight_only, or train it: quantization_aware",
        )
    draft.keep(ranked[:count], HURTS)
    return before - drop
