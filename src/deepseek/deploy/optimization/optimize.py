"""One call: try ways to run a model on this machine, keep the best that is as good as it was."""

import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from deepseek.datasets import DataSpec
from deepseek.deploy.artefact import describe, description_of, read_description, sha256
from deepseek.deploy.machine import fingerprint
from deepseek.deploy.optimization.candidate import BASE, ORIGINAL, list_candidates
from deepseek.deploy.optimization.journal import Journal, versions
from deepseek.deploy.optimization.material import Material, gather
from deepseek.deploy.optimization.page import write_page
from deepseek.deploy.optimization.process import MEMORY_SHARE, available_memory_bytes
from deepseek.deploy.optimization.quality import metric_of, task_of
from deepseek.deploy.optimization.result import (
    FAILED,
    KEPT,
    SKIPPED,
    TARGETS,
    Optimization,
    Row,
    choose,
)
from deepseek.deploy.optimization.search import Plan, Search
from deepseek.deploy.pruning.semi_structured import PATTERN
from deepseek.deploy.runtimes import RUNTIMES
from deepseek.deploy.samples import spec_of
from deepseek.deploy.shares import parse_share, parse_tolerance
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.checks import check_positive
from deepseek.registry import did_you_mean
from deepseek.trainer.console import Console
from deepseek.whole_file import replacing

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SPARSITIES = (PATTERN, "90%")
"""Zeros in a pattern, and the share of the FLOPs that is left: without training little may go."""
MANY_ZEROS = 0.2
"""Share of zero weights from which the report says what they bring."""
_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def optimize(
    model: ModelEngine | str | Path,
    data,
    target: str = "latency",
    tolerance: float | str = 0.005,
    budget: float | str = "5m",
    *,
    out: str | Path = "optimized",
    also: Sequence[str | Path] = (),
    metric: str = "auto",
    batch_size: int | Sequence[int] = 32,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    sparsities: Sequence[str] = SPARSITIES,
    max_samples: int | None = None,
    shows_progress: bool = True,
) -> Optimization:
    """Find the best way to run a model on this machine, and write it to `out`.

    Candidates are products of precision, runtime, sparsity and threads, for the model and for what
    is given `also`. Each is converted, opened again and measured in processes of its own; those
    that fail are rows of the report. A search that was interrupted goes on when it is called again.

    Args:
        model: an engine with a data spec, or a model file.
        data: labelled samples that were not trained on, as a data set; or, without labels, what
            `predict` takes, as a list or tensor: then agreement with the original is measured.
        target: `latency` of one sample, `throughput` of batches, `size` of the file, or `memory`.
        tolerance: largest drop of the metric, 0 to 1 (or `"0.5%"`): points of accuracy, F1 and the
            like; of a loss, a share of the original's.
        budget: time of the search: seconds, `"90s"`, `"5m"`, `"1h"`.
        out: folder of the result; it may hold an earlier search of the same model and data.
        also: files of the same model made smaller: pruned, distilled.
        metric: of the model's task; `auto`: the one its training watches.
        batch_size: samples of a batch of throughput, or several sizes: each is measured, and the
            best of them counts.
        runtimes: names of `RUNTIMES`; all by default.
        precisions: that are tried.
        sparsities: of the model without training: `2:4`, or the share of the FLOPs that is left,
            such as `90%`; tried in eager, and with the best ways where the tolerance holds.
        max_samples: to measure on; by default what the model computes in a twentieth of the budget.
        shows_progress: whether to print.

    Raises:
        ConfigError: an argument is wrong, or `out` holds something else.
        DataError: there are too few samples, or they are of other classes.
        CheckpointError: a model file is damaged.
    """
    began = time.monotonic()
    out = Path(out).absolute()
    share, seconds = parse_tolerance(tolerance), parse_budget(budget)
    sizes = _sizes_of(batch_size)
    _check_arguments(target, runtimes, precisions, max_samples)
    _check_sparsities(sparsities)
    _check_folder(out)
    engine = model if isinstance(model, ModelEngine) else ModelEngine.load(model)
    spec = _check_engine(engine)
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    sources = _write_sources(engine, also, work)
    engine = ModelEngine.load(sources[ORIGINAL])  # on the CPU, whatever the given one is on
    hashes = {name: sha256(path) for name, path in sources.items()}
    known = _read_known(out, hashes[ORIGINAL], sizes)
    count = max_samples or known.get("num_samples")
    material = gather(engine, data, work / "data.safetensors", max(sizes), seconds, count)
    task = task_of(spec, engine.num_classes, material.has_labels)
    name = metric_of(task, metric)
    known = _write_known(out, known, hashes[ORIGINAL], material, sizes)
    chosen = RUNTIMES.names() if runtimes is None else runtimes
    memory = available_memory_bytes()
    candidates = list(list_candidates(list(sources), chosen, precisions))
    plan = Plan(
        work, sources, hashes, candidates, tuple(sparsities), material, task, name, target, share,
        sizes, torch.get_num_threads(), seconds, began,
        None if memory is None else int(MEMORY_SHARE * memory),
    )  # fmt: skip
    console = Console(out / "log.txt", shows_progress)
    console.line(_opening(plan, budget))
    journal = Journal(out / "trials.jsonl", {**known, "metric": name, "threads": plan.threads})
    search = Search(plan, journal, console)
    search.run()
    return _finish(search, out, console)


