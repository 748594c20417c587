"""Models of transformers as they come: given to the trainer, saved, and refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.convert import deepseek_to_pytorch
from deepseek.datasets import DataSpec, TokenDataset
from deepseek.datasets.spec import FieldSpec
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, MultiHead
from deepseek.trainer import Trainer

transformers = pytest.importorskip("transformers", reason="needs the extra text: transformers")

TINY = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PAD = 0


def gpt2(cls="GPT2LMHeadModel", **changes):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, **changes,
    )  # fmt: skip
    return getattr(transformers, cls)(config)


def bert(**changes):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **TINY, intermediate_size=24, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.2, **changes,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


class Logits(nn.Module):
    """What a user had to write before."""

    def __init__(self, hf):
        super().__init__()
        self.hf = hf

    def forward(self, tokens):
        return self.hf(tokens).logits


def text():
    numbers = np.random.default_rng(0).integers(0, 48, 24 * 16 + 1)
    return TokenDataset(numbers, 16, [str(number) for number in range(48)])


def labelled(num_classes=2):
    tokens = torch.randint(1, 48, (24, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(24) % 10 + 2
    padded = tokens.where(torch.arange(12) < lengths[:, None], PAD)
    return TensorDataset(padded, torch.arange(24) % num_classes)


def train(model, data, folder, val_data=None, **settings):
    chosen = {"batch_size": 8, "max_steps": 3, "lr": 1e-3, "precision": "fp32"} | settings
    trainer = Trainer(
        model, data, val_data, run_dir=folder, loggers=["jsonl"], device="cpu", num_workers=0,
        **chosen,
    )  # fmt: skip
    return trainer, trainer.fit()


def weights(module):
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def test_a_causal_model_learns_as_one_that_returns_logits(tmp_path):
    hf, other = gpt2(), gpt2()
    trainer, history = train(hf, text(), tmp_path / "raw", text())
    train(Logits(other), text(), tmp_path / "around")
    assert torch.equal(weights(hf), weights(other))  # trained in place
    assert history.records[-1]["val_loss"] > 0
    assert trainer.model.architecture == "transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel"
    again = ModelEngine.load(tmp_path / "raw" / "model.bin", gpt2())
    assert torch.equal(weights(again), weights(hf))
    assert deepseek_to_pytorch(trainer.model).keys() == hf.state_dict().keys()


@pytest.mark.parametrize(
    "make",
    [bert, lambda: gpt2("GPT2ForSequenceClassification", pad_token_id=PAD)],
    ids=["bert", "gpt2"],
)
def test_a_classifier_sees_no_padding(make, tmp_path):
    hf, data = make(), labelled()
    trainer, _ = train(hf, data, tmp_path / "run", data)
    tokens = data.tensors[0][:1]
    short = tokens[:, : int((tokens != PAD).sum())]
    engine = trainer.model.eval()
    torch.testing.assert_close(engine(tokens), engine(short))
    torch.testing.assert_close(engine(short), hf(short).logits)


def test_a_loaded_classifier_sees_no_padding(tmp_path):
    tokens = labelled().tensors[0][:2]
    spec = DataSpec("sequence_classification", {}, pad_token=PAD)
    engine = ModelEngine.wrap(bert(), spec)
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin", bert())
    assert torch.equal(loaded.eval()(tokens), engine.eval()(tokens))
    assert not torch.allclose(ModelEngine.wrap(bert()).eval()(tokens), engine(tokens))
    with pytest.raises(ConfigError, match="filled up with token 0, the model has pad_token_id=5"):
        ModelEngine.load(tmp_path / "model.bin", bert(pad_token_id=5))


def test_a_trunk_of_several_tasks_sees_no_padding(tmp_path):
    tokens = labelled().tensors[0][:1]
    short = tokens[:, : int((tokens != PAD).sum())]
    task = DataSpec("sequence_regression", {"targets": FieldSpec((), "float32")})
    inputs = {"inputs": FieldSpec((12,), "int64")}
    spec = DataSpec("multi", inputs, pad_token=PAD, tasks={"a": task, "b": task})
    engine = ModelEngine.wrap(MultiHead.around(bert(num_labels=6), dim=6), spec).eval()
    torch.testing.assert_close(engine(tokens)["a"], engine(short)["a"])
    engine.save(tmp_path / "model.bin")
    empty = MultiHead.around(bert(num_labels=6), dim=6)
    loaded = ModelEngine.load(tmp_path / "model.bin", empty).eval()
    torch.testing.assert_close(loaded(tokens)["a"], engine(short)["a"])
    with pytest.raises(ConfigError, match="filled up with token 0, the model has pad_token_id=5"):
        ModelEngine.wrap(MultiHead.around(bert(pad_token_id=5), dim=2), spec)


def test_padding_of_the_data_is_the_model_s():
    spec = DataSpec("sequence_classification", {}, pad_token=3)
    engine = ModelEngine.wrap(gpt2("GPT2ForSequenceClassification"), spec)
    assert engine.module.model.config.pad_token_id == engine.module.pad_token == 3
    with pytest.raises(ConfigError, match="filled up with token 3, the model has pad_token_id=5"):
        ModelEngine.wrap(bert(pad_token_id=5), spec)


def test_too_few_labels_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="num_labels=2, the data 3 classes"):
        train(bert(), labelled(3), tmp_path)


def test_a_model_without_logits_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"GPT2Model returns .* holds no logits"):
        train(gpt2("GPT2Model"), text(), tmp_path)


def test_any_module_may_return_a_mapping_that_holds_logits():
    class Around(nn.Module):
        def forward(self, x):
            return {"logits": x + 1, "hidden": x}

    assert ModelEngine.wrap(Around())(torch.zeros(2)).tolist() == [1, 1]


@pytest.mark.parametrize("chunks", [3, 16])
def test_a_loss_in_chunks_learns_the_same(chunks, tmp_path):
    whole, cut = gpt2(), gpt2()
    train(whole, text(), tmp_path / "whole", grad_accum_steps=2)
    train(cut, text(), tmp_path / "cut", grad_accum_steps=2, loss_chunks=chunks)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=0, atol=2e-5)
