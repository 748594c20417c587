import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.errors import CheckpointError
from deepseek.models.changes import apply_changes
from deepseek.models.quantized import SCHEMES, make_layer, quantize_weight, why_not

STATIC = {"scheme": "int8_static", "input_scale": 8 / 255, "input_zero_point": 128}
LAYERS = {
    "linear": (lambda: nn.Linear(24, 16), (5, 3, 24)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), (5, 6, 10)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3, stride=2, groups=2, bias=False), (5, 6, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 3, padding="same", dilation=2), (2, 4, 6, 6, 6)),
}


def table_of(scheme):
    return STATIC if scheme == "int8_static" else {"scheme": scheme}


@torch.no_grad()
def noise_db(want, found):
    return float(10 * torch.log10(want.square().sum() / (want - found).square().sum()))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_layer_computes_nearly_what_the_layer_does(kind, scheme):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    if scheme == "int8_dynamic" and kind != "linear":
        assert "no kernel" in str(why_not(layer, scheme))
        return
    made = make_layer(layer, table_of(scheme))
    with torch.no_grad():
        want, found = layer(x), made(x)
    assert found.dtype == torch.float32
    assert noise_db(want, found) > (30 if scheme.startswith("int8") else 40)
    assert not any(each.requires_grad for each in made.parameters())


def test_a_static_layer_computes_what_integers_give():
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 16), torch.randn(5, 24)
    made = make_layer(layer, STATIC)
    scale, zero = STATIC["input_scale"], STATIC["input_zero_point"]
    codes = ((x / scale).round() + zero).clamp(0, 255).long() - zero
    sums = codes @ made.weight.long().T
    want = sums.double() * scale * made.weight_scale.double() + layer.bias.detach().double()
    torch.testing.assert_close(made(x).double(), want, atol=1e-5, rtol=0)


def test_weights_use_all_codes_of_each_channel():
    weight = torch.tensor([[1.0, -0.5], [0.001, 0.002], [0.0, 0.0]])
    codes, scale = quantize_weight(weight)
    assert codes.tolist() == [[127, -64], [64, 127], [0, 0]]
    torch.testing.assert_close(scale[:2], torch.tensor([1 / 127, 0.002 / 127]))


def test_a_row_of_a_dynamic_linear_does_not_depend_on_the_others():
    made = make_layer(nn.Linear(24, 16), {"scheme": "int8_dynamic"})
    x = torch.randn(5, 24)
    louder = torch.cat([x[:1], 1000 * x[1:]])
    assert torch.equal(made(x)[0], made(louder)[0])


@pytest.mark.parametrize("scheme", ["fp16", "bf16", "int8_weight_only"])
def test_an_embedding_has_its_vectors(scheme):
    layer = nn.Embedding(10, 8)
    made = make_layer(layer, {"scheme": scheme})
    tokens = torch.tensor([[1, 2], [9, 1]])
    assert made(tokens).shape == (2, 2, 8)
    assert noise_db(layer(tokens), made(tokens)) > 35
    assert made.weight.element_size() < 4


@pytest.mark.parametrize(
    ("layer", "scheme", "why"),
    [
        (nn.Conv2d(2, 2, 1, padding_mode="circular"), "bf16", "padding_mode=circular"),
        (nn.Embedding(4, 2), "int8_static", "multiplies nothing"),
        (nn.Embedding(4, 2, max_norm=1.0), "bf16", "max_norm"),
        (nn.LazyLinear(3), "bf16", "LazyLinear may do more"),
        (nn.Linear(3, 3), "int8_dynamic", None),
    ],
)
def test_what_cannot_be_quantised_says_why(layer, scheme, why):
    found = why_not(layer, scheme)
    assert found is None if why is None else why in found


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"0": {"scheme": "int4"}}, "unknown scheme 'int4'"),
        ({"1": {"scheme": "bf16"}}, "1: a ReLU may do more"),
        ({"5": {"scheme": "bf16"}}, "5"),
        ({"0": {**STATIC, "input_scale": -1.0}}, "input_scale=-1.0"),
        ({"0": {**STATIC, "input_scale": "os"}}, "input_scale=os"),
        ({"0": {**STATIC, "input_zero_point": 256}}, "input_zero_point=256"),
        ({"0": {"scheme": "int8_static"}}, "input_scale"),
        ({"0": 3}, "not subscriptable"),
        ([], ""),
    ],
)
def test_a_table_that_makes_no_sense_is_an_error(layers, message):
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(CheckpointError, match=r"a\.bin: the model in it cannot be quantised") as e:
        apply_changes(module, [{"kind": "quantised", "layers": layers}], "a.bin")
    assert message in str(e.value)


def test_layers_are_made_without_memory_too():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 1))
        change = {"kind": "quantised", "layers": {"0": STATIC, "1": {"scheme": "bf16"}}}
        apply_changes(module, [change], "a.bin")
    assert {each.device.type for each in module.parameters()} == {"meta"}
    assert module[0].weight.dtype == torch.int8


def test_weights_alone_in_int8_are_multiplied_in_the_dtype_of_the_inputs():
    layer = nn.Linear(24, 16)
    made = make_layer(layer, {"scheme": "int8_weight_only"})
    x = torch.randn(5, 24)
    assert made(x.bfloat16()).dtype == torch.bfloat16
    weight = made.weight.float() * made.weight_scale[:, None]
    torch.testing.assert_close(made(x), F.linear(x, weight, layer.bias), atol=1e-5, rtol=0)
