import json
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.deploy.pruning.dynamic import MIN_KEPT, DynamicPruning
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.trainer import Callback, Trainer

QUIET = {
    "loggers": ("jsonl",), "num_workers": 0, "precision": "fp32", "batch_size": 16, "lr": 3e-3,
    "device": "cpu",
}  # fmt: skip


def make_data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(320, 20, generator=generator)
    return TensorDataset(inputs, (inputs[:, :3].sum(1) > 0).long() + (inputs[:, 3] > 0).long())


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )


def train(run, pruning, callbacks=(), model=None, **settings):
    model = model or make_model()
    trainer = Trainer(
        model, make_data(), run_dir=run, callbacks=[pruning, *callbacks],
        **{"max_steps": 60, **QUIET, **settings},
    )  # fmt: skip
    trainer.fit()
    return model


def share_of_zeros(model):
    weights = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


class Watch(Callback):
    """Notes the mask after every step."""

    def __init__(self, model):
        self.model, self.masks = model, []

    def on_step_end(self, trainer, result):
        self.masks.append(self.model[2].weight != 0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_share_of_zeros_is_what_was_asked_for(tmp_path, optimizer):
    pruning = DynamicPruning(0.8, skip=())
    model = train(tmp_path / "run", pruning, optimizer=optimizer)
    total = 20 * 64 + 64 * 64 + 64 * 3
    assert share_of_zeros(model) == pytest.approx(0.8, abs=1 / total)
    assert pruning.measured() == pytest.approx(0.8, abs=1 / total)
    assert "80.0% of the weights are zero" in pruning.describe()


def test_zeros_grow_by_the_cubic_schedule_and_stay_after_its_end(tmp_path):
    model = make_model()
    watch = Watch(model)
    pruning = DynamicPruning(0.9, end=0.5, every=1, skip=("0", "4"))
    train(tmp_path / "run", pruning, [watch], model=model)
    shares = [1 - float(mask.float().mean()) for mask in watch.masks]
    for step in (1, 10, 20, 30):
        progress = step / 30
        grown = 0.2 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item()) / 2 * (step < 30)
        expected = 0.9 * (1 - (1 - progress) ** 3)
        # what came back is still zero in this step
        assert expected - 0.01 <= shares[step - 1] <= expected + grown + 0.01
    assert all(torch.equal(mask, watch.masks[29]) for mask in watch.masks[30:])


def test_weights_come_back(tmp_path):
    model = make_model()
    watch = Watch(model)
    pruning = DynamicPruning(0.8, every=3, skip=("0", "4"))
    train(tmp_path / "run", pruning, [watch], model=model)
    back = sum(int((after & ~before).sum()) for before, after in pairwise(watch.masks))
    assert back > 50
    still = make_model()
    watch = Watch(still)
    train(tmp_path / "b", DynamicPruning(0.8, every=3, regrow=0.0, skip=("0", "4")), [watch], still)
    assert not any((after & ~before).any() for before, after in pairwise(watch.masks))


def test_an_optimizer_by_which_nothing_comes_back_is_told_once(tmp_path, recwarn):
    train(tmp_path / "run", DynamicPruning(0.8, every=3), optimizer="sgd", momentum=0.0)
    assert (tmp_path / "run" / "log.txt").read_text().count("regrow=0.2 does nothing: sgd") == 1


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    settings = {"checkpoint_every": 5, "ema_decay": 0.9}
    whole = train(tmp_path / "whole", DynamicPruning(0.8, every=4), **settings)

    class Stop(Callback):
        def on_step_end(self, trainer, result):
            if trainer.step == 20:  # masks have just been chosen
                trainer.request_stop("enough")

    run = tmp_path / "cut"
    train(run, DynamicPruning(0.8, every=4), [Stop()], **settings)
    again = train(run, DynamicPruning(0.8, every=4), resume=True, **settings)
    for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_moving_average_has_the_same_zeros(tmp_path):
    model = make_model()
    pruning = DynamicPruning(0.8, skip=())
    trainer = Trainer(
        model, make_data(), run_dir=tmp_path / "run", callbacks=[pruning], max_steps=30,
        ema_decay=0.9, **QUIET,
    )  # fmt: skip
    trainer.fit()
    ema = trainer.assembly.step.ema
    assert all(
        torch.equal(ema.named()[name] == 0, ~mask) for name, mask in pruning._kept.masks.items()
    )


def test_no_layer_is_emptied(tmp_path):
    model = make_model()
    with torch.no_grad():
        model[2].weight.mul_(1e-4)  # all of it is smaller than anything else
    train(tmp_path / "run", DynamicPruning(0.9, regrow=0.0), model=model)
    assert int((model[2].weight != 0).sum()) >= MIN_KEPT * 64 * 64 - 1


def test_the_log_has_the_share_of_zeros(tmp_path):
    train(tmp_path / "run", DynamicPruning(0.5))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    shares = [line["sparsity"] for line in lines if line["kind"] == "pruning"]
    assert shares[-1] == pytest.approx(0.5, abs=0.01)
    assert shares == sorted(shares)


def test_convolutions_whose_weights_lie_as_channels_last_are_pruned_and_resumed(tmp_path):
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(32) % 3)

    class Stop(Callback):
        def on_step_end(self, trainer, result):
            if trainer.step == 4:
                trainer.request_stop("enough")

    def run(name, callbacks=(), **settings):
        torch.manual_seed(0)
        engine = ModelEngine("resnet", num_layers=8, num_classes=3)
        pruning = DynamicPruning(0.8, every=1)
        trainer = Trainer(
            engine, data, run_dir=tmp_path / name, callbacks=[pruning, *callbacks],
            max_steps=8, checkpoint_every=1, channels_last=True, **QUIET, **settings,
        )  # fmt: skip
        trainer.fit()
        return engine, pruning

    whole, pruning = run("whole")
    assert pruning.measured() == pytest.approx(0.8, abs=0.01)
    run("cut", [Stop()])
    again, _ = run("cut", resume=True)
    for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 is not a share"),
        ({"sparsity": 0.5, "regrow": -0.1}, "regrow=-0.1 is not a share"),
        ({"sparsity": 0.5, "begin": 0.8}, "begin=0.8, end=0.7"),
        ({"sparsity": 0.5, "every": 0}, "every=0 steps"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DynamicPruning(**settings)


def test_a_model_without_products_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to prune"):
        train(tmp_path / "run", DynamicPruning(0.5, skip=("0", "2", "4")))
