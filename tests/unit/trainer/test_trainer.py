import json
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import DataLoader, ImageDataset
from deepseek.errors import ConfigError, DivergedError, PreemptedError
from deepseek.models import ModelEngine, VisionTransformer
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer import Callback, ClassificationTask, Optimizer, Trainer
from deepseek.trainer.boundary import Boundary
from deepseek.trainer.cross_validation import fit_and_test
from deepseek.trainer.graph import StepGraph
from deepseek.trainer.guard import Guard
from deepseek.trainer.precision import Precision
from deepseek.trainer.schedule import Schedule
from deepseek.trainer.step import TrainStep

QUIET = {"loggers": ("jsonl",), "num_workers": 0}


def make_vit(**changes):
    torch.manual_seed(3)
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 1, "dim": 16, "heads": 2}
    return VisionTransformer(**{**sizes, "channels": 1, "dropout": 0.1, **changes})


def make_digits(count=96):
    data = ImageDataset("digits", transform="resize_8+random_crop_8_pad_1", channels=1)
    train, val = data.split(0.5, seed=0)
    return torch.utils.data.Subset(train, range(count)), torch.utils.data.Subset(val, range(40))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3)
        )

    def forward(self, inputs):
        return self.layers(inputs)


def make_table(count=50):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def make_net():
    torch.manual_seed(5)
    return Net()


def test_fit_learns_and_leaves_the_run_folder(tmp_path):
    data = ImageDataset("digits", transform="resize_8", channels=1)
    train, val = data.split(0.2, seed=0)
    trainer = Trainer(
        make_vit(dim=32, dropout=0.0),
        train,
        val,
        epochs=6,
        lr=3e-3,
        run_dir=tmp_path / "r",
        **QUIET,
    )
    history = trainer.fit()
    assert len(history) == 6
    assert history[-1]["val_accuracy"] > 0.85
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "log.txt",
        "summary.json", "model.bin", "report.html", "checkpoints", "evaluation",
    }  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if r["kind"] == "epoch"] == [1, 2, 3, 4, 5, 6]
    assert "<svg" in history.plot()
    assert "best epoch" in repr(history)
    loaded = ModelEngine.load(tmp_path / "r/model.bin")
    prediction = loaded.predict(val.image(0))
    assert prediction.label in data.class_names
    evaluated = json.loads((tmp_path / "r/evaluation/metrics.json").read_text())
    assert evaluated["val_accuracy"] == pytest.approx(history.best["val_accuracy"])


def run_with(tmp_path, name, **settings):
    return Trainer(
        make_net(),
        make_table(),
        make_table(20),
        batch_size=8,
        run_dir=tmp_path / name,
        **{"epochs": 3, "lr": 0.01, **QUIET, **settings},
    )


class StopAt(Callback):
    def __init__(self, step):
        self.at = step

    def on_step_end(self, trainer, result):
        if trainer.step == self.at:
            os.kill(os.getpid(), signal.SIGUSR1)


def assert_same_run(first, second):
    for name, tensor in first.model.module.state_dict().items():
        assert torch.equal(tensor, second.model.module.state_dict()[name]), name
    for a, b in zip(first.recorder.records, second.recorder.records, strict=True):
        for key in ("epoch", "step", "loss", "val_loss", "val_accuracy", "lr", "grad_norm"):
            assert a.get(key) == b.get(key), key


@pytest.mark.parametrize("stop", [1, 3, 7, 8, 14, 20])
@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop, algorithm):
    whole = run_with(tmp_path, "whole", optimizer=algorithm)
    whole.fit()
    cut = run_with(tmp_path, "cut", optimizer=algorithm, callbacks=[StopAt(stop)])
    with pytest.raises(PreemptedError) as caught:
        cut.fit()
    assert caught.value.exit_code == 75
    torch.manual_seed(999)  # a new process knows nothing of the old one
    np.random.seed(999)
    resumed = run_with(tmp_path, "cut", optimizer=algorithm, resume=True)
    resumed.fit()
    assert_same_run(whole, resumed)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)


