import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deepseek.datasets import DataLoader, DataSpec, TextDataset, train_tokenizer
from deepseek.datasets.cache_folder import cache_folder
from deepseek.errors import CheckpointError, ConfigError, DataError

SENTENCES = [
    "the cat sat on the mat " * (1 + number % 7) + f"number {number}" for number in range(60)
]
LABELS = ["even" if number % 2 == 0 else "odd" for number in range(60)]
WORDPIECE = train_tokenizer(SENTENCES, "wordpiece", 120)
BPE = train_tokenizer(SENTENCES, "bpe", 300)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [f"{text},{label}" for text, label in zip(SENTENCES, LABELS, strict=True)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(SENTENCES) + "\n")
    return path


def classified(table, **options):
    options = {"tokenizer": WORDPIECE, "sequence_length": 32, "cache": "off", **options}
    return TextDataset(table, "sequence_classification", **options)


def masked(lines, **options):
    options = {"tokenizer": WORDPIECE, "sequence_length": 24, "cache": "off", **options}
    return TextDataset(lines, "masked_language_modelling", **options)


# -- language modelling ----------------------------------------------------------------------


def test_the_target_of_a_token_is_the_next_and_text_comes_back(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 5)
    data = TextDataset(
        tmp_path / "a.txt", tokenizer="characters", sequence_length=7, random_offset=False,
        cache="off",
    )  # fmt: skip
    assert len(data) == 7
    assert data[1]["inputs"].tolist() == [7, 8, 9, 0, 1, 2, 3]
    assert data[1]["targets"].tolist() == [8, 9, 0, 1, 2, 3, 4]
    assert data.text(1) == "hijabcd"
    assert data.spec.class_names == tuple("abcdefghij")
    assert data.spec.class_counts == (5,) * 10


def test_offsets_differ_by_epoch_and_are_none_in_evaluation(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 50)
    data = TextDataset(tmp_path / "a.txt", tokenizer="characters", sequence_length=7, cache="off")
    firsts = {int(data.get_batch([0], epoch)[0]["inputs"][0, 0]) for epoch in range(20)}
    assert len(firsts) > 3
    last = data.get_batch([len(data) - 1], 3)[0]
    assert last["targets"].shape == (1, 7)
    view = data.evaluation_view()
    assert [int(view.get_batch([0], epoch)[0]["inputs"][0, 0]) for epoch in range(5)] == [0] * 5


def test_the_end_of_the_text_is_for_validation(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 90 + "b" * 10)
    data = TextDataset(tmp_path / "a.txt", tokenizer="characters", sequence_length=4, cache="off")
    train, val = data.split(0.1)
    assert train.spec.class_counts == (90, 0)
    assert val.spec.class_counts == (0, 10)
    with pytest.raises(DataError, match="1 tokens do not fill one sequence of 4"):
        data.split(0.01)


def test_a_document_begins_with_its_token(lines):
    data = TextDataset(
        lines, tokenizer=BPE, sequence_length=16, document_per="line",
        attend_across_documents=False, random_offset=False, cache="off",
    )  # fmt: skip
    token = BPE.document_token
    assert data.spec.document_token == token
    row = torch.cat([data[i]["inputs"] for i in range(len(data))])
    begins = (row == token).nonzero().flatten().tolist()
    documents = [BPE.decode(row[a + 1 : b]) for a, b in itertools.pairwise(begins)]
    assert documents == SENTENCES[: len(documents)]
    assert len(documents) > 55


# -- classification --------------------------------------------------------------------------


