"""Two ranks that train a pruned model with a teacher, as one process does."""

import pytest
import torch
from tests.distributed.ranks import run_ranks
from torch.utils.data import TensorDataset

from deepseek.deploy import KeepZeros, prune
from deepseek.models import ModelEngine
from deepseek.trainer import ClassificationTask, Distillation, Trainer

IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TRANSFORMER = {"image_size": 16, "patch_size": 4, "num_layers": 2, "dim": 32, "heads": 4}


def train(run, parallel, **how):
    torch.manual_seed(0)
    engine = ModelEngine("vit", num_classes=3, **TRANSFORMER)
    torch.nn.init.normal_(engine.module.head.weight, std=0.1)
    pruned = prune(engine, inputs=IMAGES[:2], latency=False, **how)
    callbacks = [KeepZeros()] if pruned.zeroed else []
    Trainer(
        pruned.model, TensorDataset(IMAGES, torch.arange(24) % 3), run_dir=run,
        task=Distillation(engine, task=ClassificationTask(3)), callbacks=callbacks,
        parallel=parallel, batch_size=8, max_steps=3, lr=1e-3, precision="fp32", num_workers=0,
        device="cpu", loggers=("jsonl",), optimizer="sgd",
    ).fit()  # fmt: skip
    engine = ModelEngine.load(run / "model.bin")
    return torch.cat([p.detach().flatten() for p in engine.parameters()]), engine.changes


@pytest.mark.parametrize(
    ("parallel", "how"),
    [
        ("dp2", {"flops": 0.6}),
        ("fsdp2", {"flops": 0.6}),
        ("pp2", {"flops": 0.6}),
        ("dp2", {"pattern": "2:4"}),
    ],
)
def test_ranks_train_a_pruned_model_as_one_process_does(parallel, how, tmp_path):
    alone, changes = train(tmp_path / "alone", "none", **how)
    found, same = run_ranks(2, train, tmp_path / "run", parallel, folder=tmp_path / "r", **how)[0]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
    assert same == changes
    if "pattern" in how:
        assert torch.equal(found == 0, alone == 0)
