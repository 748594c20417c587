"""What a GPU would be asked for, as far as a machine without one can tell.

Fake tensors of `cuda` have a device, a dtype and a shape, and no numbers: what puts a tensor of the
CPU beside one of the GPU raises, in the forward pass of a model, in a loss, in a metric. (Backward
passes ask the driver for the device, and need one.)
"""

import threading
import types
from contextlib import contextmanager

import pytest
import torch
from tests.unit.models.test_contract import SMALL, make_engine, make_inputs, output_shape
from tests.unit.recsys.test_models import FEATURES, JOINT, table
from tests.unit.recsys.test_models import SMALL as TABLE_MODELS
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from deepseek.checkpoint import RandomState, StoredTensors, join_state, split_state
from deepseek.datasets import DataLoader, InteractionDataset
from deepseek.datasets.workers import _end_pinning
from deepseek.errors import ConfigError
from deepseek.medical.detection import DetectionTask
from deepseek.memory.mirror import mirror
from deepseek.models import ModelEngine
from deepseek.models.attention import attention
from deepseek.models.device import resolve_device
from deepseek.parallel.beat import BY_NCCL, read_recorder
from deepseek.recsys.ranking_losses import RankingTask
from deepseek.recsys.retrieval_tasks import InBatchTask, NextItemTask
from deepseek.trainer.binary import BinaryTask
from deepseek.trainer.distillation import Distillation
from deepseek.trainer.guard import first_not_finite
from deepseek.trainer.metrics import Mean
from deepseek.trainer.multi_task import MultiTask
from deepseek.trainer.optimizer import OPTIMIZERS
from deepseek.trainer.out_of_memory import is_out_of_memory
from deepseek.trainer.regression import RegressionTask
from deepseek.trainer.segmentation import SegmentationTask
from deepseek.trainer.task import ClassificationTask, LanguageModellingTask
from deepseek.trainer.token_classification import TokenClassificationTask

NEEDS_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException)


