import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.trainer import (
    Callback,
    ClassificationTask,
    Distillation,
    LanguageModellingTask,
    MultiTask,
    SegmentationTask,
    Trainer,
)

QUIET = {
    "loggers": ("jsonl",), "num_workers": 0, "precision": "fp32", "batch_size": 16, "lr": 1e-2,
    "device": "cpu", "max_steps": 6,
}  # fmt: skip
INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, torch.arange(64) % 3)


def make_model(seed=0, width=16):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.Dropout(0.5), nn.ReLU(), nn.Linear(width, 3))


def make_task(weight=0.7, temperature=3.0, seed=1):
    return Distillation(make_model(seed), temperature, weight, ClassificationTask(3))


def test_the_loss_is_that_of_hinton():
    task = make_task()
    batch = {"inputs": INPUTS[:4], "targets": torch.tensor([0, 1, 2, 0])}
    student = make_model().eval()(INPUTS[:4])
    teacher = make_model(1).eval()(INPUTS[:4])
    soft, hard = (
        F.softmax(teacher / 3, -1),
        F.cross_entropy(student, batch["targets"], reduction="sum"),
    )
    crossed = -(soft * F.log_softmax(student / 3, -1)).sum()
    entropy = -(soft * soft.log()).sum()
    torch.testing.assert_close(
        task.loss(student, batch), 0.3 * hard + 0.7 * 9 * (crossed - entropy)
    )
    assert task.count_items(batch) == 4


def test_a_student_that_says_what_its_teacher_says_has_no_loss():
    task = make_task(weight=1.0)
    batch = {"inputs": INPUTS, "targets": torch.arange(64) % 3}
    with torch.no_grad():
        loss = task.loss(make_model(1).eval()(INPUTS), batch)
    assert float(loss) == pytest.approx(0, abs=1e-4)


def test_tokens_without_a_label_do_not_count():
    torch.manual_seed(0)
    teacher = nn.Embedding(5, 5)
    task = Distillation(teacher, weight=1.0, task=LanguageModellingTask())
    inputs, logits = torch.randint(0, 5, (2, 6)), torch.randn(2, 6, 5)
    targets = torch.randint(0, 5, (2, 6))
    targets[:, 3:] = -100
    whole = task.loss(logits, {"inputs": inputs, "targets": targets})
    part = task.loss(logits[:, :3], {"inputs": inputs[:, :3], "targets": targets[:, :3]})
    torch.testing.assert_close(whole, part)


def test_a_picture_counts_once_whatever_its_size():
    torch.manual_seed(0)
    task = Distillation(nn.Conv2d(1, 3, 1), weight=1.0, task=SegmentationTask(3))
    inputs, logits = torch.randn(2, 1, 4, 4), torch.randn(2, 3, 4, 4)
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    once = task.loss((logits, logits[..., :2, :2]), {"inputs": inputs, "targets": labels})
    twice = {"inputs": inputs.repeat(1, 1, 2, 1), "targets": labels.repeat(1, 2, 1)}
    torch.testing.assert_close(task.loss(logits.repeat(1, 1, 2, 1), twice), once)


def fit(run, callbacks=(), **settings):
    model = make_model()
    trainer = Trainer(
        model, DATA, DATA, task=make_task(), callbacks=callbacks, run_dir=run,
        **{**QUIET, **settings},
    )  # fmt: skip
    trainer.fit()
    return model


def trained(run, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    Trainer(model, DATA, task=make_task(), run_dir=run, **{**QUIET, **settings}).fit()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_accumulated_equals_one_large_batch(tmp_path):
    whole, parts = trained(tmp_path / "a"), trained(tmp_path / "b", grad_accum_steps=4)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_compiled_equals_step_by_step(tmp_path):
    eager, compiled = trained(tmp_path / "a"), trained(tmp_path / "b", graph="static")
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    class Stop(Callback):
        def on_step_end(self, trainer, result):
            if trainer.step == 3:
                trainer.request_stop("enough")

    whole = fit(tmp_path / "whole", checkpoint_every=1)
    fit(tmp_path / "cut", [Stop()], checkpoint_every=1)
    again = fit(tmp_path / "cut", checkpoint_every=1, resume=True)
    for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_teacher_stays_as_it_was_given():
    teacher = make_model(1)
    task = Distillation(teacher, task=ClassificationTask(3))
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert not task.teacher.training


def test_the_task_follows_from_the_spec_of_the_teacher():
    from deepseek.datasets import ImageDataset

    data = ImageDataset("digits", transform="resize_8", channels=1)
    teacher = ModelEngine("resnet", num_layers=8, channels=1)
    teacher.bind(data.spec)
    task = Distillation(teacher)
    assert task.monitor == "val_accuracy"
    assert isinstance(task.task, ClassificationTask)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 is not above 0"),
        ({"weight": 1.5}, "weight=1.5 is not in 0..1"),
        ({"task": None}, "the teacher has no data spec"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Distillation(make_model(), **{"task": ClassificationTask(3), **settings})


def test_a_teacher_of_other_classes_is_refused():
    task = Distillation(nn.Linear(8, 4), task=ClassificationTask(3))
    with pytest.raises(ConfigError, match=r"outputs are \(2, 4\), the student's \(2, 3\)"):
        task.loss(torch.zeros(2, 3), {"inputs": INPUTS[:2], "targets": torch.zeros(2).long()})


def test_a_loss_in_chunks_is_refused(tmp_path):
    torch.manual_seed(0)
    settings = {"context_length": 8, "num_layers": 1, "dim": 16, "heads": 2, "num_classes": 20}
    tokens = torch.randint(0, 20, (32, 8))
    teacher = ModelEngine("gpt", **settings)
    trainer = Trainer(
        ModelEngine("gpt", **settings), TensorDataset(tokens, tokens), run_dir=tmp_path / "run",
        task=Distillation(teacher, task=LanguageModellingTask()), loss_chunks=2, **QUIET,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="loss_chunks=2 takes the loss of some tokens"):
        trainer.fit()


def test_a_teacher_of_several_tasks_is_refused():
    tasks = MultiTask({"a": ClassificationTask(3), "b": ClassificationTask(2)})
    with pytest.raises(ConfigError, match="MultiTask has no one set of classes"):
        Distillation(make_model(), task=tasks)
