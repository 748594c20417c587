import pytest
import torch

from deepseek.datasets import TextDataset, train_tokenizer
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.encoder_outputs import with_outputs
from deepseek.models.vocabulary_rows import (
    count_rows,
    draw_rows,
    fill_rows,
    vocabulary_rows,
    with_more_rows,
)

SIZES = {"context_length": 16, "num_layers": 1, "dim": 16, "heads": 2}
TOKENS = torch.tensor([[5, 9, 3, 0]])


def models():
    torch.manual_seed(0)
    encoder = {"vocab_size": 40, "dropout": 0.0, **SIZES}
    return {
        "vocabulary": ModelEngine("encoder", outputs="vocabulary", **encoder),
        "hidden": ModelEngine("encoder", outputs="hidden", **encoder),
        "sequence": ModelEngine("encoder", num_classes=3, **encoder),
        "gpt": ModelEngine("gpt", num_classes=40, dropout=0.0, **SIZES),
        "llama": ModelEngine("llama", num_classes=40, hidden_dim=32, **SIZES),
    }


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("num_tokens", [40, 43, 100])
def test_a_larger_vocabulary_changes_nothing_for_the_old_tokens(name, num_tokens):
    engine = models()[name].eval()
    grown = with_more_rows(engine, num_tokens)
    assert count_rows(grown) == num_tokens
    assert not grown.training
    old, new = engine(TOKENS), grown(TOKENS)
    torch.testing.assert_close(new[..., : old.shape[-1]], old)
    assert engine.config == models()[name].config


@pytest.mark.parametrize("num_tokens", [43, 100])
def test_new_rows_of_a_tied_decoder_are_zero(num_tokens):
    grown = with_more_rows(models()["gpt"], num_tokens).module
    assert grown.head.weight is grown.tok_embed.weight
    assert not grown.tok_embed.weight[40:].any()
    assert grown.tok_embed.weight[:40].any(1).all()


@pytest.mark.parametrize("name", models())
def test_tied_rows_are_one_and_a_grown_model_is_saved_and_loaded(name, tmp_path):
    grown = with_more_rows(models()[name], 43).eval()
    fill_rows(grown.module, {41: {5: 0.5, 9: 0.5}})
    for weight in vocabulary_rows(grown.module).values():
        torch.testing.assert_close(weight[41], (weight[5] + weight[9]) / 2)
    assert len(vocabulary_rows(grown.module)) == {"vocabulary": 2, "llama": 2}.get(name, 1)
    grown.save(tmp_path / "m.bin")
    again = ModelEngine.load(tmp_path / "m.bin").eval()
    new = torch.tensor([[5, 41, 42]])
    torch.testing.assert_close(again(new), grown(new))
    assert count_rows(again) == 43


def test_drawn_rows_have_mean_and_covariance_of_the_others():
    torch.manual_seed(0)
    engine = ModelEngine("encoder", outputs="vocabulary", vocab_size=6000, **SIZES)
    weight = engine.module.embedding.tok_embed.weight
    with torch.no_grad():
        weight[:3000] = torch.randn(3000, 16) @ torch.randn(16, 16) + 2
    draw_rows(engine.module, range(3000, 6000), 3000)
    old, new = weight[:3000].detach(), weight[3000:].detach()
    assert (old.mean(0) - new.mean(0)).norm() < 0.1 * old.mean(0).norm()
    assert (torch.cov(old.T) - torch.cov(new.T)).norm() < 0.1 * torch.cov(old.T).norm()


def test_models_that_cannot_grow_are_refused():
    with pytest.raises(ConfigError, match="ResNet has no vocabulary that could grow"):
        vocabulary_rows(ModelEngine("resnet20", num_classes=2).module)
    with pytest.raises(ConfigError, match="num_tokens=30 is below the 40 of the model"):
        with_more_rows(models()["gpt"], 30)
    engine = models()["hidden"]
    engine.changes = ({"kind": "cut"},)
    with pytest.raises(ConfigError, match="was cut or quantised"):
        with_more_rows(engine, 50)
    with pytest.raises(ConfigError, match="was cut or quantised"):
        with_outputs(engine, "sequence")
    with pytest.raises(ConfigError, match="'gpt' is no encoder"):
        with_outputs(models()["gpt"], "sequence")


def test_an_encoder_takes_another_head_and_keeps_its_blocks():
    engine = models()["vocabulary"].eval()
    other = with_outputs(engine, "hidden").eval()
    back = with_outputs(other, "vocabulary").eval()
    hidden = engine.module.embedding(TOKENS)
    torch.testing.assert_close(other.module.embedding(TOKENS), hidden)
    assert back(TOKENS).shape == (1, 4, 40)
    classifier = with_outputs(engine, "sequence", num_classes=3)
    assert classifier(TOKENS).shape == (1, 3)
    assert torch.equal(classifier.module.blocks[0].fc1.weight, engine.module.blocks[0].fc1.weight)


def test_a_grown_decoder_takes_a_tokenizer_that_fills_fewer_of_its_rows():
    texts = ["the cat sat", "a dog barked"] * 20
    tokenizer = train_tokenizer(texts, "wordpiece", 40)
    grown = with_more_rows(ModelEngine("gpt", num_classes=150, **SIZES), 150)
    data = TextDataset(
        texts, "language_modelling", tokenizer=tokenizer, sequence_length=16, cache="off"
    )
    rows = grown.module.tok_embed.weight[: tokenizer.vocab_size].clone()
    with pytest.warns(UserWarning, match="of 192 rows of the vocabulary are kept"):
        grown.bind(data.spec)
    assert grown.num_classes == tokenizer.vocab_size
    assert torch.equal(grown.module.tok_embed.weight[: tokenizer.vocab_size], rows)