def test_resume_is_exact_with_augmented_pictures(tmp_path):
    def start(name, **settings):
        train, val = make_digits()
        return Trainer(
            make_vit(),
            train,
            val,
            batch_size=16,
            epochs=2,
            run_dir=tmp_path / name,
            **QUIET,
            **settings,
        )

    whole = start("whole")
    whole.fit()
    cut = start("cut", callbacks=[StopAt(4)])
    with pytest.raises(PreemptedError):
        cut.fit()
    resumed = start("cut", resume=tmp_path / "cut")
    resumed.fit()
    assert_same_run(whole, resumed)


def test_sigterm_leaves_with_143_and_sigint_with_keyboard_interrupt(tmp_path):
    class Kill(Callback):
        def __init__(self, number):
            self.number = number

        def on_step_end(self, trainer, result):
            os.kill(os.getpid(), self.number)

    with pytest.raises(PreemptedError) as caught:
        run_with(tmp_path, "a", callbacks=[Kill(signal.SIGTERM)]).fit()
    assert caught.value.exit_code == 143
    with pytest.raises(KeyboardInterrupt, match="step 1 is saved"):
        run_with(tmp_path, "b", callbacks=[Kill(signal.SIGINT)]).fit()
    assert (tmp_path / "b/checkpoints/step_1/manifest.json").exists()