@pytest.mark.parametrize(("has_gpu", "multiple"), [(True, 8), (False, 2)])
def test_texts_have_their_class_and_are_padded_to_a_multiple(table, monkeypatch, has_gpu, multiple):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    data = classified(table)
    assert data.class_names == ("even", "odd")
    assert data.spec.class_counts == (30, 30)
    assert data.spec.pad_token == WORDPIECE.pad_token
    batch, _ = data.get_batch([0, 1, 2], 0)
    assert batch["targets"].tolist() == [0, 1, 0]
    # 64 tokens or fewer
    assert batch["inputs"].shape[1] == -(-data.lengths[:3].max() // multiple) * multiple
    for row, length in zip(batch["inputs"], data.lengths, strict=False):
        assert (row[:length] != 0).all()
        assert (row[length:] == 0).all()
        assert row[0] == 2
        assert row[length - 1] == 3


def test_a_text_that_is_too_long_loses_its_end_and_keeps_its_frame(table):
    data = classified(table, sequence_length=9)
    row = data.get_batch([6], 0)[0]["inputs"][0]
    whole = classified(table, sequence_length=200).get_batch([6], 0)[0]["inputs"][0]
    assert row.tolist() == [*whole[:8].tolist(), 3]


def test_padding_to_the_sequence_length_gives_one_shape(table):
    data = classified(table, padding="sequence_length")
    assert data.lengths is None
    shapes = {tuple(batch["inputs"].shape) for batch in DataLoader(data, batch_size=20)}
    assert shapes == {(20, 32)}


def test_batches_of_similar_length_have_less_padding_and_lose_nothing(table):
    data = classified(table, sequence_length=64)
    sorted_, plain = (
        list(DataLoader(each, batch_size=8, seed=3))
        for each in (data, classified(table, sequence_length=64, padding="sequence_length"))
    )
    in_order = list(DataLoader(data, batch_size=8, shuffle=False))
    for batches in (sorted_, plain, in_order):
        assert sorted(i for b in batches for i in b["index"].tolist()) == list(range(60))
    sizes = [sum(b["inputs"].numel() for b in batches) for batches in (sorted_, in_order, plain)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.75 * sizes[1]


@pytest.mark.parametrize("task", ["sequence_classification", "masked_language_modelling"])
def test_order_and_samples_resume_exactly_with_any_workers(task, table, lines):
    data = classified(table) if task == "sequence_classification" else masked(lines)
    whole = DataLoader(data, batch_size=7, seed=5)
    epochs = [list(whole), list(whole)]
    again = DataLoader(data, batch_size=7, seed=5, num_workers=1)
    again.load_state_dict({"epoch": 1, "position": 21})
    for batch, expected in zip(again, epochs[1][3:], strict=True):
        for name, value in expected.items():
            assert torch.equal(batch[name], value), name
    again.close()
    assert not torch.equal(epochs[0][0]["index"], epochs[1][0]["index"])


def test_ranks_share_each_batch(table):
    data = classified(table)
    loaders = [DataLoader(data, batch_size=6, seed=1) for _ in range(3)]
    for part, loader in enumerate(loaders[1:]):
        loader.take_share(part, 2)
    for whole, first, second in zip(*loaders, strict=True):
        both = torch.cat([first["index"], second["index"]])
        assert torch.equal(whole["index"], both)


def test_a_split_takes_the_same_share_of_every_class(table):
    train, val = classified(table, sequence_length=200).split(0.2)
    assert val.spec.class_counts == (6, 6)
    assert train.spec.class_counts == (24, 24)
    texts = {train.text(i) for i in range(len(train))} & {val.text(i) for i in range(len(val))}
    assert not texts


def test_labels_that_fit_no_class_are_refused(table):
    with pytest.raises(DataError, match="label 'odd' is none of the 2 classes even, odds"):
        classified(table, class_names=["even", "odds"])


@pytest.mark.parametrize("class_names", [None, ["even", "odd"]])
def test_a_text_whose_label_is_null_is_named(class_names, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "the cat", "label": "odd"}\n{"text": "a mat", "label": null}\n')
    for _ in range(2):  # what is refused is not in the cache
        with pytest.raises(DataError, match=r"rows\.jsonl, text 2: the label is empty"):
            classified(path, class_names=class_names, cache=tmp_path / "cache")


# -- masked language modelling ---------------------------------------------------------------


def test_hidden_tokens_are_the_targets_and_nothing_else(lines):
    data = masked(lines)
    batch, _ = data.get_batch(list(range(len(data))), 0)
    shown, targets = batch["inputs"], batch["targets"]
    is_target = targets != -100
    assert is_target.any(1).all()
    special = torch.tensor(WORDPIECE.special_tokens)
    assert not torch.isin(targets[is_target], special).any()
    whole = torch.where(is_target, targets, shown)
    lengths = data.lengths
    for number, row in enumerate(whole[:20]):
        assert row[1 : int(lengths[number]) - 1].tolist() == data._samples.tokens(number).tolist()


def test_a_long_text_is_cut_and_none_of_it_is_lost(lines):
    data = masked(lines)
    pieces = np.concatenate([data._samples.tokens(number) for number in range(len(data))])
    assert np.array_equal(pieces, data._store.tokens)
    assert data.lengths.max() == 24


def test_other_tokens_are_hidden_in_each_epoch_but_not_in_evaluation(lines):
    data = masked(lines)
    targets = [data.get_batch([4], epoch)[0]["targets"] for epoch in (0, 1, 0)]
    assert torch.equal(targets[0], targets[2])
    assert not torch.equal(targets[0], targets[1])
    view = data.evaluation_view()
    fixed = [view.get_batch([4], epoch)[0]["targets"] for epoch in (0, 1)]
    assert torch.equal(*fixed)


# -- token classification --------------------------------------------------------------------


def test_the_first_token_of_a_word_has_its_label(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("the O\nnumbers B-NUM\n17 I-NUM\n\ncat O\n\n" * 5)
    data = TextDataset(
        path, "token_classification", tokenizer=WORDPIECE, sequence_length=16, cache="off"
    )
    assert data.class_names == ("B-NUM", "I-NUM", "O")
    batch, _ = data.get_batch([0, 1], 0)
    assert batch["inputs"].shape == batch["targets"].shape
    kept = [row[row != -100].tolist() for row in batch["targets"]]
    assert kept == [[2, 0, 1], [2]]
    assert batch["targets"][0, 0] == -100
    assert data.spec.class_counts == (5, 5, 10)


def write_labelled(path, column, labels, names):
    kind = {"_type": "ClassLabel", "names": names}
    feature = kind if isinstance(labels[0], int) else {"feature": kind, "_type": "Sequence"}
    text = "tokens" if column == "ner_tags" else "text"
    texts = [["the", "cat"] if text == "tokens" else "the cat"] * len(labels)
    metadata = {"huggingface": json.dumps({"info": {"features": {column: feature}}})}
    table = pa.table({text: texts, column: labels})
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_class_label_numbers_count_in_their_own_names(tmp_path):
    write_labelled(tmp_path / "a.parquet", "label", [0, 1, 2], ["1", "10", "2"])
    data = classified(tmp_path / "a.parquet")
    assert data.class_names == ("1", "10", "2")
    assert data.get_batch([0, 1, 2], 0)[0]["targets"].tolist() == [0, 1, 2]
    data = classified(tmp_path / "a.parquet", class_names=["2", "1", "10"])
    assert data.get_batch([0, 1, 2], 0)[0]["targets"].tolist() == [1, 2, 0]
    write_labelled(tmp_path / "b.parquet", "ner_tags", [[1, 0], [0, 1]], ["1", "0"])
    data = TextDataset(
        tmp_path / "b.parquet", "token_classification", tokenizer=WORDPIECE, sequence_length=16,
        cache="off",
    )  # fmt: skip
    targets = data.get_batch([0, 1], 0)[0]["targets"]
    assert [row[row != -100].tolist() for row in targets] == [[1, 0], [0, 1]]


# -- cache, spec, errors ---------------------------------------------------------------------


def test_cached_tokens_are_those_made_anew(table, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    made = classified(table, cache=folder)
    files = sorted(folder.rglob("*.bin"))
    stamps = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 3
    again = classified(table, cache=folder)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    for other in (again, classified(table)):
        for index in range(len(made)):
            assert torch.equal(made[index]["inputs"], other[index]["inputs"])
    files[0].write_bytes(b"")
    assert len(classified(table, cache=folder)) == 60
    table.write_text("text,label\nnew,even\nold,odd\n")
    assert len(classified(table, cache=folder)) == 2
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "other"))
    assert cache_folder("auto", "tokens") == tmp_path / "other" / "tokens"


def test_a_text_moved_to_another_class_folder_has_its_new_label_despite_the_cache(tmp_path):
    place = tmp_path / "reviews"
    for folder, name in (("neg", "a"), ("neg", "b"), ("pos", "c")):
        (place / folder).mkdir(parents=True, exist_ok=True)
        (place / folder / f"{name}.txt").write_text(f"number {name}")

    def labels():
        data = classified(place, cache=tmp_path / "cache")
        return [data.class_names[number] for number in data.targets]

    assert labels() == ["neg", "neg", "pos"]
    (place / "neg" / "b.txt").rename(place / "pos" / "b.txt")
    assert labels() == ["neg", "pos", "pos"]
    (place / "pos").rename(place / "praise")
    assert labels() == ["neg", "praise", "praise"]


def test_a_folder_that_cannot_be_written_is_a_warning(table, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="tokens are not cached"):
        data = classified(table, cache=tmp_path / "file" / "cache")
    assert len(data) == 60


def test_the_spec_carries_the_tokenizer_and_old_specs_are_read(table):
    spec = classified(table).spec
    assert DataSpec.from_json(spec.to_json()) == spec
    assert spec.tokenizer == WORDPIECE.to_json()
    old = {k: v for k, v in spec.to_json().items() if k not in ("tokenizer", "pad_token")}
    assert DataSpec.from_json(old).tokenizer is None
    with pytest.raises(CheckpointError, match="pad_token='0'"):
        DataSpec.from_json({**spec.to_json(), "pad_token": "0"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sequence_clasification"}, "is not known for text"),
        ({"sequence_length": 0}, "sequence_length=0 is not >= 1"),
        ({"document_per": "page"}, "document_per='page' is none of"),
        ({"padding": "none"}, "padding='none'"),
        ({"masking": "words"}, "masking='words' would be ignored"),
        ({"masking": "letters"}, "masking='letters' is none of tokens, words, spans"),
        ({"mask_share": 1.5}, "mask_share=1.5 is not between 0 and 1"),
        ({"packed": True}, "packed=True would be ignored"),
        ({"label_column": "label"}, "label_column='label' would be ignored"),
        ({"task": "masked_language_modelling", "attend_across_documents": False}, "ignored"),
    ],
)
def test_wrong_arguments_are_refused(options, message, lines):
    with pytest.raises(ConfigError, match=message):
        TextDataset(lines, **{"tokenizer": BPE, "cache": "off", **options})


def test_a_tokenizer_without_the_token_that_is_needed_is_refused(lines):
    for task, role in (("masked_language_modelling", "pad"), ("language_modelling", "document")):
        options = {} if role == "pad" else {"attend_across_documents": False}
        characters = TextDataset(lines, tokenizer="characters", cache="off").tokenizer
        with pytest.raises(DataError, match=f"has no {role} token"):
            TextDataset(lines, task, tokenizer=characters, cache="off", **options)


def test_a_loader_reads_text_by_its_format(lines):
    loader = DataLoader(input_format="text", batch_size=4)
    loader.load(lines, tokenizer="characters", sequence_length=16, cache="off")
    assert next(iter(loader))["inputs"].shape == (4, 16)


def test_texts_may_be_given_themselves(tmp_path):
    texts = ["the bank raised its rate", "shares fell", "profit rose by a fifth this year"]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    settings = {"task": "masked_language_modelling", "tokenizer": BPE, "cache": "off"}
    given, read = TextDataset(texts, **settings), TextDataset(tmp_path / "a.txt", **settings)
    assert [given.text(n) for n in range(3)] == [read.text(n) for n in range(3)]
    with pytest.raises(ConfigError, match="texts in memory have no labels"):
        TextDataset(texts, "sequence_classification", tokenizer=BPE)


def test_packed_samples_are_full_and_never_ask_for_the_mark_between_texts():
    texts = [f"number {n} of the texts" for n in range(60)]
    data = TextDataset(
        texts, "masked_language_modelling", tokenizer=BPE, sequence_length=32, packed=True,
        masking="spans", cache="off",
    )  # fmt: skip
    batch, _ = data.get_batch(list(range(len(data))), 0)
    assert batch["inputs"].shape == (len(data), 32)
    asked = batch["targets"][batch["targets"] != -100]
    assert not set(asked.tolist()) & set(data.tokenizer.special_tokens)
    share = len(asked) / batch["targets"].numel()
    assert 0.1 < share < 0.2


def test_a_data_set_takes_another_tokenizer_but_a_part_of_a_split_does_not():
    texts = [f"number {n} of the texts" for n in range(60)]
    data = TextDataset(texts, "masked_language_modelling", tokenizer=BPE, cache="off")
    other = train_tokenizer(texts, "wordpiece", 200)
    changed = data.with_tokenizer(other)
    assert changed.spec.tokenizer == other.to_json()
    assert changed.text(3) == "number 3 of the texts"
    with pytest.raises(ConfigError, match="a part of a split cannot change its tokenizer"):
        data.split(0.2)[0].with_tokenizer(other)
