import numpy as np
import pytest

from deepseek.datasets.token_masking import TokenMasking

VOCABULARY = 1000
KINDS = ["tokens", "words", "spans"]
CONTINUES = np.arange(VOCABULARY) % 3 == 2


def hide(kind, count=20_000):
    continues = None if kind == "tokens" else CONTINUES
    masking = TokenMasking(4, np.arange(5, VOCABULARY), continues, in_spans=kind == "spans")
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, count)
    return tokens, *masking.hide(tokens, (1, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_those_of_the_paper(kind):
    tokens, inputs, targets = hide(kind)
    chosen = targets != -100
    assert abs(chosen.mean() - 0.15) < 0.001
    assert np.array_equal(inputs[~chosen], tokens[~chosen])
    assert np.array_equal(targets[chosen], tokens[chosen])
    is_masked, is_same = inputs[chosen] == 4, inputs[chosen] == tokens[chosen]
    assert abs(is_masked.mean() - 0.8) < 0.03
    assert abs(is_same.mean() - 0.1) < 0.03
    assert inputs[chosen][~is_masked].min() >= 5


def test_a_word_is_hidden_with_all_its_tokens():
    tokens, _, targets = hide("words")
    chosen = targets != -100
    word = np.cumsum(~CONTINUES[tokens])
    both = np.bincount(word, chosen)
    sizes = np.bincount(word)
    assert set(np.unique(both / np.maximum(sizes, 1))) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_even_the_shortest_text_has_a_target(kind, count):
    _, _, targets = hide(kind, count)
    assert (targets != -100).any()


def test_a_span_shares_its_fate():
    _, inputs, targets = hide("spans")
    chosen = targets != -100
    starts = np.flatnonzero(np.diff(chosen.astype(int), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(chosen.astype(int), append=0) == -1) + 1
    lengths = ends - starts
    assert lengths.mean() > 3  # words of 1.5 tokens, spans of 3.8 words; some are cut short
    is_masked = [inputs[a:b] == 4 for a, b in zip(starts, ends, strict=True)]
    same = np.mean([part.all() or not part.any() for part in is_masked])
    assert same > 0.9  # neighbours may touch


def test_special_tokens_are_never_chosen():
    masking = TokenMasking(4, np.arange(5, VOCABULARY), CONTINUES, special_tokens=np.array([7, 8]))
    tokens = np.random.default_rng(0).integers(5, 12, 5_000)
    _, targets = masking.hide(tokens, (1,))
    assert not np.isin(targets, [7, 8]).any()
    nothing = np.full(4, 7)
    assert (masking.hide(nothing, (1,))[1] == -100).all()
