"""The paths that only a GPU takes, each once and small; without one they are skipped."""

import json

import numpy as np
import pytest
import torch
import torchvision
from tests.unit.models.test_contract import SMALL, make_engine, make_inputs
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.checkpoint import StoredTensors
from deepseek.convert import convert
from deepseek.datasets import DataLoader, TokenDataset
from deepseek.deploy import export
from deepseek.errors import PreemptedError
from deepseek.models import GPT, ModelEngine, SlidingWindow
from deepseek.models.attention import attention, causal_attention
from deepseek.models.device import resolve_device
from deepseek.trainer import Callback, Trainer
from deepseek.trainer.evaluation import evaluate_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
VOCABULARY = [str(n) for n in range(50)]


def make_gpt(dropout=0.1):
    torch.manual_seed(0)
    return GPT(context_length=32, num_classes=50, num_layers=2, dim=64, heads=4, dropout=dropout)


def make_text():
    return TokenDataset(np.arange(24 * 32 + 1) * 7 % 50, 32, VOCABULARY)


def make_pictures(count=64):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(count, 3, 16, 16, generator=generator)
    return TensorDataset(pictures, (pictures.mean((1, 2, 3)) > 0).long())


def start(run_dir, model=None, data=None, **settings):
    chosen = {
        "batch_size": 8, "max_steps": 6, "checkpoint_every": 3, "loggers": ["jsonl"],
        "device": "cuda", "num_workers": 0, "lr": 1e-2, "log_every": 1, **settings,
    }  # fmt: skip
    return Trainer(model or make_gpt(), data or make_text(), run_dir=run_dir, **chosen)


def train(run_dir, *args, **settings):
    trainer = start(run_dir, *args, **settings)
    trainer.fit()
    return trainer


