"""Calibrated probabilities, attributions, and the page of mistakes."""

import copy

import numpy as np
import pytest
import torch
from tests.unit.deploy.service.conftest import make_text_engine

from deepseek.datasets import TextDataset, Tokenizer
from deepseek.deploy import quantize
from deepseek.deploy.error_analysis import analyse_errors
from deepseek.deploy.temperature import (
    calibrate_model,
    fit_temperature,
    measure_temperature,
    scale_probs,
)
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.attribution import attribute_tokens
from deepseek.models.text_batches import encode_texts
from deepseek.trainer.evaluation import evaluate_samples


def drawn(temperature, count=20_000):
    """Labels that come true with the probabilities of logits, and logits that are too sure."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, 3)) * 2
    noise = rng.gumbel(size=logits.shape)
    targets = (logits + noise).argmax(1)
    sure = np.exp(logits * temperature)
    return sure / sure.sum(1, keepdims=True), targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature):
    probs, targets = drawn(temperature)
    assert fit_temperature(probs, targets) == pytest.approx(temperature, rel=0.05)
    found = measure_temperature(probs, targets)
    assert found.ece_after < 0.02
    assert found.loss_after <= found.loss_before + 1e-4
    scaled = scale_probs(probs, temperature)
    assert (scaled.argmax(1) == probs.argmax(1)).all()
    np.testing.assert_allclose(scaled.sum(1), 1)


@pytest.fixture
def films(tmp_path):
    engine = make_text_engine(tmp_path)
    rows = [f"a {'good' if n % 2 else 'bad'} film,{'pos' if n % 3 else 'neg'}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    data = TextDataset(
        tmp_path / "t.csv", "sequence_classification", tokenizer=Tokenizer(engine.spec.tokenizer),
        sequence_length=16, class_names=engine.spec.class_names, cache="off",
    )  # fmt: skip
    return engine.eval(), data


def test_a_calibrated_model_says_what_scaled_probabilities_say(films, tmp_path):
    engine, data = films
    before = evaluate_samples(engine, data, device="cpu", precision="fp32").samples
    calibrated, found = calibrate_model(engine, data, device="cpu")
    calibrated.save(tmp_path / "c.bin")
    loaded = ModelEngine.load(tmp_path / "c.bin")
    after = evaluate_samples(loaded, data, device="cpu", precision="fp32").samples
    want = scale_probs(before["probs"].numpy(), found.value)
    np.testing.assert_allclose(after["probs"].numpy(), want, atol=1e-4)
    assert after["loss"].mean() < before["loss"].mean()
    again = evaluate_samples(engine, data, device="cpu", precision="fp32").samples
    assert torch.equal(again["probs"], before["probs"])  # the given model stays
    hidden = ModelEngine("encoder", vocab_size=9, context_length=8, num_layers=1, dim=8, heads=2,
                         outputs="hidden")  # fmt: skip
    with pytest.raises(ConfigError, match="no linear head"):
        calibrate_model(hidden, data)


def test_too_few_samples_are_refused():
    with pytest.raises(ConfigError, match="3 samples are too few"):
        measure_temperature(np.full((3, 2), 0.5), np.zeros(3, int))


def test_attributions_add_up_to_what_they_explain(films):
    engine, _ = films
    tokens = next(encode_texts(["a good film"], engine.spec, 1))[0]
    tokens = tokens[tokens != engine.spec.pad_token]
    direction = torch.tensor([1.0, -1.0])
    found = attribute_tokens(engine, tokens, direction, steps=256)
    table = engine.module.embedding.tok_embed
    with torch.no_grad():
        vectors = table(tokens)
        vectors[1:-1] = table(torch.tensor(engine.spec.pad_token))
        hook = table.register_forward_hook(lambda module, inputs, output: vectors[None])
        baseline = engine(tokens[None])[0] @ direction
        hook.remove()
        whole = engine(tokens[None])[0] @ direction
    assert found.sum().item() == pytest.approx((whole - baseline).item(), abs=0.02)
    assert found[0] == found[-1] == 0
    assert all(weight.grad is None for weight in engine.parameters())


def test_a_model_of_half_precision_is_explained(films):
    engine, _ = films
    tokens = next(encode_texts(["a good film"], engine.spec, 1))[0]
    direction = torch.tensor([1.0, -1.0])
    want = attribute_tokens(engine, tokens, direction)
    found = attribute_tokens(copy.deepcopy(engine).bfloat16(), tokens, direction)
    assert found.dtype == torch.float32
    assert want.abs().max() > 0.1
    torch.testing.assert_close(found, want, atol=0.1 * float(want.abs().max()), rtol=0)


def test_a_quantised_model_is_not_explained_by_gradients(films):
    engine, _ = films
    tokens = next(encode_texts(["a good film"], engine.spec, 1))[0]
    direction = torch.tensor([1.0, -1.0])
    rounded = quantize(engine, "int8_dynamic").model
    with pytest.raises(ConfigError, match="a model of int8_dynamic rounds to integers"):
        attribute_tokens(rounded, tokens, direction)
    weights_only = quantize(engine, "int8_weight_only").model
    assert attribute_tokens(weights_only, tokens, direction).abs().max() > 0.1


def test_the_page_shows_mistakes_and_escapes_what_is_not_ours(films, tmp_path):
    engine, _ = films
    (tmp_path / "t.csv").write_text(
        "text,label\n" + "<script>alert(1)</script> film,pos\na bad film,neg\n" * 12
    )
    data = TextDataset(
        tmp_path / "t.csv", "sequence_classification", tokenizer=Tokenizer(engine.spec.tokenizer),
        sequence_length=16, class_names=engine.spec.class_names, cache="off",
    )  # fmt: skip
    metrics = analyse_errors(engine, data, tmp_path / "m.html", num_shown=3, steps=4, device="cpu")
    page = (tmp_path / "m.html").read_text()
    assert "alert(1)" not in page
    assert f"{metrics['accuracy']:.0%}".replace("%", "") in page
    for title in ("Confusion matrix", "Calibration", "The surest mistakes", "Temperature"):
        assert title in page
    analyse_errors(engine, data, tmp_path / "plain.html", num_shown=3, steps=0, device="cpu")
    assert "integrated gradients" not in (tmp_path / "plain.html").read_text()
    with pytest.raises(ConfigError, match="num_shown=-1"):
        analyse_errors(engine, data, tmp_path / "m.html", num_shown=-1)
