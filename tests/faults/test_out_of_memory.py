"""Out of memory at any step: the micro-batch is halved, the global batch stays."""

import multiprocessing
import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.errors import ConfigError
from deepseek.trainer import Callback, Trainer
from deepseek.trainer.out_of_memory import is_out_of_memory
from deepseek.trainer.run_folder import RunFolder
from deepseek.trainer.task import ClassificationTask

QUIET = {"loggers": ("jsonl",), "num_workers": 0, "precision": "fp32", "lr": 0.05,
         "optimizer": "sgd"}  # fmt: skip


class Limited(ClassificationTask):
    """Runs out of memory for more than `limit` samples, from forward number `begin` on."""

    def __init__(self, limit, begin=0, in_training_only=True):
        super().__init__(3)
        self.limit, self.begin, self.calls = limit, begin, 0

    def loss(self, outputs, batch):
        self.calls += 1
        if self.calls > self.begin and len(batch["targets"]) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().loss(outputs, batch)


def make_trainer(run, task, **settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(60, 6, generator=generator), torch.randint(0, 3, (60,), generator=generator)
    )
    return Trainer(
        net, data, batch_size=16, task=task, run_dir=run, **{"epochs": 3, **QUIET, **settings}
    )


@pytest.mark.parametrize("begin", [0, 1, 5, 11])
def test_halved_at_any_step_the_run_has_the_same_weights(tmp_path, begin):
    whole = make_trainer(tmp_path / "a", ClassificationTask(3))
    whole.fit()
    short = make_trainer(tmp_path / "b", Limited(5, begin))
    short.fit()
    assert short.step == whole.step
    assert short.assembly.step.micro_batch_size == 4
    for ours, theirs in zip(short.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    events = [e for e in RunFolder(tmp_path / "b").read_events() if e["kind"] == "out_of_memory"]
    assert [event["micro_batch_size"] for event in events] == [8, 4]
    assert "batch_size=16 as before" in events[0]["message"]


def test_a_resumed_run_begins_with_the_halved_micro_batch(tmp_path):
    make_trainer(tmp_path / "a", Limited(5), epochs=3).fit()
    again = make_trainer(tmp_path / "a", Limited(5), resume=True)
    again.fit()
    assert again.assembly.step.micro_batch_size == 4


def test_one_sample_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="one sample alone does not fit into memory"):
        make_trainer(tmp_path / "a", Limited(0)).fit()


@pytest.mark.parametrize(("limit", "size"), [(16, 16), (9, 8), (6, 6), (1, 1)])
def test_the_probe_finds_the_largest_micro_batch_and_leaves_no_trace(tmp_path, limit, size):
    expected = make_trainer(tmp_path / "a", ClassificationTask(3), grad_accum_steps=1)
    expected.fit()
    probed = make_trainer(tmp_path / "b", Limited(limit), grad_accum_steps="auto")
    probed.fit()
    assert probed.assembly.step.micro_batch_size == size
    assert not any(e["kind"] == "out_of_memory" for e in RunFolder(tmp_path / "b").read_events())
    for ours, theirs in zip(probed.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


class Limit(Callback):
    """Limits the address space once the threads are there whose stacks and heaps it holds, too."""

    def __init__(self, spare_bytes):
        self.spare_bytes = spare_bytes

    def on_step_end(self, trainer, result):
        if trainer.step == 1:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + self.spare_bytes, resource.RLIM_INFINITY))


def train_within(run, spare_bytes):
    """Train wide layers, from the second step on with a limit on what this process may hold."""
    net = nn.Sequential(*[nn.Linear(512, 512) for _ in range(6)], nn.Linear(512, 3))
    data = TensorDataset(torch.randn(65536, 512), torch.randint(0, 3, (65536,)))
    trainer = Trainer(
        net, data, batch_size=65536, max_steps=2, run_dir=run, checkpoint_every=None,
        callbacks=[Limit(spare_bytes)], **QUIET,
    )  # fmt: skip
    trainer.fit()


def test_a_real_lack_of_memory_halves_the_micro_batch(tmp_path):
    run = tmp_path / "run"
    process = multiprocessing.get_context("forkserver").Process(
        target=train_within, args=(run, 832 << 20)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    events = [e for e in RunFolder(run).read_events() if e["kind"] == "out_of_memory"]
    assert events
    assert events[-1]["micro_batch_size"] < 65536


class LimitedEverywhere(Limited):
    """Runs out of memory in evaluation, too."""

    def update_metrics(self, metrics, outputs, batch):
        if len(batch["targets"]) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        super().update_metrics(metrics, outputs, batch)


@pytest.mark.parametrize("grad_accum_steps", [1, "auto"])
def test_an_evaluation_takes_the_micro_batches_that_training_was_halved_to(
    tmp_path, grad_accum_steps
):
    val = TensorDataset(torch.randn(23, 6), torch.arange(23) % 3)
    found = []
    for name, task in (("a", ClassificationTask(3)), ("b", LimitedEverywhere(5))):
        settings = {"grad_accum_steps": grad_accum_steps, "val_data": val, "epochs": 1}
        trainer = make_trainer(tmp_path / name, task, **settings)
        (record,) = trainer.fit()
        found.append([record["val_loss"], trainer.predict(val)["probs"].flatten().tolist()])
    assert trainer.assembly.step.micro_batch_size < 6
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [(RuntimeError("std::bad_alloc"), True), (MemoryError(), True), (RuntimeError("shape"), False)],
)
def test_what_cpp_says_of_a_lack_of_memory_is_one(error, is_one):
    assert is_out_of_memory(error) is is_one
