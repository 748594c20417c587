"""Two sentences in a sample, and numbers as labels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from deepseek.cli.build_multi import build_multi_evaluation
from deepseek.cli.build_text import build_text_evaluation
from deepseek.config import TextDataConfig, validate_settings
from deepseek.datasets import DataSpec, JointDataset, MultiTaskDataset, TextDataset
from deepseek.datasets.text_samples import cut_pair
from deepseek.errors import ConfigError, DataError
from deepseek.models import Encoder, ModelEngine
from deepseek.trainer import RegressionTask, Trainer

ROWS = [
    {"first": f"alpha beta number {n}", "second": f"gamma {n % 3}", "score": n / 10}
    for n in range(30)
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "pairs.csv"
    lines = ["first,second,score", *(f"{r['first']},{r['second']},{r['score']}" for r in ROWS)]
    path.write_text("\n".join(lines))
    return path


def pairs(path, length=32, **options):
    columns = {"text_column": "first", "pair_column": "second", "label_column": "score"}
    given = {"tokenizer": "wordpiece", "cache": "off", **columns, **options}
    return TextDataset(path, "sequence_regression", sequence_length=length, **given)


def test_a_sample_is_both_sentences_with_a_separator_between(table):
    data = pairs(table)
    separator = data.spec.separator_token
    tokenizer = data.tokenizer
    classify = tokenizer.frame[0][0]
    inputs = data[4]["inputs"]
    first, second = tokenizer.encode([ROWS[4]["first"], ROWS[4]["second"]], is_whole=False)
    expected = [classify, *first, separator, *second, separator]
    assert inputs[: len(expected)].tolist() == expected
    assert (inputs[len(expected) :] == data.spec.pad_token).all()
    assert data[4]["targets"].dtype == torch.float32
    assert float(data[4]["targets"]) == pytest.approx(0.4)
    assert data.spec.class_names == ()
    assert {"alpha", "gamma"} <= set(data.text(4).split())


def test_a_model_of_pairs_is_not_evaluated_on_single_texts(table):
    spec = pairs(table).spec
    columns = ["text_column=first", "label_column=score", "cache=off"]
    with pytest.raises(ConfigError, match="of two sentences, and pair_column"):
        build_text_evaluation(spec, str(table), columns)
    both = build_text_evaluation(spec, str(table), [*columns, "pair_column=second"])
    assert both.spec.separator_token == spec.separator_token
    single = replace(spec, separator_token=None)
    assert len(build_text_evaluation(single, str(table), columns)) == len(ROWS)


def test_of_several_tasks_only_those_of_pairs_need_a_second_column(table):
    data = pairs(table)
    single = pairs(table, tokenizer=data.tokenizer, pair_column=None)
    spec = MultiTaskDataset({"both": data, "one": single}).spec
    assert DataSpec.from_json(spec.to_json()) == spec
    columns = ["text_column=first", "label_column=score", "cache=off"]

    def build(spec, *settings):
        def build_one(alone, given):
            return build_text_evaluation(alone, str(table), given)

        return build_multi_evaluation(spec, [*columns, *settings], build_one)

    assert len(build(spec, "task=one")) == len(ROWS)
    with pytest.raises(ConfigError, match="pair_column"):
        build(spec, "task=both")
    assert len(build(spec, "task=both", "pair_column=second")) == len(ROWS)
    joint = JointDataset(data, {"size": [0.5] * len(ROWS)}, own="both")
    with pytest.raises(ConfigError, match="pair_column"):
        build(joint.spec, "task=both")


@pytest.mark.parametrize(
    ("first", "second", "room", "kept"),
    [(6, 2, 7, (4, 2)), (2, 6, 7, (2, 4)), (6, 6, 7, (3, 3)), (6, 6, 8, (4, 3)), (2, 2, 9, (2, 2))],
)
def test_the_longer_sentence_loses_its_end(first, second, room, kept):
    tokens = np.array([*range(10, 10 + first), 3, *range(20, 20 + second)])
    found = cut_pair(tokens, 3, room).tolist()
    assert found == [*range(10, 10 + kept[0]), 3, *range(20, 20 + kept[1])]


def test_numbers_may_be_missing_and_must_be_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b", "label": 1.5}\n{"text": "c d", "label": null}\n')
    data = TextDataset(
        path, "sequence_regression", tokenizer="wordpiece", sequence_length=16, cache=tmp_path / "c"
    )
    again = TextDataset(
        path, "sequence_regression", tokenizer=data.tokenizer, sequence_length=16,
        cache=tmp_path / "c",
    )  # fmt: skip
    for each in (data, again):  # the second from the cache
        assert float(each[0]["targets"]) == 1.5
        assert math.isnan(float(each[1]["targets"]))
    for wrong in ("much", "1_0"):
        path.write_text(f'{{"text": "a b", "label": "{wrong}"}}\n')
        with pytest.raises(DataError, match=f"the label '{wrong}' is not a number"):
            TextDataset(path, "sequence_regression", tokenizer=data.tokenizer, cache="off")


def test_an_encoder_learns_numbers_of_pairs_and_says_them(table, tmp_path):
    train, val = pairs(table).split(0.3)
    torch.manual_seed(0)
    encoder = Encoder(vocab_size=8192, context_length=32, num_layers=1, dim=16, heads=2)
    trainer = Trainer(
        encoder, train, val, batch_size=8, epochs=2, run_dir=tmp_path / "run", loggers=("jsonl",)
    )
    assert isinstance(trainer.task, RegressionTask)
    assert {"val_mae", "val_r2"} <= trainer.fit().records[-1].keys()
    model = ModelEngine.load(trainer.folder.model)
    assert model.module.config["type_separator"] == train.spec.separator_token
    one, two = model.predict([("alpha beta", "gamma 1"), "alpha beta"])
    assert isinstance(one, float)
    assert one == pytest.approx(model.predict(("alpha beta", "gamma 1")), abs=1e-6)
    assert one != two


def test_what_has_no_second_sentence_is_refused(tmp_path, table):
    text = tmp_path / "a.txt"
    text.write_text("a@1\nb@2\n")
    with pytest.raises(DataError, match="has no columns"):
        TextDataset(
            text, "sequence_regression", tokenizer="wordpiece", pair_column="b",
            label_separator="@", cache="off",
        )  # fmt: skip
    with pytest.raises(ConfigError, match="pair_column='b' would be ignored by language_modelling"):
        TextDataset(text, tokenizer="characters", pair_column="b")
    with pytest.raises(ConfigError, match="would be ignored by sequence_reg"):
        pairs(table, class_names=["a"])
    with pytest.raises(DataError, match="third"):
        pairs(table, pair_column="third")
    with pytest.raises(DataError, match="puts no token behind a text"):
        pairs(table, tokenizer="characters")


def test_settings_have_both():
    given = {"train": "a.csv", "tokenizer": "wordpiece", "task": "sequence_regression"}
    config = validate_settings(TextDataConfig, {**given, "format": "text", "pair_column": "b"})
    assert (config.task, config.pair_column) == ("sequence_regression", "b")
