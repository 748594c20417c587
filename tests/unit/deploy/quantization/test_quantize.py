import math

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from deepseek.datasets import DataSpec
from deepseek.datasets.spec import FieldSpec
from deepseek.deploy import Calibration, quantize
from deepseek.errors import ConfigError, DataError
from deepseek.models import Encoder, ModelEngine, ResNet
from deepseek.models.quantized import SCHEMES, QuantizedLayer

IMAGE = (3, 12, 12)


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(48, *IMAGE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def engine(pictures):
    """A ResNet whose norms do something, and that is right about its own answers."""
    torch.manual_seed(0)
    module = ResNet(num_layers=8, num_classes=5).train()
    with torch.no_grad():
        for _ in range(3):
            module(pictures)
        module.linear.weight.mul_(50)
    fields = {"inputs": FieldSpec(IMAGE, "float32")}
    names = tuple(map(str, range(5)))
    return ModelEngine.wrap(module.eval(), DataSpec("classification", fields, names, (1,) * 5))


@pytest.fixture(scope="module")
def data(engine, pictures):
    with torch.no_grad():
        return TensorDataset(pictures, engine(pictures).argmax(-1))


class Outlier(nn.Module):
    """Its layer `b` has an input so large that the others vanish beside it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.factor = torch.tensor([3000.0] + [1.0] * 7)
        with torch.no_grad():
            self.b.weight[:, 0] /= 3000

    def forward(self, x):
        x = torch.relu(self.a(x)) * self.factor
        return self.d(torch.relu(self.c(torch.relu(self.b(x)))))


def outlier_data(model, count=200):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return TensorDataset(x, model(x).argmax(-1))


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "int8_dynamic"])
def test_a_quantised_model_is_saved_and_loaded_as_any_other(engine, data, scheme, tmp_path):
    before = {name: tensor.clone() for name, tensor in engine.state_dict().items()}
    done = quantize(engine, scheme, data)
    assert all(torch.equal(engine.state_dict()[name], tensor) for name, tensor in before.items())
    assert done.bytes_after < done.bytes_before * (0.35 if scheme.startswith("int8") else 0.6)
    assert done.before == 1.0
    assert done.after > 0.8
    assert done.drop == 1.0 - done.after
    done.model.save(tmp_path / "small.bin")
    loaded = ModelEngine.load(tmp_path / "small.bin").eval()
    pictures = data.tensors[0]
    with torch.no_grad():
        assert torch.equal(loaded(pictures), done.model(pictures))
    assert loaded.num_parameters == done.model.num_parameters
    assert [layer.name for layer in done.layers if layer.scheme is None] == ["linear"]
    assert "linear          in float: makes the logits" in done.describe()
    assert loaded.flops(IMAGE) > 0
    with pytest.raises(ConfigError, match="quantised already"):
        quantize(loaded, scheme, data)


def test_linears_alone_are_quantised_as_they_go():
    torch.manual_seed(0)
    encoder = Encoder(
        vocab_size=40, context_length=8, num_layers=1, dim=16, heads=2, num_classes=3
    ).eval()
    tokens = torch.randint(1, 40, (16, 8))
    done = quantize(encoder, "int8_dynamic", tokens)
    reasons = {layer.name: layer.why for layer in done.layers}
    assert [why for name, why in reasons.items() if name.endswith("tok_embed")] == [
        "an embedding multiplies nothing"
    ]
    assert done.metric == "cosine"
    assert done.before == 1.0
    assert done.after > 0.99
    with torch.no_grad():
        torch.testing.assert_close(done.model(tokens), encoder(tokens), atol=0.05, rtol=0)
    whole = quantize(encoder, "int8_weight_only", tokens, embeddings=True)
    assert whole.bytes_after < done.bytes_after


def test_a_number_is_judged_by_how_far_it_is_off_and_not_by_its_sign():
    model = Outlier()
    with torch.no_grad():
        model.d = nn.Linear(8, 1)
        model.d.bias.fill_(50.0)  # all numbers are positive
    inputs, _ = outlier_data(model).tensors
    done = quantize(model, "int8_dynamic", inputs)
    with torch.no_grad():
        want, found = model(inputs), done.model(inputs)
    lost = (found - want).square().mean() / want.var(correction=0)
    assert (done.metric, done.before) == ("r2", 1.0)
    assert done.after == pytest.approx(1 - float(lost), abs=1e-3)
    assert done.after < 0.99


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("activations", ["affine", "symmetric"])
def test_every_calibration_finds_ranges(engine, pictures, ranges, activations):
    calibration = Calibration(ranges=ranges, activations=activations, num_samples=16)
    done = quantize(engine, "int8_static", pictures, calibration=calibration)
    assert done.after > 0.98
    codes = done.model.changes[-1]["layers"].values()
    assert all(code["input_scale"] > 0 for code in codes)
    if activations == "symmetric":
        assert {code["input_zero_point"] for code in codes} == {128}
    assert done.notes == ("7 norms folded",)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in done.model.modules())


def test_the_layer_that_hurts_stays_in_float_until_the_tolerance_holds():
    model = Outlier().eval()
    data = outlier_data(model)
    calibration = Calibration(ranges="minmax")
    hurt = quantize(model, "int8_static", data, calibration=calibration)
    assert hurt.drop > 0.1
    said = []
    done = quantize(
        model, "int8_static", data, calibration=calibration, tolerance=0.05, say=said.append
    )
    assert [layer.name for layer in done.layers if layer.scheme is None] == ["b"]
    assert next(layer.why for layer in done.layers if layer.name == "b") == "hurts most"
    assert done.drop <= 0.05
    assert sum("in float" in text for text in said) <= math.ceil(math.log2(len(done.layers)))
    assert isinstance(done.model.module.b, nn.Linear)


def test_a_tolerance_that_cannot_be_held_says_what_was_reached():
    class Noisy(nn.Module):
        """Its one linear but the last is all that decides."""

        def __init__(self):
            super().__init__()
            self.a = Outlier().b
            self.factor = torch.tensor([3000.0] + [1.0] * 7)

        def forward(self, x):
            return self.a(x * self.factor)

    model = Noisy().eval()
    with pytest.raises(ConfigError, match=r"tolerance=0.001 cannot be held: accuracy falls by 0\."):
        quantize(
            model, "int8_static", outlier_data(model), calibration=Calibration(ranges="minmax"),
            tolerance=0.001,
        )  # fmt: skip


@pytest.mark.parametrize(("scheme", "judged"), [("int8_static", 66), ("bf16", 130)])
def test_no_more_than_half_is_calibrated_with_and_what_is_judged_on_is_said(
    engine, data, scheme, judged
):
    few = Subset(data, [at % len(data) for at in range(130)])
    done = quantize(engine, scheme, few, tolerance="50%", metric="accuracy")
    assert done.num_samples == done.to_json()["num_samples"] == judged
    assert f"on {judged} samples" in done.describe()


def test_a_tolerance_finer_than_a_sample_is_doubted(engine, data):
    done = quantize(engine, "bf16", Subset(data, range(20)), tolerance=0.005, metric="accuracy")
    assert "20 samples, of which one is 5 points: too few" in done.describe()


def test_what_is_kept_stays_as_it_is(engine, data):
    done = quantize(engine, "bf16", data, keep=["layer1", "conv1"])
    kept = {layer.name: layer.why for layer in done.layers if layer.scheme is None}
    assert kept["layer1.0.conv1"] == kept["conv1"] == "asked for"
    assert not isinstance(done.model.module.conv1, QuantizedLayer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "int8_statik"}, 'did you mean "int8_static"'),
        ({"scheme": "int8_static", "data": None}, "int8_static needs samples"),
        ({"scheme": "bf16", "data": None, "tolerance": 0.1}, "needs data to be measured on"),
        ({"scheme": "bf16", "tolerance": 5.0}, "tolerance=5.0 is not a share"),
        ({"scheme": "bf16", "tolerance": 1.0}, "tolerance=1 is no share below 1"),
        ({"scheme": "bf16", "tolerance": math.nan}, "tolerance=nan is not a share"),
        ({"scheme": "bf16", "keep": ["layr1"]}, 'did you mean "layer1"'),
        ({"scheme": "bf16", "metric": "loss"}, "choose one of: accuracy, macro_f1, cosine"),
        ({"scheme": "bf16", "batch_size": 0}, "batch_size=0"),
        ({"scheme": "int8_dynamic"}, "nothing of the model can be quantised"),
    ],
)
def test_wrong_arguments_say_what_is_right(engine, data, arguments, message):
    with pytest.raises(ConfigError, match=r".") as error:
        quantize(engine, **{"data": data, **arguments})
    assert message in str(error.value)


def test_wrong_settings_of_the_calibration_say_what_is_right():
    with pytest.raises(ConfigError, match='did you mean "percentile"'):
        Calibration(ranges="percentage")
    with pytest.raises(ConfigError, match=r"num_samples=0"):
        Calibration(num_samples=0)


def test_broken_data_are_an_error(engine, pictures):
    with pytest.raises(DataError, match="1 samples are too few"):
        quantize(engine, "int8_static", pictures[:1])
    broken = pictures.clone()
    broken[:, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="an input of layer 'conv1' is NaN or infinite"):
        quantize(engine, "int8_static", broken)
    labels = torch.arange(48) % 7
    with pytest.raises(ConfigError, match=r"num_classes=5, the data 7 classes"):
        quantize(engine, "int8_static", TensorDataset(pictures, labels))


def test_data_with_classes_of_other_names_are_refused(engine, pictures):
    class Named(TensorDataset):
        classes = ("a", "b", "c", "d", "e")

    with pytest.raises(ConfigError, match="the class 'a' where the model has '0'"):
        quantize(engine, "bf16", Named(pictures, torch.arange(48) % 5))


def test_weights_that_are_shared_or_read_by_others_stay_in_float():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.last = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
            self.last.weight = self.embed.weight
            self.read, self.used = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, tokens):
            x = self.used(self.embed(tokens))
            return self.last(nn.functional.linear(x, self.read.weight))

    done = quantize(Tied(), "int8_weight_only", torch.arange(40).view(10, 4) % 10, embeddings=True)
    reasons = {layer.name: layer.why for layer in done.layers}
    assert reasons["embed"] == reasons["last"] == "shares its weights"
    assert reasons["read"] == "is not called by itself"
    assert reasons["used"] == ""


def test_numbers_that_16_bits_cannot_hold_are_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.fill_(1e6)
    with pytest.raises(ConfigError, match="not finite"):
        quantize(model, "fp16", torch.ones(16, 4))
    assert quantize(model, "bf16", torch.ones(16, 4)).after > 0.99


def test_without_data_nothing_is_measured(engine):
    done = quantize(engine, "int8_weight_only")
    assert done.metric == ""
    assert done.before is None
    assert done.drop is None
    assert all(layer.noise_db > 30 for layer in done.layers if layer.scheme)


def test_it_is_evaluated_as_it_was_judged(engine, data, monkeypatch):
    """Under bf16, which `auto` is where a chip has it, its rounding would be another."""
    from deepseek.trainer import precision
    from deepseek.trainer.evaluation import evaluate_samples, precision_of

    monkeypatch.setattr(precision, "chip_has_bf16", lambda device: True)
    small = quantize(engine, "int8_static", data).model
    assert (precision_of(small, "auto"), precision_of(engine, "auto")) == ("fp32", "auto")
    probs = [
        evaluate_samples(small, data, 16, num_workers=0, device="cpu", precision=name).samples[
            "probs"
        ]
        for name in ("auto", "fp32", "bf16")
    ]
    assert torch.equal(probs[0], probs[1])
    assert not torch.equal(probs[0], probs[2])
