import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.errors import ConfigError
from deepseek.trainer import ClassificationTask, Trainer, lr_range_test

QUIET = {"loggers": (), "num_workers": 0, "precision": "fp32"}


def make_trainer(run, **settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    inputs = torch.randn(512, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return Trainer(
        net, data, batch_size=16, epochs=1, run_dir=run, **{"optimizer": "sgd", **QUIET, **settings}
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_suggests_a_rate_that_learns_and_leaves_no_trace(tmp_path, optimizer):
    untouched, tested = (
        make_trainer(tmp_path / name, optimizer=optimizer, ema_decay=0.9) for name in "ab"
    )
    found = lr_range_test(tested)
    assert 1e-4 < found.suggestion < 1
    assert found.losses[0] > 0.9
    assert min(found.smoothed) < 0.8 * found.losses[0]
    assert list(found.lrs) == sorted(found.lrs)
    untouched.fit()
    tested.fit()
    for name, tensor in untouched.model.state_dict().items():
        assert torch.equal(tensor, tested.model.state_dict()[name]), name


def test_the_picture_is_drawn(tmp_path):
    found = lr_range_test(make_trainer(tmp_path / "a"), num_steps=40)
    svg = found.plot(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == svg
    assert "falls fastest at" in svg
    assert svg.count("<polyline") == 2
    assert "nan" not in svg


@pytest.mark.parametrize(
    "wrong", [{"min_lr": 0.0}, {"min_lr": 2.0, "max_lr": 1.0}, {"num_steps": 3}]
)
def test_an_empty_range_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="is no range test"):
        lr_range_test(make_trainer(tmp_path / "a"), **wrong)


def test_what_judges_losses_is_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path / "run", loss_spike=3.0)
    guard = trainer.assembly.step.guard
    before = guard.state_dict()
    lr_range_test(trainer, num_steps=20)
    assert guard.state_dict() == before == {"losses": []}


class Short(ClassificationTask):
    """Is out of memory once, at the sixth forward pass, and sees how often the norm has looked."""

    def __init__(self):
        super().__init__(3)
        self.norm, self.seen = None, []

    def loss(self, outputs, batch):
        self.seen.append(int(self.norm.num_batches_tracked))
        if len(self.seen) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().loss(outputs, batch)


def test_a_lack_of_memory_is_warned_of_and_begins_one_step_anew(tmp_path):
    task = Short()
    trainer = make_trainer(tmp_path / "run", task=task)
    task.norm = trainer.model.module[1]
    notice = trainer.assembly.step.on_halved
    with pytest.warns(UserWarning, match="out of memory: micro-batches of 8 samples"):
        lr_range_test(trainer, num_steps=10)
    assert task.seen == [1, 2, 3, 4, 5, 6, *range(6, 16)]
    assert int(task.norm.num_batches_tracked) == 0
    assert trainer.assembly.step.on_halved is notice
    trainer.fit()


def test_a_last_batch_that_a_graph_does_not_take_is_no_matter(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    graph, run = trainer.assembly.step.graph, trainer.assembly.step.graph.forward

    def forward(batch, micro_batch_size):
        graph.on_other_shape((4, 8))  # as of graph=static, which takes long to compile
        return run(batch, micro_batch_size)

    graph.forward = forward
    assert len(lr_range_test(trainer, num_steps=20).lrs) == 20