def test_accumulated_gradients_equal_the_large_batch_also_when_uneven():
    batch = {"inputs": torch.randn(10, 6), "targets": torch.randint(0, 3, (10,))}
    updated = []
    for micro_batch_size in (10, 5, 3):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = Optimizer("sgd", 0.1).bind(net)
        engine = ModelEngine.wrap(net)
        step = TrainStep(
            engine,
            ClassificationTask(3),
            optimizer,
            Schedule("constant", 0.1, 10, 0, 0.0),
            Precision("fp32", "cpu", "test"),
            parallel=ParallelModel(engine, World.alone()),
            boundary=Boundary({}, DataLoader(TensorDataset(*batch.values()))),
            guard=Guard(dict(net.named_parameters()), optimizer, None),
            ema=None,
            keep_graph=False,
            graph=StepGraph(engine, ClassificationTask(3), is_static=False),
            micro_batch_size=micro_batch_size,
            clip_grad_norm=0.5,
            device=torch.device("cpu"),
            channels_last=False,
        )
        result = step.update(batch, step.measure(step.accumulate(batch)), 0)
        updated.append((result, [p.detach().clone() for p in net.parameters()]))
    (first, weights), *others = updated
    for result, others_weights in others:
        assert float(result.loss_sum) == pytest.approx(float(first.loss_sum), rel=1e-5)
        for a, b in zip(weights, others_weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite_ends_the_run_with_code_5(tmp_path):
    inputs = torch.randn(20, 6)
    inputs[13] = float("nan")
    data = TensorDataset(inputs, torch.randint(0, 3, (20,)))
    trainer = Trainer(make_net(), data, batch_size=4, epochs=2, run_dir=tmp_path / "r", **QUIET)
    with pytest.raises(
        DivergedError, match=r"step [1-5]: the inputs of sample 13 are not finite"
    ) as caught:
        trainer.fit()
    assert caught.value.exit_code == 5
    assert "DivergedError" in json.loads((tmp_path / "r/summary.json").read_text())["status"]


def test_early_stopping_ends_the_run(tmp_path):
    trainer = run_with(tmp_path, "r", epochs=50, lr=1e-9, early_stopping=2, monitor="val_loss")
    history = trainer.fit()
    assert len(history) < 50 or history.status == "finished"


def test_every_evaluation_draws_the_same(tmp_path):
    data = ImageDataset("digits", transform="resize_8+random_crop_8_pad_3", channels=1)
    part = torch.utils.data.Subset(data, range(40))
    trainer = Trainer(make_vit(), part, part, run_dir=tmp_path / "r", **QUIET)
    assert trainer.evaluate() == trainer.evaluate()


def test_a_finished_run_can_be_extended(tmp_path):
    run_with(tmp_path, "r", epochs=1).fit()
    history = run_with(tmp_path, "r", epochs=3, resume=True).fit()
    assert [record["epoch"] for record in history] == [1, 2, 3]


def test_a_finished_run_that_is_resumed_says_that_nothing_is_left(tmp_path):
    run_with(tmp_path, "r", max_steps=3).fit()
    log = tmp_path / "r" / "log.txt"
    assert "nothing is left" not in log.read_text()
    run_with(tmp_path, "r", max_steps=3, resume=True).fit()
    assert "nothing is left to train: 3 of 3 steps are taken" in log.read_text()


def test_a_batch_larger_than_the_data_is_warned_of(tmp_path):
    sizes = {"batch_size": 51, "max_steps": 1, "run_dir": tmp_path / "r"}
    Trainer(make_net(), make_table(50), **sizes, **QUIET).fit()
    assert "batch_size=51, of 50 samples" in (tmp_path / "r" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"optimizer": "adamv"}, "adamw"),
        ({"precision": "fp16"}, "fp16"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"loggers": ("jsnol",)}, "jsnol"),
        ({"monitor": "val_acuracy"}, "val_acuracy"),
        ({"early_stopping": 3, "val_data": None}, "early_stopping"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    arguments = {"val_data": make_table(20), "run_dir": tmp_path / "r", **QUIET, **settings}
    with pytest.raises(ConfigError, match=message):
        Trainer(make_net(), make_table(), **arguments).fit()


def test_a_used_run_dir_is_not_overwritten(tmp_path):
    run_with(tmp_path, "r", epochs=1).fit()
    with pytest.raises(ConfigError, match="holds a run already"):
        run_with(tmp_path, "r", epochs=1).fit()


class Scalars(torch.utils.data.Dataset):
    """Samples whose targets are numpy's scalars, as an index into an array gives them."""

    def __init__(self, targets):
        self.inputs, self.values = torch.randn(len(targets), 6), targets

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.inputs[index], self.values[index]


def test_numpy_scalars_are_targets(tmp_path):
    data = Scalars(np.arange(12) % 3)
    trainer = Trainer(make_net(), data, epochs=1, run_dir=tmp_path / "r", **QUIET)
    assert trainer.spec.class_counts == (4, 4, 4)
    assert np.isfinite(trainer.fit()[-1]["loss"])
    numbers = Scalars(np.linspace(0, 1, 12, dtype=np.float32))
    net = nn.Linear(6, 1)
    trainer = Trainer(net, numbers, task="regression", epochs=1, run_dir=tmp_path / "n", **QUIET)
    assert trainer.spec.fields["targets"].dtype == "float32"
    assert np.isfinite(trainer.fit()[-1]["loss"])


def test_training_runs_without_validation_data(tmp_path):
    trainer = Trainer(make_net(), make_table(), epochs=1, run_dir=tmp_path / "r", **QUIET)
    history = trainer.fit()
    assert "val_loss" not in history[0]
    assert (tmp_path / "r/model.bin").exists()


def test_the_arguments_are_the_settings():
    from deepseek.config import TrainerConfig, TrainerSettings

    assert TrainerSettings.__annotations__.keys() | {"optimizer"} == (
        TrainerConfig.model_fields.keys()
    )


def test_an_unknown_argument_gets_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"batchsize(.|\n)*batch_size"):
        Trainer(make_net(), make_table(), batchsize=4)


def test_a_refused_resume_leaves_later_checkpoints(tmp_path):
    def begin(batch_size, **settings):
        return Trainer(
            make_net(), make_table(), epochs=2, batch_size=batch_size, run_dir=tmp_path / "run",
            checkpoint_every=2, keep_checkpoints=9, **QUIET, **settings,
        )  # fmt: skip

    begin(10).fit()
    checkpoints = tmp_path / "run/checkpoints"
    saved = sorted(checkpoints.glob("step_*"))
    with pytest.raises(ConfigError, match="batch_size"):
        begin(25, resume=checkpoints / "step_2").fit()
    assert sorted(checkpoints.glob("step_*")) == saved
    begin(10, resume=checkpoints / "step_2").fit()
    assert (checkpoints / "superseded_step_4").is_dir()