def parse_budget(budget: float | str) -> float:
    """Return seconds: `90`, `"90s"`, `"5m"`, `"1h"`.

    Raises:
        ConfigError: it is no time above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", str(budget).strip().lower())
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise ConfigError(f"budget={budget!r} is not a time above 0", fix='give one such as "5m"')
    return float(found[1]) * _UNITS[found[2]]


def _check_arguments(
    target: str,
    runtimes: Sequence[str] | None,
    precisions: Sequence[str],
    max_samples: int | None,
) -> None:
    if target not in TARGETS:
        raise ConfigError(f"target={target!r} is not known", fix=did_you_mean(target, TARGETS))
    for runtime in runtimes or ():
        RUNTIMES.get(runtime)
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ConfigError(
                f"precision {precision!r} is not known", fix=did_you_mean(precision, PRECISIONS)
            )
    if max_samples is not None:
        check_positive(max_samples=max_samples)


def _sizes_of(batch_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of batches, ascending."""
    given = [batch_size] if isinstance(batch_size, int) else list(batch_size)
    if not given:
        raise ConfigError("batch_size has no sizes", fix="give one such as 32, or several")
    for each in given:
        check_positive(batch_size=each)
    return tuple(sorted(set(given)))


def _check_sparsities(sparsities: Sequence[str]) -> None:
    for each in sparsities:
        try:
            is_share = 0 < parse_share(each) < 1
        except ValueError:
            is_share = False
        if not is_share and each != PATTERN:
            raise ConfigError(
                f"sparsity {each!r} is neither {PATTERN} nor a share of the FLOPs",
                fix="give one such as 90%",
            )


def _check_engine(engine: ModelEngine) -> DataSpec:
    """Return what the model takes; refuse one that a model file alone does not bring back."""
    if engine.is_foreign:
        raise ConfigError(
            f"{engine.architecture} is no model of the zoo, and trials open it from its file",
            fix="convert it to one of ours where it is one (timm, Hugging Face:"
            " deepseek.convert.pytorch_to_deepseek); any other: export it to the runtimes you"
            " want, and deepseek.deploy.quantize",
        )
    return spec_of(engine)


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={str(out)!r} is not a folder", fix="choose another out")
    if out.is_dir() and any(out.iterdir()) and not (out / "search.json").is_file():
        is_own = [path.name for path in out.iterdir()] == ["work"]
        if not is_own:
            raise ConfigError(
                f"out={str(out)!r} holds files that are of no search", fix="choose a new folder"
            )


