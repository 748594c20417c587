"""Labelled sentences of finance, in the form in which their authors publish them.

| function | originals | labels |
|---|---|---|
| `read_phrasebank` | Malo et al. 2014, arXiv 1307.5336: `sentence@label`, latin-1 | 3 classes |
| `read_twitter_news` | zeroshot/twitter-financial-news-sentiment: CSV | 3 classes |
| `read_fomc` | Shah et al. 2023, arXiv 2305.07972: `.xlsx` | 3 classes |
| `read_fiqa` | Maia et al. 2018 (FiQA task 1): JSON | a score in -1..1 |

Several of them are for research or not for commerce: `Sentences.licence` says what their page says.
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from deepseek.datasets.text_file import check_pairs
from deepseek.datasets.text_numbers import read_number
from deepseek.errors import ConfigError, DataError
from deepseek.finance.spreadsheet import read_spreadsheet

AGREEMENTS = ("50", "66", "75", "All")
SENTIMENTS = ("negative", "neutral", "positive")
TWITTER = ("bearish", "bullish", "neutral")
STANCES = ("dovish", "hawkish", "neutral")


@dataclass(frozen=True)
class Sentences:
    """Texts with a class or a number each.

    Attributes:
        texts: N texts.
        labels: N numbers of classes, or N scores.
        class_names: of class 0, 1, ...; empty where labels are scores.
        licence: of the data, as published.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] | tuple[float, ...]
    class_names: tuple[str, ...]
    licence: str

    def __len__(self) -> int:
        return len(self.texts)

    def save(self, path: str | Path) -> Path:
        """Write a `.jsonl` file that `TextDataset` reads, and return its path.

        Its columns are `text` and `label`, the name of the class or the score.
        """
        path = Path(path)
        names = self.class_names
        labels = [names[int(label)] for label in self.labels] if names else self.labels
        with path.open("w", encoding="utf-8") as file:
            for text, label in zip(self.texts, labels, strict=True):
                file.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
        return path


def read_phrasebank(path: str | Path, agreement: str = "All") -> Sentences:
    """Return the Financial PhraseBank.

    Args:
        path: a file such as `Sentences_AllAgree.txt`, or the folder of the four.
        agreement: which of the four: per cent of the annotators that agreed at least, "50", "66",
            "75" or "All".

    Raises:
        ConfigError: there is no such agreement.
        DataError: the file cannot be read, or a line has no label.
    """
    if agreement not in AGREEMENTS:
        raise ConfigError(
            f"agreement={agreement!r} is not of the PhraseBank",
            fix=f"give one of {', '.join(AGREEMENTS)}",
        )
    file = Path(path)
    if file.is_dir():
        file = file / f"Sentences_{agreement}Agree.txt"
    texts, labels = [], []
    for number, line in enumerate(_read(file, "latin-1").splitlines(), 1):
        if not line.strip():
            continue
        text, _, label = line.rpartition("@")
        if label.strip() not in SENTIMENTS or not text:
            raise DataError(
                f"{file}:{number} ends with {label[:30]!r}, not with a label",
                fix="give the original file: sentence@positive, @neutral or @negative",
            )
        texts.append(text.strip())
        labels.append(SENTIMENTS.index(label.strip()))
    return Sentences(tuple(texts), tuple(labels), SENTIMENTS, "CC BY-NC-SA 3.0")


def read_twitter_news(path: str | Path) -> Sentences:
    """Return a file of the Twitter financial news: `sent_train.csv` or `sent_valid.csv`.

    Raises:
        DataError: the file cannot be read, or is another.
    """
    file = Path(path)
    rows = list(csv.DictReader(io.StringIO(_read(file, "utf-8"), newline="")))
    if not rows or not {"text", "label"} <= rows[0].keys():
        raise DataError(f"{file} has no columns text and label", fix="give sent_train.csv")
    labels = [_class_number(file, row["label"], len(TWITTER)) for row in rows]
    return Sentences(tuple(row["text"] for row in rows), tuple(labels), TWITTER, "MIT")


def read_fomc(path: str | Path) -> Sentences:
    """Return a file of the FOMC sentences, such as `lab-manual-combine-train-5768.xlsx`.

    Raises:
        DataError: the file cannot be read, or is another.
    """
    file = Path(path)
    head, *rows = read_spreadsheet(file) or [[]]
    if not {"sentence", "label"} <= set(head):
        raise DataError(
            f"{file} has the columns {', '.join(head)[:80]}, not sentence and label",
            fix="give a file of training_data or test_data",
        )
    text, label = head.index("sentence"), head.index("label")
    labels = [_class_number(file, row[label], len(STANCES)) for row in rows]
    return Sentences(tuple(row[text] for row in rows), tuple(labels), STANCES, "CC BY-NC 4.0")


def read_fiqa(*paths: str | Path) -> Sentences:
    """Return sentences of FiQA's task 1 with the mean score of their aspects.

    Args:
        *paths: `task1_headline_ABSA_train.json`, `task1_post_ABSA_train.json`, ...

    Raises:
        DataError: a file cannot be read, or is another.
    """
    texts, scores = [], []
    for path in paths:
        try:
            entries = json.loads(_read(Path(path), "utf-8"))
            for entry in entries.values():
                found = [read_number(info["sentiment_score"]) for info in entry["info"]]
                check_pairs(entry["sentence"], f"{path}: a sentence")
                texts.append(entry["sentence"])
                scores.append(sum(found) / len(found))
        except DataError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise DataError(
                f"{path} is no file of FiQA's task 1: {error}",
                fix="give task1_headline_ABSA_train.json or a like",
            ) from error
    return Sentences(tuple(texts), tuple(scores), (), "research use")


def _class_number(file: Path, value: str, count: int) -> int:
    if value not in map(str, range(count)):
        raise DataError(
            f"{file} has the label {value[:30]!r}", fix=f"labels are 0 to {count - 1} there"
        )
    return int(value)


def _read(file: Path, encoding: str) -> str:
    try:
        return file.read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}", fix="check the path") from error
