"""graph=static: one graph, the same numbers, other shapes named and not compiled."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from deepseek import Trainer
from deepseek.datasets import TokenDataset
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, list_models
from deepseek.models.table_model import TableModel
from deepseek.models.zoo import ARCHITECTURES
from deepseek.trainer.graph import StepGraph
from deepseek.trainer.task import ClassificationTask, LanguageModellingTask

QUIET = {"loggers": ("jsonl",), "num_workers": 0, "log_every": 1, "precision": "fp32"}
TOKENS = {"context_length": 16, "num_layers": 2, "dim": 32, "heads": 4}
# One of each class: depth is what compiling costs, and presets differ in nothing else.
SIZES = {
    "vit": {"image_size": 32, "patch_size": 8, "num_layers": 2, "dim": 24, "heads": 3},
    "resnet": {"num_layers": 8},
    "gpt": TOKENS,
    "llama": {**TOKENS, "kv_heads": 2},
    "encoder": {**TOKENS, "vocab_size": 10},
    "imagenet_resnet": {"depths": [1, 1, 1, 1], "block": "basic"},
    "unet3d": {"features": [4, 6], "blocks": 1},
    "center_detector3d": {"features": [4, 6], "skipped_levels": 0},
}


class VoxelTask(ClassificationTask):
    """A class for every voxel."""

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch["targets"], reduction="sum")


class MapTask(ClassificationTask):
    """Maps of zeros."""

    def loss(self, outputs, batch):
        return outputs.square().sum()


def make_batch(name):
    if name in ("gpt", "llama"):
        inputs = torch.randint(0, 10, (2, 4))
        return {"inputs": inputs, "targets": inputs.roll(-1, 1)}, LanguageModellingTask()
    if name == "center_detector3d":
        return {"inputs": torch.randn(2, 1, 4, 8, 8), "targets": torch.zeros(2)}, MapTask(10)
    if name == "unet3d":
        inputs, targets = torch.randn(2, 1, 4, 8, 8), torch.randint(0, 10, (2, 4, 8, 8))
        return {"inputs": inputs, "targets": targets}, VoxelTask(10)
    # a norm of the last stage sees more than a pixel of each picture
    size = 96 if name == "imagenet_resnet" else 32
    inputs = torch.randint(0, 10, (2, 16)) if name == "encoder" else torch.randn(2, 3, size, size)
    return {"inputs": inputs, "targets": torch.tensor([3, 7])}, ClassificationTask(10)


COMPILED_LONG = ("imagenet_resnet", "llama", "unet3d")  # what they are made of is in the others


def test_every_class_of_the_zoo_is_compiled_here():
    entries = {name: ARCHITECTURES.get(name) for name in list_models(own_only=True)}
    found = {name for name, entry in entries.items() if not entry.preset}
    found = {name for name in found if not issubclass(entries[name].build, TableModel)}
    assert found == {*SIZES, "multi_head"}  # several tasks are refused a static graph


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in COMPILED_LONG else ()) for name in SIZES],
)
def test_every_class_of_the_zoo_has_the_losses_and_gradients_of_eager(name):
    torch.manual_seed(0)
    engine = ModelEngine(name, num_classes=10, **SIZES[name])
    # dropout draws other numbers where it is compiled
    for module in engine.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    batch, task = make_batch(name)
    results = []
    for is_static in (False, True):
        graph = StepGraph(engine, task, is_static=is_static)
        loss = graph.forward(batch, 2)
        graph.backward(loss, retain_graph=False)
        loss = loss.detach()
        grads = torch.cat([p.grad.flatten() for p in engine.parameters() if p.grad is not None])
        results.append((loss.item(), grads.clone()))
        engine.zero_grad()
    (loss, grads), (static_loss, static_grads) = results
    assert static_loss == pytest.approx(loss, rel=1e-4)
    assert (grads - static_grads).norm() <= 1e-3 * grads.norm()
    assert graph.num_graphs == 1


def make_data(num_samples=20):
    torch.manual_seed(0)
    return TensorDataset(torch.randn(num_samples, 6), torch.randint(0, 3, (num_samples,)))


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def test_a_run_has_the_same_losses_and_names_what_it_did_not_compile(tmp_path):
    runs = {}
    for graph in ("dynamic", "static"):
        trainer = Trainer(
            make_net(), make_data(), batch_size=8, epochs=3, graph=graph,
            run_dir=tmp_path / graph, **QUIET,
        )  # fmt: skip
        runs[graph] = [record["loss"] for record in trainer.fit()]
    assert runs["static"] == pytest.approx(runs["dynamic"], rel=1e-4)
    log = (tmp_path / "static/log.txt").read_text()
    assert log.count("inputs 4x6 are no full micro-batch of 8 samples") == 1
    assert "1 graph compiled" in log
    assert "6 micro-batches ran compiled, 3 of other shapes" in log


def test_what_cannot_be_captured_is_named_with_its_line(tmp_path):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            y = self.linear(x)
            return y * 2 if y.sum() > 0 else y

    trainer = Trainer(
        Branch(), make_data(), batch_size=8, epochs=1, graph="static", run_dir=tmp_path, **QUIET
    )
    with pytest.raises(ConfigError, match=r"one graph: Data-dependent branching.*test_graph.py"):
        trainer.fit()


def test_a_model_that_is_static_by_itself_is_so_in_the_trainer(tmp_path):
    engine = ModelEngine("resnet", num_layers=8, channels=1, graph="static")
    data = TensorDataset(torch.randn(8, 1, 8, 8), torch.arange(8) % 3)
    trainer = Trainer(engine, data, batch_size=4, epochs=1, run_dir=tmp_path, **QUIET)
    trainer.fit()
    assert trainer.assembly.step.graph.num_compiled == 2
    assert engine.graph == "static"


def test_sequences_grow_by_step_and_each_length_is_compiled(tmp_path):
    tokens = torch.randint(0, 7, (201,))
    trainer = Trainer(
        ModelEngine("gpt", context_length=20, num_layers=1, dim=8, heads=2),
        TokenDataset(tokens, 20, "abcdefg"), batch_size=5, epochs=2, graph="static",
        sequence_length_ramp=(10, 10, 2), run_dir=tmp_path, **QUIET,
    )  # fmt: skip
    trainer.fit()
    graph = trainer.assembly.step.graph
    assert (graph.num_graphs, graph.num_compiled, graph.num_eager) == (2, 4, 0)


def test_a_ramp_of_sequences_needs_sequences(tmp_path):
    trainer = Trainer(
        make_net(), make_data(), batch_size=4, epochs=1, sequence_length_ramp=(1, 1, 4),
        run_dir=tmp_path, **QUIET,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="the inputs are not sequences of tokens"):
        trainer.fit()
