"""A model of several tasks in a smaller, exported, optimised and served form."""

import numpy as np
import pytest
import torch

from deepseek.datasets import ImageDataset, JointDataset
from deepseek.deploy import export, load_engine, optimize, prune, quantize
from deepseek.deploy.error_analysis import analyse_errors
from deepseek.deploy.optimization.material import count_rows, gather, label_names, read_rows
from deepseek.deploy.optimization.quality import compare, metric_of, sum_by_group, task_of
from deepseek.deploy.samples import spec_of
from deepseek.deploy.service.protection import Limits
from deepseek.deploy.service.question import answer, parts_of
from deepseek.deploy.service.served_model import ServedModel
from deepseek.deploy.service.shelf import Pace, Version
from deepseek.deploy.temperature import calibrate_model
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, MultiHead
from deepseek.models.joint_outputs import divide, join_outputs
from deepseek.trainer.evaluation import evaluate_model


@pytest.fixture(scope="module")
def data():
    """The digits, and how much ink is in each, missing for every fourth."""
    digits = ImageDataset("digits", transform="resize_8", channels=1)
    batch, _ = digits.get_batch(list(range(len(digits))), 0)
    ink = batch["inputs"].float().mean((1, 2, 3)) / 255
    ink[::4] = torch.nan
    return JointDataset(digits, {"ink": ink}, own="kind")


@pytest.fixture(scope="module")
def engine(data):
    torch.manual_seed(0)
    engine = ModelEngine.wrap(MultiHead("resnet", {"num_layers": 8, "channels": 1}))
    engine.bind(data.spec)
    return engine.eval()


@pytest.fixture
def pixels(data):
    return data.get_batch(list(range(12)), 0)[0]["inputs"]


def test_outputs_become_one_and_are_divided_again(engine, data, pixels):
    outputs = engine(pixels)
    joined = join_outputs(outputs)
    assert joined.shape == (12, 11)
    parts = divide(joined, data.spec)
    assert {name: tuple(each.shape) for name, each in parts.items()} == {
        "kind": (12, 10), "ink": (12, 1),
    }  # fmt: skip
    assert all(torch.equal(parts[name], outputs[name]) for name in parts)
    with pytest.raises(ConfigError, match=r"others for each token.*a \[2, 3\], b \[2, 5, 3\]"):
        join_outputs({"a": torch.zeros(2, 3), "b": torch.zeros(2, 5, 3)})


def test_an_export_answers_by_the_names_of_the_tasks(engine, pixels, tmp_path):
    export(engine, tmp_path / "m.pt2", data=pixels, threads=1)
    opened = load_engine(tmp_path / "m.pt2")
    own, other = engine.predict(pixels), opened.predict(pixels)
    assert [each["kind"].label for each in own] == [each["kind"].label for each in other]
    assert [each["ink"] for each in own] == pytest.approx([each["ink"] for each in other], abs=1e-4)


def test_heads_given_in_another_order_are_those_of_their_tasks_when_exported_and_served(
    data, pixels, tmp_path
):
    heads = {"ink": {"outputs": 1}, "kind": {"outputs": 10}}
    engine = ModelEngine.wrap(MultiHead("resnet", {"num_layers": 8, "channels": 1}, heads)).eval()
    head = engine.module.heads["ink"]
    engine.bind(data.spec)
    assert list(engine.config["heads"]) == list(data.spec.tasks)
    assert engine.module.heads["ink"] is head
    ink = engine(pixels)["ink"]
    parts = divide(join_outputs(engine(pixels)), data.spec)
    assert torch.equal(parts["ink"], ink)
    engine.module.order_heads(["ink", "kind"])  # as files had them
    rows = torch.from_numpy(ServedModel(engine).compute(pixels.numpy()))
    torch.testing.assert_close(divide(rows, data.spec)["ink"], ink)
    engine.save(tmp_path / "m.bin")
    loaded = ModelEngine.load(tmp_path / "m.bin").eval()
    torch.testing.assert_close(divide(join_outputs(loaded(pixels)), data.spec)["ink"], ink)


def test_quantised_its_heads_stay_in_float(engine, data, tmp_path):
    done = quantize(engine, "int8_static", data, metric="kind_accuracy")
    kept = {layer.name for layer in done.layers if layer.scheme is None}
    assert kept == {"heads.kind.linear", "heads.ink.linear"}
    assert done.metric == "kind_accuracy"
    with pytest.raises(ConfigError, match="metric='ink_loss' is no metric"):
        quantize(engine, "int8_static", data, metric="ink_loss")
    done.model.save(tmp_path / "small.bin")
    assert ModelEngine.load(tmp_path / "small.bin").predict(data.get_batch([0], 0)[0]["inputs"])


def test_it_is_pruned_by_what_all_its_heads_read(engine, data, tmp_path):
    pytest.importorskip("torch_pruning")
    pruned = prune(engine, flops=0.6, criterion="taylor", data=data, latency=False)
    assert pruned.after.flops < 0.62 * pruned.before.flops
    pruned.model.save(tmp_path / "small.bin")
    outputs = ModelEngine.load(tmp_path / "small.bin").eval()(torch.zeros(2, 1, 8, 8))
    assert {name: tuple(each.shape) for name, each in outputs.items()} == {
        "kind": (2, 10), "ink": (2, 1),
    }  # fmt: skip


