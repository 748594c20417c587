import numpy as np
import pytest

from deepseek.datasets import train_tokenizer
from deepseek.datasets.tokenizer_growth import grow_tokenizer
from deepseek.errors import DataError
from deepseek.finance.token_rows import (
    mean_of_parts,
    read_vectors,
    similar_tokens,
    sparsemax,
)

LETTERS = "zabcdefghijklmnopqrstuvwxyz"
OLD = train_tokenizer(["bank profit"] * 9 + [LETTERS, " ".join(LETTERS)], "wordpiece", 120)


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    np.testing.assert_allclose(sparsemax(np.array([1.0, 0.6, 0.0])), [0.7, 0.3, 0.0])
    np.testing.assert_allclose(sparsemax(np.array([3.0, 0.0])), [1.0, 0.0])
    np.testing.assert_allclose(sparsemax(np.zeros(4)), np.full(4, 0.25))


def test_a_part_that_is_new_itself_counts_as_its_own_parts():
    assert mean_of_parts({10: (1, 2), 11: (10, 3)}) == {
        10: {1: 0.5, 2: 0.5}, 11: {1: 0.25, 2: 0.25, 3: 0.5},
    }  # fmt: skip


def test_a_term_is_the_sum_of_the_tokens_whose_words_are_similar(tmp_path):
    (tmp_path / "v.txt").write_text("4 2\nbank 1 0\nprofit 0 1\nlender 0.9 0.1\nother 1 1\n")
    words = {"bank", "profit", "lender"}
    vectors = read_vectors(tmp_path / "v.txt", words)
    assert set(vectors) == words
    growth = grow_tokenizer(OLD, ["lender", "tsla"])
    sums = similar_tokens(growth.added, OLD, growth.tokenizer, vectors)
    vocabulary = growth.tokenizer.vocabulary
    named = {vocabulary[n]: {vocabulary[k]: v for k, v in s.items()} for n, s in sums.items()}
    assert named["lender"]["bank"] > 0.9
    assert sum(named["lender"].values()) == pytest.approx(1)
    assert named["tsla"] == {"t": 0.25, "##s": 0.25, "##l": 0.25, "##a": 0.25}  # not in the file


def test_word_vectors_may_be_of_words_with_blanks(tmp_path):
    # as in GloVe's file of 840 billion words
    lines = ["bank 1 0", ". . . 0.5 0.5", "at name@domain.com 2 3", "lender 0 1"]
    (tmp_path / "v.txt").write_text("\n".join(lines))
    vectors = read_vectors(tmp_path / "v.txt", {"bank", ". . .", "at name@domain.com", "lender"})
    assert {word: vector.tolist() for word, vector in vectors.items()} == {
        "bank": [1, 0], ". . .": [0.5, 0.5], "at name@domain.com": [2, 3], "lender": [0, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [("a 1 2\nb 1\n", "line 2: 1 numbers, 2 before"), ("a x y\n", "cannot be read as word vec")],
)
def test_a_damaged_file_of_vectors_is_an_error(content, message, tmp_path):
    (tmp_path / "v.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "v.txt", {"a"})
