import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepseek.datasets.text_options import TextOptions
from deepseek.datasets.text_source import TextSource
from deepseek.errors import ConfigError, DataError

ROWS = [("good, very good", "pos"), ('bad "news"', "neg"), ("line\nbreak", "pos")]
LABELLED = TextOptions(label_column="label")


def records(path, options=LABELLED):
    return [(record.text, record.label) for record in TextSource(path, options)]


def write(folder, kind):
    path = folder / f"rows{kind}"
    table = pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]})
    if kind == ".jsonl":
        lines = [json.dumps({"text": text, "label": label, "id": 1}) for text, label in ROWS]
        path.write_text("\n".join(lines) + "\n")
    elif kind == ".csv":
        quoted = ['"' + text.replace('"', '""') + f'",{label}' for text, label in ROWS]
        path.write_text("text,label\n" + "\n".join(quoted) + "\n")
    elif kind == ".parquet":
        pq.write_table(table, path)
    else:
        path.mkdir()
        with (
            pa.OSFile(str(path / "data.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
        (path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        (path / "dataset_info.json").write_text('{"features": {}}')
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet", ""])
def test_tables_of_every_kind_hold_the_same_rows(kind, tmp_path):
    path = write(tmp_path, kind)
    assert records(path) == ROWS
    with pytest.raises(DataError, match=r"(?s)no column 'labels'.*did you mean \"label\""):
        records(path, TextOptions(label_column="labels"))
    with pytest.raises(DataError, match=r"(?s)no column 'txt'.*did you mean \"text\""):
        records(path, TextOptions(text_column="txt"))


def test_a_tsv_is_a_line_a_row_and_may_have_no_header(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('say "hi\t1\nno\t0\n')
    assert records(path, TextOptions(0, 1)) == [('say "hi', "1"), ("no", "0")]
    with pytest.raises(DataError, match="line 1 has no column '2'"):
        records(path, TextOptions(0, 2))


def test_documents_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n \nthree\n")
    found = {
        per: [record.text for record in TextSource(path, TextOptions(document_per=per))]
        for per in ("file", "paragraph", "line")
    }
    assert found == {
        "file": ["one\ntwo\n\n \nthree\n"],
        "paragraph": ["one\ntwo", "three"],
        "line": ["one", "two", "three"],
    }
    places = [record.place for record in TextSource(path, TextOptions(document_per="paragraph"))]
    assert [place.rpartition(" ")[2] for place in places] == ["1", "5"]


def test_lines_with_a_label_behind_a_separator(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("me@home is fine@good\ncafé@bad\n".encode("latin-1"))
    options = TextOptions(label_column="label", label_separator="@", encoding="latin-1")
    assert records(path, options) == [("me@home is fine", "good"), ("café", "bad")]
    with pytest.raises(DataError, match=r"byte 24 \(line 2\): 0xe9 is not utf-8"):
        records(path, TextOptions(label_column="label", label_separator="@"))
    with pytest.raises(ConfigError, match="encoding='latin-99' is unknown"):
        records(path, TextOptions(encoding="latin-99"))
    path.write_text("no label\n")
    with pytest.raises(DataError, match="line 1: there is no label_separator='@'"):
        records(path, options)
    with pytest.raises(DataError, match="is text without labels"):
        records(path)


def test_class_folders_and_folders_of_files(tmp_path):
    for label in ("neg", "pos"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.txt").write_text(f"{label} text")
    options = TextOptions(label_column="label", document_per="file")
    source = TextSource(tmp_path, options)
    assert records(tmp_path, options) == [("neg text", "neg"), ("pos text", "pos")]
    assert source.class_names == ("neg", "pos")
    assert source.layout == "class folders of text"
    assert len(records(tmp_path, TextOptions(document_per="file"))) == 2
    assert records(f"{tmp_path}/*/1.txt", TextOptions()) == [("neg text", None), ("pos text", None)]


def test_a_text_beside_class_folders_does_not_hide_them(tmp_path):
    for label in ("neg", "pos"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.txt").write_text(f"{label} text")
        (tmp_path / f"urls_{label}.txt").write_text("http://example.com\n")
    options = TextOptions(label_column="label", document_per="file")
    assert TextSource(tmp_path, options).class_names == ("neg", "pos")
    assert records(tmp_path, options) == [("neg text", "neg"), ("pos text", "pos")]
    # texts alone, or lines that have their label themselves, are those at the top
    assert len(records(tmp_path, TextOptions())) == 2
    lines = TextOptions(label_column="label", label_separator=":")
    assert [label for _, label in records(tmp_path, lines)] == ["//example.com"] * 2
    (tmp_path / "pos" / "1.txt").unlink()  # one folder tells no classes apart
    with pytest.raises(DataError, match="is text without labels"):
        records(tmp_path, options)


def test_conll_has_a_word_a_line(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter B-PER\n")
    options = TextOptions("tokens", "ner_tags", in_words=True)
    assert records(path, options) == [
        (["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"]),
    ]  # fmt: skip
    path.write_text("EU\n")
    with pytest.raises(DataError, match="line 1: 'EU' has a word, and no label"):
        records(path, options)


def test_class_names_of_hugging_face_metadata(tmp_path):
    names = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    features = {"info": {"features": {"text": {}, "label": names}}}
    table = pa.table({"text": ["a"], "label": [1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert TextSource(tmp_path / "a.parquet", LABELLED).class_names == ("neg", "pos")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json\n", "line 1: this is not JSON"),
        ("[1]\n", "is a list, not an object"),
        ('{"text": 3, "label": 1}\n', "text='3' is a int, not a text"),
        ("[" * 100_000 + "\n", "this is not JSON"),
    ],
)
def test_lines_that_are_no_rows_are_named(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        records(tmp_path / "a.jsonl")


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        TextSource(tmp_path / "a.txt", LABELLED)
    with pytest.raises(DataError, match="holds no text"):
        TextSource(tmp_path, LABELLED)
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DataError, match=r"end in \.docx are not read as text"):
        TextSource(tmp_path / "a.docx", LABELLED)
    (tmp_path / "a.csv").write_text("text,label\na,b,c\n")
    with pytest.raises(DataError, match="line 2: 3 cells under 2 column names"):
        records(tmp_path / "a.csv")
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(DataError, match=r"several kinds: \.csv, \.txt"):
        TextSource(tmp_path, LABELLED)


def test_the_hash_is_of_the_content(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = TextSource(tmp_path, LABELLED).content_hash()
    assert TextSource(tmp_path, LABELLED).content_hash() == before
    (tmp_path / "a.txt").write_text("two")
    assert TextSource(tmp_path, LABELLED).content_hash() != before


@pytest.mark.parametrize("wrong", [None, 0, b""])
def test_a_text_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"text 1 is a {type(wrong).__name__}"):
        TextSource(["a", wrong, "b"], TextOptions())


def test_half_of_a_surrogate_pair_is_named(tmp_path):
    with pytest.raises(DataError, match=r"text 1 holds half of a surrogate pair, '\\ud83d'"):
        TextSource(["a", "b \ud83d"], TextOptions())
    rows = [{"text": "a \U0001f600", "label": "x"}, {"text": "a \ud83d", "label": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: the column 'text' holds half of a"):
        records(tmp_path / "a.jsonl")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_files_and_folders_whose_names_are_no_utf8_have_a_hash(tmp_path):
    found = set()
    for name in (b"\xff", b"\xfe"):
        folder = os.fsencode(tmp_path) + b"/in-" + name
        for kind in (b"a", name):
            os.makedirs(folder + b"/" + kind)
            with open(folder + b"/" + kind + b"/" + name + b".txt", "w") as file:
                file.write("text")
        found.add(TextSource(os.fsdecode(folder), LABELLED).content_hash())
    assert len(found) == 2