@contextmanager
def fake_gpu(autocast=True):
    """Tensors are fake; of `cuda` where that is said, and then in autocast."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", autocast)  # `torch.autocast` itself asks for a driver
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device="cuda")


def on_gpu(batch):
    return {name: zeros(*value.shape, dtype=value.dtype) for name, value in batch.items()}


# -- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_a_model_computes_where_its_inputs_are(name):
    engine, inputs = make_engine(name), make_inputs(name)
    for training in (True, False):
        with fake_gpu(autocast=training) as mode:
            model = mirror(engine, "cuda", mode).train(training)
            outputs = model(zeros(*inputs.shape, dtype=inputs.dtype))
            first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            assert first.device.type == "cuda"
            assert first.shape == output_shape(name)


@pytest.mark.parametrize("name", TABLE_MODELS)
def test_a_model_of_tables_computes_where_its_inputs_are(name):
    labels = {"click": {}, "buy": {}} if name in JOINT else {"click": {}}
    data = InteractionDataset(table(), {**FEATURES, "label": labels})
    engine = ModelEngine(name, **TABLE_MODELS[name])
    engine.bind(data.spec)
    batch, _ = data.get_batch(range(8), 0)
    with fake_gpu() as mode:
        model = mirror(engine, "cuda", mode)
        for training in (True, False):
            outputs = model.train(training)(on_gpu(batch))
            found = outputs.values() if isinstance(outputs, dict) else [outputs]
            assert {each.device.type for each in found} == {"cuda"}


def test_a_decoder_writes_where_it_is():
    engine = make_engine("llama")
    with fake_gpu(autocast=False) as mode, torch.no_grad():
        model = mirror(engine, "cuda", mode).eval().module
        cache = model.make_cache(2, 8)
        positions = torch.arange(3, device="cuda").expand(2, -1)
        outputs = model.run_cached(zeros(2, 3, dtype=torch.int64), positions, cache, 3)
        assert model.classify(outputs).device.type == "cuda"


# -- tasks -----------------------------------------------------------------------------------

INTEGERS = {"dtype": torch.int64}
TASKS = {
    "classification": (
        lambda: ClassificationTask(12, 0.1, torch.ones(12)),
        lambda: (zeros(4, 12), {"targets": zeros(4, **INTEGERS)}),
    ),
    "language_modelling": (
        LanguageModellingTask, lambda: (zeros(2, 8, 11), {"targets": zeros(2, 8, **INTEGERS)}),
    ),
    "token_classification": (
        lambda: TokenClassificationTask(("O", "B-X", "I-X")),
        lambda: (zeros(2, 8, 3), {"targets": zeros(2, 8, **INTEGERS)}),
    ),
    "regression": (
        RegressionTask, lambda: (zeros(4, 3), {"targets": zeros(4, 3)}),
    ),
    "binary": (BinaryTask, lambda: (zeros(4), {"targets": zeros(4)})),
    "in_batch": (InBatchTask, lambda: (zeros(4, 4), {"targets": zeros(4)})),
    "next_item": (
        lambda: NextItemTask("history"),
        lambda: (
            zeros(4, 5, 2),
            {
                "targets": zeros(4), "length.history": zeros(4, **INTEGERS),
                "sequence.history": zeros(4, 5, **INTEGERS),
            },
        ),
    ),
    "ranking": (
        lambda: RankingTask("listmle"),
        lambda: (zeros(4), {"targets": zeros(4), "sparse": zeros(4, 2, **INTEGERS)}),
    ),
    "segmentation": (
        lambda: SegmentationTask(3),
        lambda: ([zeros(2, 3, 4, 8, 8), zeros(2, 3, 4, 4, 4)],
                 {"targets": zeros(2, 4, 8, 8, **INTEGERS)}),
    ),
    "focal": (
        lambda: SegmentationTask(3, loss="dice_focal"),
        lambda: (zeros(2, 3, 4, 8, 8), {"targets": zeros(2, 4, 8, 8, **INTEGERS)}),
    ),
    "detection": (
        DetectionTask,
        lambda: (zeros(2, 2, 4, 4, 4), {"inputs": zeros(2, 1, 8, 8, 8), "targets": zeros(2, 3, 4)}),
    ),
    "multi": (
        lambda: MultiTask({"a": ClassificationTask(3), "b": RegressionTask()}),
        lambda: (
            {"a": zeros(4, 3), "b": zeros(4, 1)},
            {
                "targets": zeros(4, 2, dtype=torch.bool), "targets.a": zeros(4, **INTEGERS),
                "targets.b": zeros(4, 1), "rows.a": zeros(2, **INTEGERS),
                "rows.b": zeros(3, **INTEGERS),
            },
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_task_is_taken_where_the_outputs_are(name):
    make_task, make_batch = TASKS[name]
    with fake_gpu():
        outputs, batch = make_batch()
        try:
            loss = make_task().loss(outputs, batch)
        except NEEDS_NUMBERS:
            assert name == "multi", "only evaluation waits for numbers"  # its own, of all tasks
            task = make_task()
            loss = sum(task.losses(outputs, batch))
        assert loss.device.type == "cuda"
        assert loss.shape == ()


@pytest.mark.parametrize("name", [name for name in TASKS if name != "detection"])  # on the host
def test_the_metrics_of_a_task_take_outputs_from_where_they_are(name):
    make_task, make_batch = TASKS[name]
    with fake_gpu():
        task = make_task()
        outputs, batch = make_batch()
        if name in ("in_batch", "next_item"):  # of evaluation
            outputs = zeros(4)
        whole = outputs[0] if isinstance(outputs, list) else outputs
        metrics = task.new_metrics()
        for _ in range(2):  # the second adds to what the first has left
            try:
                task.update_metrics(metrics, whole, batch)
            except NEEDS_NUMBERS:
                break  # all up to there was on one device


def test_a_teacher_follows_its_student():
    teacher = make_engine("resnet")
    task = Distillation(teacher, task=ClassificationTask(5))
    with fake_gpu() as mode:
        task.teacher = mirror(task.teacher, "cuda", mode)
        batch = {"inputs": zeros(2, 3, 16, 16), "targets": zeros(2, **INTEGERS)}
        assert task.loss(zeros(2, 5), batch).device.type == "cuda"


def test_a_mean_goes_on_after_a_resume():
    mean = Mean()
    mean.load_state_dict({"total": 1.0, "count": 2})
    with fake_gpu():
        mean.update(zeros(), 3)
        assert mean.total.device.type == "cuda"


# -- kernels ---------------------------------------------------------------------------------


def test_a_mask_keeps_cudnn_out(monkeypatch):
    allowed = []

    def note(*args, **kwargs):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return args[0]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with fake_gpu(autocast=False):
        q = zeros(2, 2, 8, 4)
        attention(q, q, q, mask=zeros(2, 1, 1, 8, dtype=torch.bool))
        attention(q, q, q)
    assert allowed == [False, before]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_adagrad_is_not_fused_where_torch_211_has_no_kernel():
    assert OPTIMIZERS.get("adagrad").fused_on == {"cpu"}
    assert "cuda" in OPTIMIZERS.get("adamw").fused_on


# -- the device ------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine of which torch says that it has two; returns those that were entered."""
    entered = [0]
    monkeypatch.setattr(torch, "empty", lambda size, device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: entered[-1])
    monkeypatch.setattr(torch.cuda, "set_device", entered.append)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    return entered


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_gpu_has_a_number_and_is_entered(two_gpus, name):
    device = resolve_device(name)
    assert device == torch.device("cuda", int(name == "cuda:1"))
    assert two_gpus[1:] == [device.index]


