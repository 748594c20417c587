import pytest
import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.trainer.fp8 import check_device, convert_linears
from deepseek.trainer.precision import resolve_precision


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16), nn.Linear(16, 3))


@pytest.mark.filterwarnings("ignore")
def test_linears_are_replaced_where_sizes_allow_and_learn_the_same():
    pytest.importorskip("torchao", reason="fp8 needs the extra fp8")
    plain, converted = make_net(), make_net()
    names = list(plain.state_dict())
    assert convert_linears(converted, emulated=True) == 2
    assert list(converted.state_dict()) == names
    inputs = torch.randn(64, 32)
    for net in (plain, converted):
        net(inputs).square().mean().backward()
    close = torch.nn.functional.cosine_similarity(
        plain[0].weight.grad.flatten(), converted[0].weight.grad.flatten(), dim=0
    )
    assert float(close) > 0.98


def test_a_chip_without_fp8_and_a_model_without_linears_are_refused():
    with pytest.raises(ConfigError, match=r"needs a Hopper GPU .* this is cpu"):
        resolve_precision("fp8", torch.device("cpu"))
    with pytest.raises(ConfigError, match="Hopper"):
        check_device(torch.device("mps"))


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_has_no_such_linear_is_refused():
    pytest.importorskip("torchao", reason="fp8 needs the extra fp8")
    with pytest.raises(ConfigError, match="no linear of the model has sizes that 16 divides"):
        convert_linears(nn.Linear(30, 7))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_a_run_in_fp8_learns(tmp_path):
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a Hopper GPU")
    from torch.utils.data import TensorDataset

    from deepseek.trainer import Trainer

    inputs = torch.randn(1024, 32)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    trainer = Trainer(
        make_net(), data, batch_size=64, epochs=8, lr=3e-3, precision="fp8", run_dir=tmp_path / "r"
    )
    history = trainer.fit()
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
