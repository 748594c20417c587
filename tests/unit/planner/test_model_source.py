import json

import pytest

from deepseek.errors import ConfigError
from deepseek.planner import find_shape
from deepseek.planner.flops import count_parameters
from deepseek.planner.model_source import find_model


def write_config(folder, architecture, args, batch_size=64):
    path = folder / "model_config.yaml"
    lines = [f"  {key}: {value}" for key, value in args.items()]
    body = "\n".join("  " + line for line in lines)
    path.write_text(
        f"data:\n  train: corpus.txt\nmodel:\n  architecture: {architecture}\n  args:\n{body}\n"
        f"trainer:\n  batch_size: {batch_size}\n"
    )
    return str(path)


def test_a_name_is_a_preset_and_its_sequence_can_be_another():
    assert find_model("gpt3-175b").shape == find_shape("gpt3-175b")
    source = find_model("LLAMA3_8B", context_length=16384, vocab_size=1000)
    assert (source.shape.context_length, source.shape.vocab_size) == (16384, 1000)


def test_experts_have_a_note():
    assert "ep" in find_model("mixtral-8x7b").note
    assert find_model("mistral-7b").note == ""


def test_a_table_has_short_names_for_its_sizes():
    shape = find_model("layers=2,dim=64,heads=4,vocab=1_000,seq=128,gated=true,kv_heads=2").shape
    assert (shape.num_layers, shape.vocab_size, shape.context_length) == (2, 1000, 128)
    assert shape.is_gated
    assert shape.kv_heads == 2


def test_a_file_may_lie_in_a_folder_that_is_called_like_a_setting(tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    args = {"context_length": 16, "num_layers": 2, "dim": 32, "heads": 4}
    assert find_model(write_config(folder, "gpt", args), vocab_size=65).shape.num_layers == 2


def test_a_table_may_be_longer_than_the_name_of_a_file():
    table = "layers=2,dim=64,heads=4,vocab=1000,seq=128,name=" + "x" * 300
    assert find_model(table).shape.num_layers == 2


def test_a_folder_of_hugging_face_is_read(tmp_path):
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100,
        "num_attention_heads": 4, "intermediate_size": 172, "max_position_embeddings": 256,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_folder, by_file = find_model(str(tmp_path)), find_model(str(tmp_path / "config.json"))
    assert by_folder == by_file
    assert by_folder.shape.hidden_dim == 172
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    assert find_model(str(tmp_path)).shape == by_folder.shape


def test_our_gpt_has_the_weights_that_the_library_builds(tmp_path):
    from deepseek.models import GPT

    args = {"context_length": 16, "num_layers": 2, "dim": 32, "heads": 4}
    source = find_model(write_config(tmp_path, "gpt", args), vocab_size=65)
    built = sum(p.numel() for p in GPT(**args, num_classes=65).parameters())
    # Norms of the planner's unbiased shapes have no biases: 5 norms of 32 numbers.
    assert count_parameters(source.shape) == built - 5 * 32
    assert source.batch_size == 64


def test_our_llama_has_the_weights_that_the_library_builds(tmp_path):
    from deepseek.models import Llama

    for more in ({}, {"kv_heads": 2, "tied": True}, {"hidden_dim": 48, "head_dim": 6}):
        args = {"context_length": 16, "num_layers": 2, "dim": 32, "heads": 4, **more}
        source = find_model(write_config(tmp_path, "llama", args), vocab_size=65)
        built = sum(p.numel() for p in Llama(**args, num_classes=65).parameters())
        assert count_parameters(source.shape) == built


def test_our_vit_and_encoder_are_mapped_and_say_how(tmp_path):
    from deepseek.models import VisionTransformer

    args = {"image_size": 32, "patch_size": 4, "num_layers": 2, "dim": 32, "heads": 4}
    source = find_model(write_config(tmp_path, "vit", args))
    assert source.shape.context_length == 65
    assert not source.shape.is_causal
    assert "patches" in source.note
    built = sum(p.numel() for p in VisionTransformer(**args).parameters())
    assert count_parameters(source.shape) == pytest.approx(built, rel=0.01)
    args = {"vocab_size": 100, "context_length": 16, "num_layers": 2, "dim": 32, "heads": 4}
    assert "logits" in find_model(write_config(tmp_path, "encoder", args)).note


def test_the_vocabulary_of_a_text_is_read_from_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters.txt").write_text("abcab\n")
    (tmp_path / "vocab.txt").write_text("\n".join(map(str, range(70))))
    content = {"model": {"vocab": {"a": 0, "b": 90}}, "added_tokens": [{"id": 130}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    path = tmp_path / "model_config.yaml"
    args = "{context_length: 16, num_layers: 2, dim: 32, heads: 4}"

    def rows(tokenizer):
        path.write_text(
            f"data: {{format: text, train: letters.txt, tokenizer: {tokenizer}, vocab_size: 300}}\n"
            f"model: {{architecture: gpt, args: {args}}}\n"
        )
        source = find_model(str(path))
        assert "a vocabulary of" in source.note
        return source.shape.vocab_size

    assert rows("characters") == 64  # of 4, filled up
    assert rows("vocab.txt") == 128
    assert rows(".") == rows("tokenizer.json") == 192
    assert rows("bpe") == 320
    assert find_model(str(path), vocab_size=65).note == ""
    with pytest.raises(ConfigError, match="--vocab-size"):
        rows("absent.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpt3-175", 'did you mean "gpt3-175b"'),
        ("layers=2,dim=64", "missing"),
        ("layers=2,colour=3", "colour"),
        ("layers=two,dim=64", "layers=two"),
        ("layers=2,dim", "'dim' is no KEY=NUMBER"),
        ("nowhere/config.json", "cannot be read"),
    ],
)
def test_what_names_no_model_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        find_model(text)


def test_a_configuration_of_another_model_or_without_a_size_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="architecture=resnet18"):
        find_model(write_config(tmp_path, "resnet18", {"channels": 3}))
    with pytest.raises(ConfigError, match=r"model\.args has no heads"):
        find_model(
            write_config(tmp_path, "gpt", {"context_length": 16, "num_layers": 2, "dim": 32}), 0, 65
        )
    args = {"context_length": 16, "num_layers": 2, "dim": 32, "heads": 4}
    with pytest.raises(ConfigError, match="--vocab-size"):
        find_model(write_config(tmp_path, "gpt", args))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list"):
        find_model(str(tmp_path))


def test_rows_are_as_long_as_the_data_make_them(tmp_path):
    path = tmp_path / "model_config.yaml"
    args = "{context_length: 1024, num_layers: 2, dim: 32, heads: 4, num_classes: 65}"

    def shape(length, **given):
        path.write_text(
            "data: {format: text, train: corpus.txt, tokenizer: characters,"
            f" sequence_length: {length}}}\nmodel: {{architecture: gpt, args: {args}}}\n"
        )
        return find_model(str(path), **given).shape

    short = shape(256)
    assert short.context_length == 256
    assert shape(4096).context_length == 1024  # training says that it is too long
    assert shape(256, context_length=512).context_length == 512
    assert count_parameters(short) == count_parameters(shape(1024))  # positions stay