def _write_sources(engine: ModelEngine, also: Sequence[str | Path], work: Path) -> dict[str, Path]:
    sources = {ORIGINAL: work / "model.bin"}
    engine.save(sources[ORIGINAL])
    for path in (Path(each).absolute() for each in also):
        other = ModelEngine.load(path)
        if path.stem in sources:
            raise ConfigError(
                f"{path} has the name of another model of this search", fix="rename the file"
            )
        specs = [each.spec.fields.get("inputs") for each in (engine, other) if each.spec]
        if len(specs) != 2 or specs[0] != specs[1]:
            raise ConfigError(f"{path} does not take what the model takes", fix="leave it out")
        if other.num_classes != engine.num_classes:
            raise ConfigError(
                f"{path} has num_classes={other.num_classes}, the model {engine.num_classes}",
                fix="leave it out",
            )
        sources[path.stem] = path
    return sources


def _read_known(out: Path, model: str, sizes: Sequence[int]) -> dict:
    """Return what an earlier search in this folder was of, or {}."""
    path = out / "search.json"
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known["batch_size"], int):  # of a version with one size
            known["batch_size"] = [known["batch_size"]]
        found = (known["model"], known["batch_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}", fix="choose another out") from error
    if found != (model, list(sizes)):
        what = "another model" if found[0] != model else f"batch_size={found[1]}"
        raise ConfigError(f"out={str(out)!r} holds results of {what}", fix="choose another out")
    return known


def _write_known(
    out: Path, known: dict, model: str, material: Material, sizes: Sequence[int]
) -> dict:
    """Write what this search is of; refuse a folder of one with other data."""
    own = {
        "model": model, "batch_size": list(sizes), "data": material.digest,
        "num_samples": material.num_samples,
    }  # fmt: skip
    if known and known != own:
        raise ConfigError(f"out={str(out)!r} holds results of other data", fix="choose another out")
    _write_json(out / "search.json", own)
    return own


def _finish(search: Search, out: Path, console: Console) -> Optimization:
    """Choose, write the best and the report, and remove what is not needed any more."""
    plan = search.plan
    while True:
        best = choose(list(search.rows.values()), plan.target)
        reason = _keep(search, best, out)
        if not reason:
            break
        if best.candidate == BASE:
            raise ConfigError(f"the model could not be written: {reason}", fix="choose another out")
        search.rows[best.candidate] = replace(best, status=FAILED, reason=reason)
    result = Optimization(
        best, tuple(search.rows.values()), plan.target, plan.tolerance, plan.metric,
        plan.material.num_samples, _best_file(out, best), out / "report.html",
        _notes(plan, search.rows.values(), best),
    )  # fmt: skip
    body = {
        "best": best.candidate.name, "target": plan.target, "tolerance": plan.tolerance,
        "metric": plan.metric, "num_samples": plan.material.num_samples,
        "machine": fingerprint(), "versions": versions(), "notes": result.notes,
        "front": [row.candidate.name for row in result.front],
        "front_of_batches": [
            {"name": row.candidate.name, "batch_size": batch.size, "seconds": batch.timing.seconds,
             "samples_per_s": batch.samples_per_s}
            for row, batch in result.front_of_batches
        ],
        "rows": [row.to_json() for row in result.rows],
    }  # fmt: skip
    _write_json(out / "report.json", body)
    write_page(result, body)
    _keep_logs(search, out)
    shutil.rmtree(plan.work)
    console.line(f"best for {plan.target}: {best.candidate.name}: {result.path}")
    for note in result.notes:
        console.line(note)
    console.line(f"report: {result.report}")
    return result


def _best_file(out: Path, best: Row) -> Path:
    return out / f"best{RUNTIMES.get(best.candidate.runtime).suffix}"


def _keep(search: Search, best: Row, out: Path) -> str:
    """Bring the files of the best to their place; return why that failed, or ""."""
    target = _best_file(out, best)
    of = search.what(best.candidate, "best")
    measured = {"target": search.plan.target, "best": best.to_json(), "of": of}
    measured = json.loads(json.dumps(measured))
    if description_of(target).is_file():
        earlier = read_description(target)
        is_whole = all(
            (out / name).is_file() and sha256(out / name) == digest
            for name, digest in earlier.hashes.items()
        )
        same = earlier.measured.get("of") == measured["of"]
        if is_whole and same and earlier.machine == fingerprint():
            describe(target, replace(earlier, measured=measured))
            return ""
    if reason := search.convert(best.candidate):
        return reason
    _remove_best(out)
    made = search.artefact_of(best.candidate)
    artefact = read_description(made)
    for name in artefact.hashes:
        shutil.copyfile(made.parent / name, out / name)
    execution = replace(artefact.execution, threads=best.candidate.threads)
    described = replace(
        artefact, execution=execution, difference=best.difference, measured=measured
    )
    describe(target, described)
    return ""


def _keep_logs(search: Search, out: Path) -> None:
    """Keep what candidates that failed have printed, in `logs`."""
    for row in search.rows.values():
        log = search.artefact_of(row.candidate).parent / "log.txt"
        if row.status == FAILED and log.is_file() and log.stat().st_size:
            (out / "logs").mkdir(exist_ok=True)
            shutil.copyfile(log, out / "logs" / f"{log.parent.name}.txt")


def _remove_best(out: Path) -> None:
    """Remove the files of an earlier choice."""
    for description in out.glob("best.*.json"):
        path = description.with_suffix("")
        for name in read_description(path).hashes:
            (out / name).unlink(missing_ok=True)
        description.unlink()


def _notes(plan: Plan, rows, best: Row) -> tuple[str, ...]:
    rows = list(rows)
    notes = []
    others = [row for row in rows if row.candidate != BASE]
    if best.candidate == BASE:
        why = "is better" if any(row.status == KEPT for row in others) else "keeps the tolerance"
        if not any(row.is_measured for row in others):
            why = "could be measured"
        notes.append(f"nothing else {why}: the model stays as it is")
    left = [row.candidate.name for row in rows if "budget" in row.reason and row.status == SKIPPED]
    if left:
        notes.append(f"the budget was used up, not tried: {', '.join(left)}")
    if torch.cuda.is_available() and RUNTIMES.get(best.candidate.runtime).device == "cpu":
        notes.append(
            "there is a GPU here, and what was chosen computes on the CPU: the model file with"
            " device=cuda was not timed, and may be faster"
        )
    if best.one is not None and not best.one.is_quiet:
        notes.append("other programs used the machine all the time: the times are rough")
    for name, path in plan.sources.items():
        if (zeros := _share_of_zeros(path)) >= MANY_ZEROS:
            notes.append(
                f"{zeros:.0%} of the weights of {name} are zero: without a pattern that makes no"
                " runtime faster, only a compressed file smaller"
            )
    return tuple(notes)


def _share_of_zeros(path: Path) -> float:
    weights = [each for each in ModelEngine.load(path).state_dict().values() if each.ndim > 1]
    total = sum(each.numel() for each in weights)
    return sum(int((each == 0).sum()) for each in weights) / max(total, 1)


def _opening(plan: Plan, budget: float | str) -> str:
    material = plan.material
    labels = "labelled" if material.has_labels else "unlabelled"
    count = len(plan.candidates) + len(plan.sparsities)
    return (
        f"{count} candidates for {plan.target} in {budget}, on"
        f" {material.num_samples} of {material.num_available} {labels} samples;"
        f" {plan.metric} may drop by {plan.tolerance:.2%}; {plan.threads} threads"
    )


def _write_json(path: Path, body: dict) -> None:
    with replacing(path) as draft:
        draft.write_text(json.dumps(body, indent=1), encoding="utf-8")