def test_each_process_has_a_gpu_of_its_own(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto", is_distributed=True) == torch.device("cuda", 1)
    assert two_gpus[1:] == [1]
    with pytest.raises(ConfigError, match="'cuda:1' with several processes"):
        resolve_device("cuda:1", is_distributed=True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="local rank 2 has no GPU of its own: there are 2"):
        resolve_device("cuda", is_distributed=True)


def test_a_resumed_optimizer_has_the_kernels_of_its_own_device():
    weights = dict(torch.nn.Linear(2, 2).named_parameters())
    saved, own = (torch.optim.AdamW(weights.values(), fused=fused) for fused in (True, False))
    _, rest = split_state(saved, weights, lambda *args: [])
    join_state(own, weights, lambda *args: [], StoredTensors([]), rest)
    assert own.param_groups[0]["fused"] is False


def test_the_random_state_is_that_of_the_gpu_in_use(monkeypatch):
    state = torch.arange(16, dtype=torch.uint8)
    put_back = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert RandomState.read().cuda == ()  # a run on the CPU does not open the GPU that is there
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put_back.append)
    kept = RandomState.from_json(RandomState.read().to_json())
    kept.restore()
    assert len(put_back) == 1
    assert torch.equal(put_back[0], state)


def test_a_lack_of_memory_of_cublas_is_one():
    text = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert is_out_of_memory(RuntimeError(text))


def test_a_scan_waits_once_and_finds_the_first():
    tensors = {
        "counts": torch.tensor([3]), "large": torch.full((2,), 3e38), "good": torch.ones(3),
        "bad": torch.tensor([1.0, float("nan")]), "worse": torch.tensor(float("inf")),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }  # fmt: skip
    assert first_not_finite(tensors) == "bad"
    tensors["bad"] = torch.zeros(2)
    assert first_not_finite(tensors) == "worse"
    tensors["worse"] = torch.zeros(())
    assert first_not_finite(tensors) is None  # though a sum overflows


def test_the_recorder_of_nccl_is_read_as_well(monkeypatch):
    entry = '{"process_group": ["0", ""], "collective_seq_id": %d, "retired": %s,' \
            ' "profiling_name": "%s"}'  # fmt: skip
    dumps = {
        "_dump_fr_trace_json": entry % (7, "true", "gloo:all_reduce"),
        "_dump_nccl_trace_json": entry % (3, "false", "nccl:all_gather"),
    }
    import torch._C._distributed_c10d as c10d

    for name, text in dumps.items():
        found = f'{{"entries": [{text}]}}'
        monkeypatch.setattr(c10d, name, lambda f=found, **options: f, raising=False)
    entered, waits = read_recorder()
    assert entered == {"0": 7, f"0{BY_NCCL}": 3}
    assert waits == (f"0{BY_NCCL}", "nccl:all_gather", 3)


# -- pinned batches --------------------------------------------------------------------------


def test_the_thread_that_pins_ends_with_the_loader(monkeypatch):
    from torch.utils.data._utils import pin_memory

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: None)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda **options: torch.device("cuda")
    )
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(pin_memory, "pin_memory", lambda data, device=None: data)
    data = torch.utils.data.TensorDataset(torch.arange(64.0)[:, None], torch.arange(64) % 2)
    loader = DataLoader(batch_size=4, num_workers=1).bind(data)
    next(iter(loader))
    pinning = [each for each in threading.enumerate() if "_pin_memory_loop" in each.name]
    assert len(pinning) == 1
    loader.close()
    assert not pinning[0].is_alive()


def test_a_loader_that_pins_nothing_has_no_thread_to_end():
    _end_pinning(types.SimpleNamespace(_pin_memory=False))