class Row(nn.Module):
    def __init__(self, num_blocks):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Linear(6, 6) for _ in range(num_blocks)))
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(self.blocks(inputs))


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9}], ids=str)
def test_a_model_with_fewer_blocks_is_no_resume(settings, tmp_path):
    def fit(num_blocks, **more):
        run_dir = tmp_path / "run"
        Trainer(Row(num_blocks), make_table(), run_dir=run_dir, **QUIET, **settings, **more).fit()

    fit(4, max_steps=1)
    with pytest.raises(ConfigError) as caught:
        fit(2, max_steps=2, resume=True)
    assert caught.value.message == (
        "the checkpoint holds another model: 4 of its weights are not in this one"
        " (blocks.2.bias, blocks.2.weight, blocks.3.bias, ...)"
    )
    fit(4, max_steps=2, resume=True)


def test_the_best_of_a_moving_average_is_evaluated_with_its_own_running_statistics(tmp_path):
    trainer = Trainer(
        make_net(), make_table(), make_table(20), epochs=6, batch_size=10, lr=0.3, ema_decay=0.9,
        monitor="val_loss", run_dir=tmp_path / "run", **QUIET,
    )  # fmt: skip
    best = trainer.fit().best
    assert best["epoch"] < 6  # the statistics of the last step are others
    found = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert found["val_loss"] == pytest.approx(best["val_loss"], rel=1e-5)


def test_a_fold_is_tested_with_the_running_statistics_of_its_best_model(tmp_path):
    val = make_table(20)
    trainer = Trainer(
        make_net(), make_table(), val, epochs=6, batch_size=10, lr=0.3, ema_decay=0.9,
        monitor="val_loss", run_dir=tmp_path / "run", **QUIET,
    )  # fmt: skip
    fit_and_test(trainer, val, np.arange(20), tmp_path / "run")
    best = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert best["step"] < trainer.step  # the statistics of the last step are others
    tested = json.loads((tmp_path / "run/fold.json").read_text())
    assert tested["loss"] == pytest.approx(best["val_loss"], rel=1e-6)


def test_a_run_that_was_stopped_early_takes_no_step_when_it_is_resumed(tmp_path):
    def begin(patience, **settings):
        torch.manual_seed(0)
        return Trainer(
            nn.Linear(6, 3), make_table(), make_table(20), epochs=50, batch_size=10, lr=1e-12,
            early_stopping=patience, run_dir=tmp_path / "run", **QUIET, **settings,
        )  # fmt: skip

    stopped = begin(2)
    stopped.fit()
    resumed = begin(2, resume=True)
    history = resumed.fit()
    assert resumed.step == stopped.step
    assert history.status == "stopped: " + str(stopped.stop_reason)
    longer = begin(3, resume=True)
    longer.fit()
    assert longer.step > stopped.step


def test_a_second_fit_says_how_to_go_on(tmp_path):
    trainer = run_with(tmp_path, "r", epochs=1)
    trainer.fit()
    with pytest.raises(ConfigError, match="was called before") as caught:
        trainer.fit()
    assert f"Trainer(..., resume='{tmp_path / 'r'}')" in str(caught.value)
    assert run_with(tmp_path, "r", epochs=2, resume=tmp_path / "r").fit()[-1]["epoch"] == 2


def test_names_that_are_no_utf_8_are_written_with_a_run(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    picture = ImageDataset("digits", transform="none", channels=1).image(0)
    for name in (b"dog", b"chat\xe9"):
        place = folder / os.fsdecode(name)
        place.mkdir(parents=True)
        for number in range(4):
            picture.save(place / f"{number}.png")
    monkeypatch.setattr("sys.argv", ["train", os.fsdecode(b"chat\xe9")])
    data = ImageDataset(folder, transform="resize_8", channels=1)
    Trainer(make_vit(), data, data, epochs=1, run_dir=tmp_path / "r", **QUIET).fit()
    assert json.loads((tmp_path / "r/environment.json").read_text())["argv"] == [
        "train",
        "chat\udce9",
    ]
    shown = json.loads((tmp_path / "r/evaluation/samples.json").read_text())
    assert {sample["target"] for sample in shown["worst"]} == {"dog", "chat\udce9"}
    events = [json.loads(line) for line in (tmp_path / "r/events.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["kind"] == "warning"]
