import pytest

from deepseek.config import ConfigFileError, DataConfig, TextDataConfig, load_config
from deepseek.config.schema import dump_config, json_schema

TEXT = "data: {{format: text, train: a.txt, tokenizer: bpe{}}}\nmodel: {{architecture: gpt}}\n"


@pytest.fixture
def load(tmp_path):
    def read(text, overrides=()):
        (tmp_path / "a.yaml").write_text(text)
        return load_config(tmp_path / "a.yaml", overrides)

    return read


def test_the_format_decides_which_settings_there_are(load):
    assert isinstance(load("data: {train: a}\nmodel: {architecture: vit}\n").data, DataConfig)
    config = load(TEXT.format(", sequence_length: 64"), ["data.task=masked_language_modelling"])
    assert isinstance(config.data, TextDataConfig)
    assert (config.data.sequence_length, config.data.task[:6]) == (64, "masked")
    assert load(dump_config(config)).data == config.data


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (", tokeniser: x", "did you mean `tokenizer`?"),
        (", transform: resize_8", "it goes with `data.format: image`"),
        (", lr: 3", "did you mean `trainer.lr`?"),
        (", task: sequence_clasification", "did you mean `sequence_classification`?"),
        (", vocab_size: 3", "data.vocab_size = 3  expected a whole number >= 32 (tokens)"),
        (", text_column: -1", "expected a whole number >= 0, a text"),
    ],
)
def test_problems_are_found_at_their_place(more, message, load):
    if "text_column" in more:
        message = "data.text_column = -1"
    with pytest.raises(ConfigFileError) as caught:
        load(TEXT.format(more))
    assert message in str(caught.value)
    assert [problem.line for problem in caught.value.problems] == [1]


def test_what_belongs_to_text_or_is_missing_is_said(load):
    with pytest.raises(ConfigFileError, match=r"it goes with `data\.format: text`"):
        load("data: {train: a, tokenizer: bpe}\nmodel: {architecture: vit}\n")
    with pytest.raises(ConfigFileError, match="add `tokenizer`"):
        load("data: {format: text, train: a}\nmodel: {architecture: vit}\n")
    expected = r'expected "image", "table", "text", "volume", "nodules" or "multi"'
    with pytest.raises(ConfigFileError, match=expected):
        load("data: {format: txt, train: a}\nmodel: {architecture: vit}\n")
    with pytest.raises(ConfigFileError, match=r"data\.val=null"):
        load(TEXT.format(", val: null") + "trainer: {early_stopping: 2}\n")


def test_the_schema_has_both_kinds():
    definitions = json_schema()["$defs"]
    assert {"DataConfig", "TextDataConfig"} <= definitions.keys()
    assert definitions["TextDataConfig"]["properties"]["sequence_length"]["unit"] == "tokens"