def losses(trainer):
    lines = (trainer.folder.path / "metrics.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return [record["loss"] for record in records if record["kind"] == "train"]


def weights(trainer):
    found = [p.detach().flatten().float().cpu() for p in trainer.model.parameters()]
    return torch.cat(found)


@pytest.fixture(autouse=True)
def deterministic_runs_end_with_their_test():
    yield
    torch.use_deterministic_algorithms(False)


class Stop(Callback):
    def on_step_end(self, trainer, result):
        if trainer.step == 4:
            raise PreemptedError("stop")


# -- models and kernels ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_a_model_learns_in_bf16_as_it_does_on_a_cpu(name):
    engine, inputs = make_engine(name), make_inputs(name, batch_size=4)
    if name == "encoder":
        engine.eval()  # its dropout draws otherwise on each device
    want = engine(inputs)
    engine.cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = engine(inputs.cuda())
    close = torch.cosine_similarity(found.float().cpu().flatten(), want.flatten(), dim=0)
    assert close > 0.99
    found.float().square().mean().backward()
    for parameter_name, parameter in engine.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("num_tokens", [24, 64, 192])
def test_a_query_that_may_attend_to_nothing_gets_zeros(num_tokens):
    q, k, v = torch.randn(
        3, 2, 4, num_tokens, 64, device="cuda", dtype=torch.bfloat16
    ).unbind(0)  # fmt: skip
    for each in (q, k, v):
        each.requires_grad_()
    mask = torch.rand(2, 1, 1, num_tokens, device="cuda") > 0.3
    mask[1] = False
    outputs = attention(q, k, v, mask=mask)
    assert (outputs[1] == 0).all()
    outputs.float().square().sum().backward()
    assert all(each.grad.isfinite().all() for each in (q, k, v))


def test_attention_is_that_of_a_cpu():
    q, k, v = torch.randn(3, 2, 4, 48, 32).unbind(0)
    mask = torch.rand(2, 1, 48, 48) > 0.5
    for want, found in (
        (attention(q, k, v, mask=mask), attention(q.cuda(), k.cuda(), v.cuda(), mask=mask.cuda())),
        (causal_attention(q, k[:, :2], v[:, :2]),
         causal_attention(q.cuda(), k[:, :2].cuda(), v[:, :2].cuda())),
    ):  # fmt: skip
        torch.testing.assert_close(found.cpu(), want, atol=1e-4, rtol=1e-4)


def test_a_model_of_a_gpu_becomes_ours():
    torch.manual_seed(0)
    original = torchvision.models.resnet18(num_classes=3).cuda()  # it convolves in TF32
    engine = convert(original).engine
    assert engine.architecture == "imagenet_resnet"
    assert next(original.parameters()).is_cuda


# -- training --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_a_run_learns(tmp_path, precision):
    found = losses(train(tmp_path / "r", precision=precision, max_steps=20))
    assert found[-1] < 0.8 * found[0]


def test_pictures_are_learnt_from_pinned_batches(tmp_path):
    data = DataLoader(batch_size=8, num_workers=2).bind(make_pictures())
    trainer = train(tmp_path / "r", ModelEngine("resnet20"), data, batch_size=8, max_steps=16)
    assert trainer.assembly.channels_last
    assert all(map(np.isfinite, losses(trainer)))


def test_data_that_are_on_the_gpu_are_learnt_as_those_of_a_cpu(tmp_path):
    data = make_pictures()
    moved = TensorDataset(*(tensor.cuda() for tensor in data.tensors))
    found = []
    for number, given in enumerate((data, moved)):
        torch.manual_seed(0)
        engine = ModelEngine("resnet20", num_classes=2)
        settings = {"precision": "fp32", "deterministic": True}
        found.append(train(tmp_path / str(number), engine, given, **settings))
    np.testing.assert_allclose(losses(found[0]), losses(found[1]), rtol=1e-4)
    assert found[1].evaluate(moved) == pytest.approx(found[0].evaluate(data), rel=1e-3)


def test_a_step_in_fp32_is_that_of_a_cpu(tmp_path):
    settings = {"precision": "fp32", "max_steps": 3}
    gpu, cpu = (
        train(tmp_path / device, make_gpt(dropout=0.0), device=device, **settings)
        for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(losses(gpu), losses(cpu), rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adagrad", "rmsprop", "lion"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, optimizer):
    settings = {"optimizer": optimizer, "deterministic": True, "lr": 1e-3}
    whole = train(tmp_path / "whole", **settings)
    with pytest.raises(PreemptedError):
        train(tmp_path / "cut", callbacks=[Stop()], **settings)
    torch.manual_seed(999)
    resumed = train(tmp_path / "cut", resume=True, **settings)
    assert torch.equal(weights(whole), weights(resumed))


def test_a_checkpoint_that_was_copied_beside_training_holds_the_weights(tmp_path):
    trainer = train(tmp_path / "r", max_steps=6, checkpoint_every=6)
    stored = StoredTensors(sorted((tmp_path / "r/checkpoints/step_6").glob("model*.safetensors")))
    state = trainer.model.module.state_dict()
    held = {state[name].data_ptr(): stored[name] for name in state if name in stored}
    for name, weight in state.items():  # tied ones are stored once
        assert torch.equal(held[weight.data_ptr()], weight.cpu()), name


@pytest.mark.parametrize(
    "settings", [{"offload": "optimizer"}, {"offload": "activations"}, {"memory": "selective"}]
)
def test_what_saves_memory_changes_nothing(tmp_path, settings):
    same = {"deterministic": True, "precision": "bf16"}
    plain = train(tmp_path / "plain", **same)
    saving = train(tmp_path / "saving", **same, **settings)
    assert torch.equal(weights(plain), weights(saving))


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
def test_a_compiled_step_is_the_step(tmp_path):
    settings = {"precision": "fp32", "max_steps": 4}
    plain, compiled = (
        train(tmp_path / graph, make_gpt(dropout=0.0), graph=graph, **settings)
        for graph in ("dynamic", "static")
    )
    np.testing.assert_allclose(losses(plain), losses(compiled), rtol=1e-3)


def test_the_memory_of_a_step_is_known_beforehand(tmp_path):
    torch.cuda.reset_peak_memory_stats()
    model = GPT(context_length=256, num_classes=50, num_layers=4, dim=256, heads=4)
    data = TokenDataset(np.arange(64 * 256 + 1) * 7 % 50, 256, VOCABULARY)
    train(tmp_path / "r", model, data, batch_size=32, max_steps=4)
    events = map(json.loads, (tmp_path / "r/events.jsonl").read_text().splitlines())
    peak = next(event for event in events if event["kind"] == "memory_peak")
    assert peak["measured_bytes"] == pytest.approx(peak["predicted_bytes"], rel=0.25)


def test_the_largest_micro_batch_is_found(tmp_path):
    trainer = train(tmp_path / "r", grad_accum_steps="auto")
    assert trainer.assembly.step.micro_batch_size == 8


def test_a_profile_has_times_and_memory(tmp_path):
    trainer = train(tmp_path / "r", profile=True, max_steps=10)
    folder = trainer.folder.path / "profile"
    assert json.loads((folder / "phases.json").read_text())["num_steps"] > 0
    assert json.loads((folder / "memory.json").read_text())["bytes"]


# -- after training --------------------------------------------------------------------------


def test_an_evaluation_is_that_of_a_cpu():
    engine, data = ModelEngine("resnet20", num_classes=2), make_pictures(32)
    found, want = (
        evaluate_model(engine, data, 8, device=device, precision="fp32", num_workers=0)
        for device in ("cuda", "cpu")
    )
    assert found["loss"] == pytest.approx(want["loss"], rel=1e-2)


def test_a_model_on_the_gpu_is_exported_and_stays_there(tmp_path):
    engine = ModelEngine("resnet20", num_classes=2).cuda()
    exported = export(engine, tmp_path / "net.onnx", data=torch.rand(4, 3, 32, 32))
    assert exported.path.is_file()
    assert engine.device.type == "cuda"


def test_text_is_written_and_a_volume_looked_at():
    engine = ModelEngine.wrap(make_gpt()).cuda().eval()
    found = engine.generate([[1, 2, 3], [4]], 5, temperature=0.7, seed=1)
    assert [len(each.tokens) for each in found] == [5, 5]
    window = SlidingWindow(nn.Conv3d(1, 2, 3, padding=1).cuda(), (4, 4, 4), device="cuda")
    assert window(torch.randn(1, 1, 9, 6, 5)).shape == (1, 2, 9, 6, 5)


def test_the_device_that_is_meant_is_the_last_one():
    last = torch.cuda.device_count() - 1
    assert resolve_device(f"cuda:{last}") == torch.device("cuda", last)
    assert torch.cuda.current_device() == last
    resolve_device("cuda:0")
