"""Tokenizers, names of classes and kinds of answers of Hugging Face folders."""

import pytest
import torch

from deepseek.convert import convert, pytorch_to_deepseek
from deepseek.convert.export import deepseek_to_huggingface
from deepseek.datasets import train_tokenizer
from deepseek.models import ModelEngine

transformers = pytest.importorskip("transformers")
TEXTS = ["shares rose sharply", "profit fell", "the bank said nothing"] * 10
TEXT = "profit rose sharply"


def make_config(**settings):
    sizes = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 16,
    }  # fmt: skip
    return transformers.BertConfig(**{**sizes, **settings})


def write_folder(folder, **settings):
    """Write a classifier with its tokenizer; return the tokenizer, `TEXT` as tokens, its logits."""
    tokenizer = train_tokenizer(TEXTS, kind="wordpiece", vocab_size=80)
    sizes = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_token}
    model = transformers.BertForSequenceClassification(make_config(**sizes, **settings)).eval()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    tokens = torch.from_numpy(tokenizer.encode([TEXT])[0])
    with torch.no_grad():
        return tokenizer, tokens, model(tokens[None]).logits[0]


def test_a_tokenizer_and_names_of_classes_go_in_with_a_folder_and_out_again(tmp_path):
    tokenizer, tokens, logits = write_folder(
        tmp_path / "in", id2label={0: "down", 1: "up", 2: "same"},
        label2id={"down": 0, "up": 1, "same": 2},
    )  # fmt: skip
    engine = pytorch_to_deepseek(tmp_path / "in")
    assert engine.spec.class_names == ("down", "up", "same")
    engine.save(tmp_path / "model.bin")
    found = ModelEngine.load(tmp_path / "model.bin").predict(TEXT)
    torch.testing.assert_close(found.probs, logits.softmax(-1), atol=1e-5, rtol=0)
    deepseek_to_huggingface(engine, tmp_path / "out")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again(TEXT)["input_ids"] == tokens.tolist()
    assert again.pad_token_id == tokenizer.pad_token
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert opened.config.id2label == {0: "down", 1: "up", 2: "same"}


@pytest.mark.parametrize(
    "settings", [{"num_labels": 1}, {"num_labels": 2, "problem_type": "regression"}]
)
def test_a_folder_with_one_label_predicts_a_number(settings, tmp_path):
    _, _, logits = write_folder(tmp_path / "in", **settings)
    pytorch_to_deepseek(tmp_path / "in").save(tmp_path / "model.bin")
    engine = ModelEngine.load(tmp_path / "model.bin")
    found = torch.tensor(engine.predict(TEXT)).reshape(-1)
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)
    deepseek_to_huggingface(engine, tmp_path / "out")
    assert pytorch_to_deepseek(tmp_path / "out").predict(TEXT) == engine.predict(TEXT)


def test_classes_that_do_not_exclude_each_other_are_told(tmp_path):
    write_folder(tmp_path, num_labels=3, problem_type="multi_label_classification")
    conversion = convert(tmp_path)
    assert conversion.engine.spec.task == "sequence_classification"
    assert any("do not exclude each other" in note for note in conversion.report.notes)


def test_a_broken_tokenizer_is_left_out_and_told(tmp_path):
    transformers.BertModel(make_config()).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    conversion = convert(tmp_path)
    assert conversion.engine.spec is None
    assert any("without its tokenizer" in note for note in conversion.report.notes)
