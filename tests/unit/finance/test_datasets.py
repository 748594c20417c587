"""Sentences of finance, from files as their authors publish them."""

import json
import zipfile

import pytest

from deepseek.datasets import TextDataset
from deepseek.errors import ConfigError, DataError
from deepseek.finance.datasets import read_fiqa, read_fomc, read_phrasebank, read_twitter_news
from deepseek.finance.spreadsheet import read_spreadsheet
from deepseek.finance.tickers import find_tickers

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def write_sheet(path, rows, shared=()):
    cells = []
    for at, row in enumerate(rows, 1):
        inner = ""
        for letter, value in zip("ABCD", row, strict=False):
            if isinstance(value, int):
                inner += f'<c r="{letter}{at}" t="n"><v>{value}</v></c>'
            elif value in shared:
                inner += f'<c r="{letter}{at}" t="s"><v>{shared.index(value)}</v></c>'
            else:
                inner += f'<c r="{letter}{at}" t="inlineStr"><is><t>{value}</t></is></c>'
        cells.append(f'<row r="{at}">{inner}</row>')
    with zipfile.ZipFile(path, "w") as archive:
        sheet = f'<worksheet xmlns="{MAIN}"><sheetData>{"".join(cells)}</sheetData></worksheet>'
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
        texts = "".join(f"<si><t>{text}</t></si>" for text in shared)
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{MAIN}">{texts}</sst>')
    return path


def test_phrasebank_is_read_in_latin_1_and_by_the_last_at_sign(tmp_path):
    lines = "Elcoteq sold Malm\xf6 @ home .@positive\nNothing .@neutral\n"
    (tmp_path / "Sentences_66Agree.txt").write_bytes(lines.encode("latin-1"))
    found = read_phrasebank(tmp_path, "66")
    assert found.texts == ("Elcoteq sold Malm\xf6 @ home .", "Nothing .")
    assert found.labels == (2, 1)
    assert found.class_names == ("negative", "neutral", "positive")
    data = TextDataset(
        found.save(tmp_path / "pb.jsonl"), "sequence_classification", tokenizer="wordpiece",
        vocab_size=60, class_names=found.class_names, cache="off",
    )  # fmt: skip
    assert data.spec.class_counts == (0, 1, 1)
    with pytest.raises(ConfigError, match="give one of 50, 66, 75, All"):
        read_phrasebank(tmp_path, "80")
    (tmp_path / "bad.txt").write_text("fine .@neutral\nno label\n")
    with pytest.raises(DataError, match=r"bad\.txt:2 ends with 'no label'"):
        read_phrasebank(tmp_path / "bad.txt")


def test_twitter_news_is_read_with_its_quotes(tmp_path):
    (tmp_path / "t.csv").write_text('text,label\n"$CX - Cemex, cut",0\n$A up,1\n')
    found = read_twitter_news(tmp_path / "t.csv")
    assert found.texts == ("$CX - Cemex, cut", "$A up")
    assert found.labels == (0, 1)
    (tmp_path / "t.csv").write_text("text,label\nx,7\n")
    with pytest.raises(DataError, match="label '7'"):
        read_twitter_news(tmp_path / "t.csv")


def test_a_sentence_of_fiqa_has_the_mean_score_of_its_aspects(tmp_path):
    info = [{"sentiment_score": "0.5"}, {"sentiment_score": "-0.1"}]
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"3": {"sentence": "Tesco up", "info": info}}))
    found = read_fiqa(path)
    assert found.texts == ("Tesco up",)
    assert found.labels == pytest.approx((0.2,))
    path.write_text('{"3": {"sentence": "x", "info": []}}')
    with pytest.raises(DataError, match="no file of FiQA"):
        read_fiqa(path)
    for sentence, score, why in (("\ud83d", "1", "half of a surrogate"), ("x", "1_0", "1_0")):
        found = {"sentence": sentence, "info": [{"sentiment_score": score}]}
        path.write_text(json.dumps({"3": found}))
        with pytest.raises(DataError, match=rf"f\.json.*{why}"):
            read_fiqa(path)


def test_fomc_is_read_from_a_spreadsheet_with_own_and_shared_texts(tmp_path):
    rows = [["index", "sentence", "year", "label"], [4, "Rates rise", 1998, 1], [5, "Hm", 2001, 2]]
    found = read_fomc(write_sheet(tmp_path / "f.xlsx", rows, shared=("Hm", "label")))
    assert found.texts == ("Rates rise", "Hm")
    assert found.labels == (1, 2)


def test_a_spreadsheet_of_a_stranger_cannot_expand(tmp_path):
    path = write_sheet(tmp_path / "f.xlsx", [["a"]])
    with zipfile.ZipFile(path, "w") as archive:
        bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><worksheet/>'
        archive.writestr("xl/worksheets/sheet1.xml", bomb)
    with pytest.raises(DataError, match="defines entities"):
        read_spreadsheet(path)
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"no \.xlsx"):
        read_spreadsheet(path)


@pytest.mark.parametrize(
    ("text", "tickers"),
    [
        ("$TSLA and $brk.b rise, $5 does not, US$3 neither", ["TSLA", "BRK.B"]),
        ("Oracle (NYSE: ORCL), NASDAQ:AAPL; HKEX: 0700", ["ORCL", "AAPL", "0700"]),
        ("no ticker: $ A, $$AB, PANYSE: X", []),
    ],
)
def test_tickers(text, tickers):
    found = find_tickers(text)
    assert [each["ticker"] for each in found] == tickers
    assert all(text[each["start"] : each["end"]] == each["text"] for each in found)
