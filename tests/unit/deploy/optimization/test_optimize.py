import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from deepseek.deploy import optimize
from deepseek.deploy.artefact import load_engine
from deepseek.deploy.optimization import candidate, search
from deepseek.deploy.optimization.optimize import _notes, _read_known, parse_budget
from deepseek.deploy.optimization.process import run_trial
from deepseek.deploy.shares import parse_tolerance
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine, VisionTransformer

FAULTS = ("eager", "crashing", "wrong", "worse")


@pytest.fixture
def started(monkeypatch):
    """What processes are started, in order."""
    calls = []

    def run(kind, task, *rest):
        calls.append((kind, task.runtime, task.precision))
        return run_trial(kind, task, *rest)

    monkeypatch.setattr(search, "run_trial", run)
    monkeypatch.setattr(search, "MOST_TIMING_S", 0.2)
    monkeypatch.setattr(candidate, "METHODS", ())
    return calls


def test_what_fails_is_a_row_and_the_model_is_the_worst_result(
    faulty, engine, digits, tmp_path, started, monkeypatch
):
    """Interrupted at the first of a crash, wrong outputs and a loss of accuracy; then once more."""
    out = tmp_path / "out"
    pictures = [digits.image(at) for at in range(200)]

    def run():
        return optimize(
            engine, pictures, target="size", budget=600, out=out, runtimes=FAULTS,
            precisions=("fp32", "int8"), sparsities=(), shows_progress=False,
        )  # fmt: skip

    def interrupted(kind, task, *rest):
        if task.runtime != "eager":
            raise KeyboardInterrupt
        return run_trial(kind, task, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(search, "run_trial", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert len((out / "trials.jsonl").read_text().splitlines()) == 1

    found = run()
    rows = {row.candidate.runtime: row for row in found.rows}
    assert [(kind, runtime) for kind, runtime, _ in started] == [
        ("convert", "worse"), ("measure", "worse"), ("convert", "crashing"), ("convert", "wrong"),
        ("measure", "wrong"),
    ]  # fmt: skip
    assert next(iter(rows)) == "eager"
    assert rows["crashing"].reason.startswith("crashed with SIGILL")
    assert "differ by" in rows["wrong"].reason
    assert rows["worse"].status == "rejected"
    assert rows["worse"].quality.drop > 0.005
    check_the_model_is_kept(found, engine, digits)
    check_the_report(found)
    assert not (out / "work").exists()

    count = len(started)
    again = run()
    assert len(started) == count
    assert again.rows == found.rows


@pytest.mark.parametrize("has_gpu", [True, False])
def test_beside_a_gpu_a_choice_for_the_cpu_is_said_to_be_one(has_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    best = SimpleNamespace(candidate=candidate.BASE, one=None)
    notes = _notes(SimpleNamespace(sources={}), [], best)
    assert any("there is a GPU here" in note for note in notes) is has_gpu


def check_the_model_is_kept(found, engine, digits):
    assert found.best.candidate.runtime == "eager"
    assert (found.metric, found.best.quality.value, found.best.difference) == ("agreement", 1, 0)
    assert "keeps the tolerance" in found.notes[0]
    batch, _ = digits.get_batch([0, 1, 2], 0)
    with torch.no_grad():
        torch.testing.assert_close(found.load()(batch["inputs"]), engine(batch["inputs"]))
    description = found.path.with_name("best.bin.json")
    written = description.read_text()
    content = json.loads(written)
    content["machine"]["processor"] = "another"
    description.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"chosen by measurement on another machine"):
        load_engine(found.path)
    description.write_text(written)


def check_the_report(found):
    page = found.report.read_text()
    assert "crashed with SIGILL" in page
    assert page.count("<figure") == 4
    body = json.loads(found.report.with_name("report.json").read_text())
    assert body["best"] == "eager fp32"
    assert {row["name"] for row in body["rows"]} == {row.candidate.name for row in found.rows}


@pytest.mark.parametrize(
    ("given", "share"), [(0.005, 0.005), ("0.005", 0.005), ("0.5%", 0.005), ("1 %", 0.01), (0, 0)]
)
def test_a_tolerance_is_a_share_or_in_percent(given, share):
    assert parse_tolerance(given) == pytest.approx(share)


@pytest.mark.parametrize("given", [-0.1, 1.5, "5x", "150%", "", "nan"])
def test_another_tolerance_is_refused(given):
    with pytest.raises(ConfigError, match="is not a share from 0 to 1"):
        parse_tolerance(given)


@pytest.mark.parametrize(
    ("given", "seconds"), [(90, 90), ("90s", 90), ("5m", 300), ("1.5 h", 5400), ("2min", 120)]
)
def test_a_budget_is_a_time(given, seconds):
    assert parse_budget(given) == seconds


@pytest.mark.parametrize("given", [0, -5, "soon", "5 days", ""])
def test_another_budget_is_refused(given):
    with pytest.raises(ConfigError, match="is not a time above 0"):
        parse_budget(given)


def make_foreign(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    return folder


def test_wrong_arguments_are_refused_before_anything_is_tried(engine, digits, tmp_path, started):
    out = tmp_path / "out"
    wrong = [
        ({"target": "latencey"}, "target='latencey' is not known"),
        ({"runtimes": ["openvine"]}, "unknown runtime 'openvine'"),
        ({"precisions": ["int4"]}, "precision 'int4' is not known"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": [8, 0]}, "batch_size=0"),
        ({"batch_size": []}, "batch_size has no sizes"),
        ({"sparsities": ["0:4"]}, "sparsity '0:4' is neither 2:4 nor a share of the FLOPs"),
        ({"metric": "bleu"}, "metric='bleu'"),
        ({"out": make_foreign(tmp_path / "thesis")}, "of no search"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ConfigError, match=message):
            optimize(engine, digits, **{"out": out, "shows_progress": False, **arguments})
        shutil.rmtree(out, ignore_errors=True)
    with pytest.raises(DataError, match="0 samples"):
        optimize(engine, [], out=out, shows_progress=False)
    with pytest.raises(ConfigError, match="Linear is no model of the zoo"):
        optimize(ModelEngine.wrap(torch.nn.Linear(2, 2)), digits, out=out, shows_progress=False)
    unbound = ModelEngine("resnet20", num_classes=10)
    with pytest.raises(ConfigError, match="no data spec"):
        optimize(unbound, digits, out=out, shows_progress=False)
    with pytest.raises(ConfigError, match="is a path"):
        optimize(engine, "pictures", out=out, shows_progress=False)
    assert started == []


def test_data_of_other_classes_are_refused(engine, digits, tmp_path):
    batch, _ = digits.get_batch(list(range(40)), 0)
    other = torch.utils.data.TensorDataset(batch["inputs"], batch["targets"])
    other.classes = [f"class {name}" for name in digits.class_names]
    with pytest.raises(DataError, match="the data have the classes class 0"):
        optimize(engine, other, out=tmp_path / "out", shows_progress=False)


def test_a_label_beyond_the_classes_is_refused(engine, digits, tmp_path):
    batch, _ = digits.get_batch(list(range(20)), 0)
    foreign = torch.utils.data.TensorDataset(batch["inputs"], torch.arange(20))
    with pytest.raises(DataError, match="a sample of class 19, the model has classes 0 to 9"):
        optimize(engine, foreign, out=tmp_path / "out", shows_progress=False)


def test_a_folder_of_another_model_is_refused(engine, digits, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    known = {"model": "another", "batch_size": [32], "data": "x", "num_samples": 3}
    (out / "search.json").write_text(json.dumps(known))
    with pytest.raises(ConfigError, match="holds results of another model"):
        optimize(engine, digits, out=out, shows_progress=False)


def test_a_folder_of_a_version_with_one_batch_size_is_taken(tmp_path):
    earlier = {"model": "a", "batch_size": 32, "data": "x", "num_samples": 3}
    (tmp_path / "search.json").write_text(json.dumps(earlier))
    assert _read_known(tmp_path, "a", (32,)) == {**earlier, "batch_size": [32]}
    with pytest.raises(ConfigError, match=r"holds results of batch_size=\[32\]"):
        _read_known(tmp_path, "a", (8, 32))


def test_another_model_given_along_must_fit(engine, digits, tmp_path):
    model = VisionTransformer(image_size=8, patch_size=4, num_layers=1, dim=16, heads=2, channels=1)
    other = ModelEngine.wrap(model)
    other.bind(type(digits.spec)(**{**vars(digits.spec), "class_names": ("a", "b"),
                                    "class_counts": (1, 1)}))  # fmt: skip
    other.save(tmp_path / "small.bin")
    with pytest.raises(ConfigError, match="num_classes=2, the model 10"):
        optimize(
            engine, digits, out=tmp_path / "out", also=[tmp_path / "small.bin"],
            shows_progress=False,
        )  # fmt: skip
