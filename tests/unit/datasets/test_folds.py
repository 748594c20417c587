"""Folds, and texts that are almost the same."""

import numpy as np
import pytest

from deepseek.datasets.folds import stratified_folds
from deepseek.datasets.near_duplicates import find_near_duplicates, group_pairs
from deepseek.errors import ConfigError

CLASSES = np.array([0] * 13 + [1] * 61 + [2] * 29)


def test_each_fold_has_as_many_of_each_class():
    folds = stratified_folds(CLASSES, 5, seed=3)
    for number in range(3):
        counts = np.bincount(folds[number == CLASSES], minlength=5)
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 1
    assert (folds == stratified_folds(CLASSES, 5, seed=3)).all()
    assert (folds != stratified_folds(CLASSES, 5, seed=4)).any()


def test_groups_stay_together_and_classes_even():
    groups = np.arange(len(CLASSES)) // 2
    folds = stratified_folds(CLASSES, 5, groups=groups)
    for group in np.unique(groups):
        assert len(set(folds[groups == group].tolist())) == 1
    for number in range(3):
        counts = np.bincount(folds[number == CLASSES], minlength=5)
        assert counts.max() - counts.min() <= 3


def test_more_folds_than_samples_are_refused():
    with pytest.raises(ConfigError, match="folds=5 of 3 samples"):
        stratified_folds(np.zeros(3, int), 5)


def test_near_duplicates_are_those_that_a_full_comparison_finds():
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(40)]
    texts = [" ".join(rng.choice(words, 20)) for _ in range(60)]
    texts += [text.upper() + " !" for text in texts[:5]]
    texts += [text + " more" for text in texts[5:10]]

    def pieces(text):
        plain = "".join(c for c in text.lower() if c.isalnum() or c == " ").strip()
        return {plain[at : at + 5] for at in range(len(plain) - 4)}

    want = {
        (a, b)
        for a in range(len(texts))
        for b in range(a + 1, len(texts))
        if len(pieces(texts[a]) & pieces(texts[b])) / len(pieces(texts[a]) | pieces(texts[b]))
        >= 0.8
    }
    found = {(pair.first, pair.second) for pair in find_near_duplicates(texts)}
    assert want == found
    assert {(n, n + 60) for n in range(10)} <= found
    groups = group_pairs(find_near_duplicates(texts), len(texts))
    assert all(groups[a] == groups[b] for a, b in found)
    assert len(np.unique(groups)) == 60


def test_short_and_empty_texts_are_compared_too():
    found = find_near_duplicates(["", "up", "up", "!"])
    assert {(pair.first, pair.second) for pair in found} == {(0, 3), (1, 2)}
