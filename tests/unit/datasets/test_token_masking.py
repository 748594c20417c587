import numpy as np
import pytest

from deepseek.datasets.token_masking import TokenMasking

VOCABULARY = 1000
CONTINUES = np.arange(VOCABULARY) % 3 == 2


def hide(whole_words, count=20_000):
    masking = TokenMasking(4, np.arange(5, VOCABULARY), CONTINUES if whole_words else None)
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, count)
    return tokens, *masking.hide(tokens, (1, 2, 3))


@pytest.mark.parametrize("whole_words", [False, True])
def test_shares_are_those_of_the_paper(whole_words):
    tokens, inputs, targets = hide(whole_words)
    chosen = targets != -100
    assert abs(chosen.mean() - 0.15) < 0.001
    assert np.array_equal(inputs[~chosen], tokens[~chosen])
    assert np.array_equal(targets[chosen], tokens[chosen])
    is_masked, is_same = inputs[chosen] == 4, inputs[chosen] == tokens[chosen]
    assert abs(is_masked.mean() - 0.8) < 0.03
    assert abs(is_same.mean() - 0.1) < 0.03
    assert inputs[chosen][~is_masked].min() >= 5


def test_a_word_is_hidden_with_all_its_tokens():
    tokens, _, targets = hide(True)
    chosen = targets != -100
    word = np.cumsum(~CONTINUES[tokens])
    both = np.bincount(word, chosen)
    sizes = np.bincount(word)
    assert set(np.unique(both / np.maximum(sizes, 1))) <= {0.0, 1.0}


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_even_the_shortest_text_has_a_target(whole_words, count):
    _, _, targets = hide(whole_words, count)
    assert (targets != -100).any()