def test_the_search_measures_each_task_on_its_labels(engine, data, tmp_path):
    path = tmp_path / "data.safetensors"
    material = gather(engine, data, path, 32, 60.0, 96)
    assert label_names(path) == ["targets", "targets.ink", "targets.kind"]
    assert (material.num_samples, count_rows(path, "targets.kind")) == (96, 96)
    spec = spec_of(engine)
    task = task_of(spec, None, True)
    assert metric_of(task, "auto") == "score"

    def read(start, stop):
        names = ["inputs", *label_names(path)]
        return {name: read_rows(path, name, start, stop) for name in names}

    def compute(inputs, noise=0.0):
        with torch.no_grad():
            joined = join_outputs(engine(inputs))
        return joined + noise * torch.linspace(-1, 1, joined.shape[1])

    def sums(noise):
        by_task = lambda outputs: divide(outputs, spec)  # noqa: E731
        return sum_by_group(lambda x: compute(x, noise), read, task, "score", 96, 32, by_task)

    same, other = (
        compare(task, "score", sums(0.0), sums(0.0)),
        compare(task, "score", sums(0.0), sums(9.0)),
    )
    assert same.drop == 0
    assert other.drop > 0.1


@pytest.mark.long
def test_the_search_runs_on_all_tasks_and_what_it_finds_answers_for_each(engine, data, tmp_path):
    found = optimize(
        engine, data, budget=300, out=tmp_path / "out", runtimes=["eager"], precisions=["fp32"],
        sparsities=(), max_samples=64, shows_progress=False,
    )  # fmt: skip
    assert (found.metric, found.best.candidate.name) == ("score", "eager fp32")
    pixels = data.get_batch([0, 1], 0)[0]["inputs"]
    own, other = engine.predict(pixels), found.load().predict(pixels)
    assert [each["kind"].label for each in own] == [each["kind"].label for each in other]
    assert [each["ink"] for each in own] == pytest.approx([each["ink"] for each in other])


class Here:
    """A model that computes in this process."""

    is_up = True

    def __init__(self, model):
        self.facts = model.facts


def test_a_service_answers_for_each_task(engine, data, pixels):
    model = ServedModel(engine)
    version = Version("digits", "1", [Here(model)], Pace(), Limits())
    rows = model.compute(pixels.numpy())
    assert rows.shape == (12, 11)
    said = answer(rows, version, 2)[3]["tasks"]
    own = engine.predict(pixels)[3]
    assert said["kind"]["label"] == own["kind"].label
    assert len(said["kind"]["top"]) == 2
    assert said["ink"] == {"value": pytest.approx(own["ink"])}
    shapes = {name: part.shape for name, (part, _) in parts_of(rows, version).items()}
    assert shapes == {"kind": (12, 10), "ink": (12, 1)}
    assert version.widths == [10, 1]
    assert np.allclose(parts_of(rows, version)["kind"][0].sum(1), 1)


def test_tasks_of_one_text_are_exported_for_any_length_up_to_the_longest(tmp_path):
    text = {"vocab_size": 40, "context_length": 12, "num_layers": 1, "dim": 16, "heads": 2}
    heads = {"kind": {"outputs": 3, "per": "sample"}, "size": {"outputs": 1, "per": "sample"}}
    engine = ModelEngine.wrap(MultiHead("encoder", text, heads)).eval()
    tokens = torch.randint(1, 40, (3, 7))
    export(engine, tmp_path / "m.pt2", data=tokens, threads=1)
    opened = load_engine(tmp_path / "m.pt2")
    for length in (2, 12):
        tokens = torch.randint(1, 40, (2, length))
        found, expected = opened(tokens), join_outputs(engine(tokens))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_task_of_classes_is_calibrated_and_explained(engine, data, tmp_path):
    calibrated, found = calibrate_model(engine, data, device="cpu")
    before, after = engine.module.heads, calibrated.module.heads
    torch.testing.assert_close(
        after["kind"].linear.weight * found.value, before["kind"].linear.weight
    )
    assert torch.equal(after["ink"].linear.weight, before["ink"].linear.weight)
    page = tmp_path / "m.html"
    metrics = analyse_errors(engine, data, page, task="kind", num_shown=2, device="cpu")
    assert metrics["accuracy"] == pytest.approx(
        evaluate_model(engine, data, device="cpu")["kind_accuracy"]
    )
    assert "digits" in page.read_text()
    with pytest.raises(ConfigError, match="task='tone' of a model of kind, ink"):
        calibrate_model(engine, data, task="tone", device="cpu")
    with pytest.raises(ConfigError, match="only a model that finds a class for each sample"):
        calibrate_model(engine, data, task="ink", device="cpu")
    both = JointDataset(data.data, {"more": data.data.targets}, own="kind")
    other = ModelEngine.wrap(MultiHead("resnet", {"num_layers": 8, "channels": 1}))
    other.bind(both.spec)
    with pytest.raises(ConfigError, match="have labels of kind and more"):
        calibrate_model(other, both, device="cpu")
