"""One model, several tasks: losses over the labels there are, in parts, ranks and resumes alike."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import DataLoader, JointDataset, MultiTaskDataset
from deepseek.errors import ConfigError
from deepseek.models import MultiHead, VisionTransformer
from deepseek.trainer import (
    WEIGHTINGS,
    Callback,
    ClassificationTask,
    MultiTask,
    RegressionTask,
    Trainer,
    assembly,
    evaluate_model,
)
from deepseek.trainer.dry_run import dry_run
from deepseek.trainer.metrics import MacroF1
from deepseek.trainer.precision import Precision

NAMES = [name for name in WEIGHTINGS.names() if name not in ("fixed", "constraint")]
QUIET = {"loggers": ("jsonl",), "num_workers": 0, "precision": "fp32"}


def make_data(count=45, *, holes=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    kind, size = x[:, :3].argmax(1), x.sum(1)
    if holes:
        kind, size = kind.clone(), size.clone()
        kind[::3], size[1::4] = -100, math.nan
    return JointDataset(TensorDataset(x), {"kind": kind, "size": size})


def make_mixture(alpha=0.5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(45, 6, generator=generator)
    big = TensorDataset(x[:35], x[:35, :3].argmax(1))
    return MultiTaskDataset(
        {"kind": big, "size": TensorDataset(x[35:], x[35:].sum(1))}, alpha=alpha
    )


def make_model():
    torch.manual_seed(5)
    return MultiHead.around(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), dim=8)


def make_task(weighting="equal"):
    return MultiTask({"kind": ClassificationTask(3), "size": RegressionTask()}, weighting)


class Steps(Callback):
    def __init__(self):
        self.losses, self.parts = [], []

    def on_step_end(self, trainer, result):
        self.losses.append(float(result.loss_sum) / result.num_items)
        self.parts.append(dict(result.parts))


def train(run_dir, weighting="equal", data=None, model=None, **settings):
    chosen = {"batch_size": 16, "epochs": 2, "lr": 0.01, "grad_accum_steps": 1, **QUIET, **settings}
    steps = Steps()
    trainer = Trainer(
        model or make_model(), data or make_data(), task=make_task(weighting), run_dir=run_dir,
        callbacks=[steps], **chosen,
    )  # fmt: skip
    trainer.fit()
    return steps, trainer


def test_a_step_is_the_mean_of_each_task_over_its_labels(tmp_path):
    data, model = make_data(), make_model()
    batch = next(iter(DataLoader(data, batch_size=15, shuffle=True)))
    model.bind_tasks(data.spec.tasks)
    torch.manual_seed(0)
    outputs = model(batch["inputs"])
    kinds, sizes = batch["targets.kind"], batch["targets.size"]
    cross = F.cross_entropy(outputs["kind"], kinds)  # of labels that are not -100
    known = ~sizes.isnan()
    square = F.mse_loss(outputs["size"][known, 0], sizes[known])
    task = make_task()
    counts = task.count_labels(batch)
    assert counts == [int((kinds >= 0).sum()), int(known.sum())]
    found = torch.stack(task.losses(outputs, batch)) / torch.tensor(counts)
    torch.testing.assert_close(found, torch.stack([cross, square]))
    mean = task.loss(outputs, batch) / task.count_items(batch)
    torch.testing.assert_close(mean, (cross + square) / 2)


@pytest.mark.parametrize("data", [make_data, make_mixture])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_parts_is_the_step_of_the_whole_batch(name, data, tmp_path):
    whole, one = train(tmp_path / "a", name, data())
    parts, many = train(tmp_path / "b", name, data(), grad_accum_steps=4)
    assert many.assembly.step.micro_batch_size == 4
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    for a, b in zip(whole.parts, parts.parts, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    one, many = load_file(tmp_path / "a/model.bin"), load_file(tmp_path / "b/model.bin")
    for tensor in one:
        torch.testing.assert_close(many[tensor], one[tensor], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["equal", "gradnorm", "famo", "pcgrad", "mgda_ub", "dwa"])
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    settings = {"checkpoint_every": 2, "epochs": 3, "keep_checkpoints": 9}
    whole, _ = train(tmp_path / "a", name, **settings)
    first, _ = train(tmp_path / "b", name, **settings)
    for folder in (tmp_path / "b/checkpoints").glob("step_*"):
        if folder.name != "step_4":
            folder.rename(folder.with_name(f"later_{folder.name}"))
    rest, trainer = train(tmp_path / "b", name, resume=True, **settings)
    assert first.losses == whole.losses
    assert rest.losses == whole.losses[4:]
    assert rest.parts == whole.parts[4:]
    one, many = load_file(tmp_path / "a/model.bin"), load_file(tmp_path / "b/model.bin")
    assert all(torch.equal(one[tensor], many[tensor]) for tensor in one)
    text = (trainer.folder.path / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert {"loss_kind", "loss_size", "weight_kind"} <= epochs[-1].keys()


def gradients_of(name, model, batch):
    """The gradient that a weighting leaves, and that of each task, by hand."""
    task = make_task(name)
    task.weighting.begin(task.names, 1, 0)
    trainer = Trainer(model, make_data(), task=task, batch_size=15, max_steps=1, **QUIET)
    step = trainer.assembly.step
    accumulated = step.accumulate_once(batch)
    step.measure(accumulated)
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    step.abandon()
    losses = torch.stack(task.losses(model(batch["inputs"]), batch)) / torch.tensor(
        task.count_labels(batch)
    )
    own = [
        dict(zip(found, torch.autograd.grad(loss, list(model.parameters()), retain_graph=True,
                                            allow_unused=True), strict=True))
        for loss in losses
    ]  # fmt: skip
    return found, own, step.joint


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "mgda", "mgda_ub"])
def test_the_gradient_is_what_the_paper_says(name):
    model = make_model()
    batch = next(iter(DataLoader(make_data(), batch_size=15)))
    found, (one, two), joint = gradients_of(name, model, batch)
    a, b = (
        torch.cat([own[n].flatten() for n in own if n.startswith("trunk")]) for own in (one, two)
    )
    shared = torch.cat([found[n].flatten() for n in found if n.startswith("trunk")])
    if name == "pcgrad":
        projected = [u - min(0.0, float(u @ v)) / (v @ v) * v for u, v in ((a, b), (b, a))]
        torch.testing.assert_close(shared, (projected[0] + projected[1]) / 2)
    if name == "mgda":
        share = float(((b - a) @ b / (a - b).square().sum()).clamp(0, 1))
        torch.testing.assert_close(shared, share * a + (1 - share) * b, rtol=1e-4, atol=1e-6)
    if name == "cagrad":  # no direction of the ball is better for the worst task
        mean, radius = (a + b) / 2, 0.4 * ((a + b) / 2).norm()
        direction = shared * (1 + 0.4**2)
        assert (direction - mean).norm() == pytest.approx(float(radius), rel=1e-4)
        worst = min(direction @ a, direction @ b)
        for other in (a, b, a + 2 * b, 2 * a + b, a - b, b - a):
            near = mean + radius * other / other.norm()
            assert min(near @ a, near @ b) <= worst + 1e-5
    weights = [joint.named_values()[f"weight_{n}"] for n in ("kind", "size")]
    if name == "mgda_ub":
        torch.testing.assert_close(shared, weights[0] * a + weights[1] * b, rtol=1e-4, atol=1e-6)
    of_heads = weights if name.startswith("mgda") else [0.5, 0.5]
    torch.testing.assert_close(
        found["heads.kind.linear.weight"], of_heads[0] * one["heads.kind.linear.weight"]
    )
    torch.testing.assert_close(
        found["heads.size.linear.weight"], of_heads[1] * two["heads.size.linear.weight"]
    )


def test_mgda_ub_is_mgda_where_the_representation_is_the_shared_weight(monkeypatch):
    class Shift(nn.Module):  # z = x + w: the gradient of w is the sum of those of z
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, 6))

        def forward(self, x):
            return x + self.w

    batch = next(iter(DataLoader(make_data(4, holes=False), batch_size=1)))
    weights = {}
    for name in ("mgda", "mgda_ub"):
        torch.manual_seed(2)
        model = MultiHead.around(Shift(), dim=6)
        weights[name] = gradients_of(name, model, batch)[2].named_values()
    assert weights["mgda"] == pytest.approx(weights["mgda_ub"], rel=1e-4)


def test_running_statistics_and_dropout_of_a_step_that_is_looked_at_first_count_once(tmp_path):
    def model():
        torch.manual_seed(5)
        layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        return MultiHead.around(nn.Sequential(*layers), dim=8)

    _, trainer = train(
        tmp_path, "mgda_ub", model=model(), grad_accum_steps=2, max_steps=2, epochs=None
    )
    assert int(trainer.model.module.trunk[1].num_batches_tracked) == 4
    assert trainer.model.module.features is None


def test_metrics_are_of_each_task_and_their_mean(tmp_path):
    data = make_data()
    _, trainer = train(tmp_path)
    found = trainer.evaluate(data)
    kept = trainer.predict(data)
    has = kept["has_label"].bool()
    right = kept["kind_probs"].argmax(1) == kept["kind_targets"]
    assert found["kind_accuracy"] == pytest.approx(float(right[has[:, 0]].float().mean()))
    errors = (kept["size_outputs"][:, 0] - kept["size_targets"])[has[:, 1]]
    assert found["size_loss"] == pytest.approx(float(errors.square().mean()), rel=1e-5)
    assert found["size_mae"] == pytest.approx(float(errors.abs().mean()), rel=1e-5)
    targets = kept["size_targets"][has[:, 1]]
    r2 = 1 - errors.square().sum() / (targets - targets.mean()).square().sum()
    assert found["size_r2"] == pytest.approx(float(r2), rel=1e-4)
    assert found["loss"] == pytest.approx((found["kind_loss"] + found["size_loss"]) / 2)
    assert found["score"] == pytest.approx((found["kind_accuracy"] + found["size_r2"]) / 2)
    assert trainer.monitor == "val_score"
    alone = evaluate_model(trainer.model, data, precision="fp32")  # the task follows from the data
    assert alone == pytest.approx(found, rel=1e-5)
    assert isinstance(make_task().new_metrics()["kind_macro_f1"], MacroF1)


def test_heads_without_a_label_in_a_batch_learn_nothing(tmp_path):
    mixture = make_mixture()
    view = mixture.evaluation_view()
    batch, _ = view.get_batch(range(10), 0)  # of the first task alone
    model = make_model()
    model.bind_tasks(mixture.spec.tasks)
    found, _, joint = gradients_of("mgda", model, batch)
    assert float(found["heads.size.linear.weight"].abs().max()) == 0
    assert set(joint.named_values()) == {"loss_kind", "weight_kind"}


def test_a_model_of_pictures_with_two_heads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 1, 8, 8, generator=generator)
    bright = (x.mean((1, 2, 3)) > 0).long()
    data = JointDataset(TensorDataset(x), {"bright": bright, "mean": x.mean((1, 2, 3))})
    vit = VisionTransformer(image_size=8, patch_size=4, num_layers=1, dim=16, heads=2, channels=1)
    trainer = Trainer(
        MultiHead.around(vit), data, data, run_dir=tmp_path, max_steps=4, batch_size=8,
        optimizer="sgd", ema_decay=0.9, clip_grad_norm=1.0, **QUIET,
    )  # fmt: skip
    assert "val_bright_accuracy" in trainer.fit().records[-1]


def test_16_bits_and_accumulation_go_together(tmp_path):
    for name in ("pcgrad", "mgda_ub", "gradnorm"):
        steps, _ = train(tmp_path / name, name, precision="bf16", grad_accum_steps=2)
        assert all(math.isfinite(loss) for loss in steps.losses)


@pytest.mark.parametrize("name", ["equal", "pcgrad", "mgda_ub", "gradnorm"])
def test_scaled_losses_of_fp16_leave_weights_as_they_are(name, tmp_path, monkeypatch):
    expected, _ = train(tmp_path / "a", name)
    fp16 = Precision("fp16", "cpu", "test")  # which a user is refused on a CPU
    monkeypatch.setattr(assembly, "resolve_precision", lambda *_: fp16)
    for folder, parts in (("b", 1), ("c", 2)):
        found, trainer = train(tmp_path / folder, name, grad_accum_steps=parts, precision="fp16")
        assert trainer.assembly.step.scaler.get_scale() > 1
        assert found.losses == pytest.approx(expected.losses, rel=0.02)
        assert found.parts[-1] == pytest.approx(expected.parts[-1], rel=0.05)


@pytest.mark.parametrize(
    ("weighting", "settings", "words"),
    [
        ("equal", {"graph": "static"}, "graph=static and several tasks"),
        (
            "pcgrad",
            {"optimizer_in_backward": True, "clip_grad_norm": None},
            "needs the gradients of all",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(weighting, settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, weighting, **settings)


def test_a_representation_is_needed_where_it_is_looked_at(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 1)

        def forward(self, x):
            return {"kind": self.a(x), "size": self.b(x)}

    with pytest.raises(ConfigError, match="Net does not say which it is"):
        train(tmp_path / "a", "mgda_ub", model=Net())
    with pytest.raises(ConfigError, match="share no weight"):
        train(tmp_path / "b", "pcgrad", model=Net())
    steps, _ = train(tmp_path / "c", "equal", model=Net(), epochs=8)
    assert steps.losses[-1] < steps.losses[0]


def test_names_of_data_and_task_must_agree(tmp_path):
    other = MultiTask({"kind": ClassificationTask(3), "width": RegressionTask()})
    trainer = Trainer(make_model(), make_data(), task=other, run_dir=tmp_path, **QUIET)
    with pytest.raises(ConfigError, match=r"labels of the tasks \['kind', 'size'\]"):
        trainer.fit()
    with pytest.raises(ConfigError, match="there are 1 tasks"):
        MultiTask({"kind": ClassificationTask(3)})


def test_tasks_in_another_order_than_the_data_learn_from_their_own_labels():
    tones, topics = torch.arange(12) % 2, torch.arange(8) % 3
    data = MultiTaskDataset(
        {
            "tone": TensorDataset(torch.zeros(12, 6), tones),
            "topic": TensorDataset(torch.zeros(8, 6), topics),
        }
    )
    batch, _ = data.evaluation_view().get_batch(range(20), 0)
    task = MultiTask({"topic": ClassificationTask(3), "tone": ClassificationTask(2)})
    assert task.count_labels(batch) == [8, 12]
    outputs = {"topic": torch.randn(20, 3), "tone": torch.randn(20, 2)}
    wanted = [
        F.cross_entropy(outputs["topic"][12:], topics, reduction="sum"),
        F.cross_entropy(outputs["tone"][:12], tones, reduction="sum"),
    ]
    for given in (batch, task.prepare(batch)):
        torch.testing.assert_close(task.losses(outputs, given), wanted)
    metrics = task.new_metrics()
    task.update_metrics(metrics, outputs, batch)
    assert metrics["topic_loss"].compute() == pytest.approx(float(wanted[0]) / 8)
    has = task.predictions(outputs, batch)["has_label"]
    assert has[:, 0].tolist() == [False] * 12 + [True] * 8
    assert torch.equal(has[:, 1], ~has[:, 0])


def test_a_dry_run_is_refused():
    def build():
        return Trainer(make_model(), make_data(), task=make_task(), device="cpu", **QUIET)

    with pytest.raises(ConfigError, match="a dry run of several tasks"):
        dry_run(build)


def test_a_weighting_that_would_be_ignored_is_refused(tmp_path):
    table = TensorDataset(torch.randn(8, 6), torch.arange(8) % 2)
    with pytest.raises(ConfigError, match="weighting=pcgrad would be ignored"):
        Trainer(nn.Linear(6, 2), table, weighting="pcgrad")
    with pytest.raises(ConfigError, match="which has one already"):
        Trainer(make_model(), make_data(), task=make_task(), weighting="pcgrad")
    trainer = Trainer(make_model(), make_data(), weighting={"name": "cagrad", "c": 0.1})
    assert isinstance(trainer.task, MultiTask)
    assert trainer.task.weighting.needs == "gradients"
