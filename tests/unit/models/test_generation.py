"""Generation with a cache is generation without one, whatever else is in the batch."""

import pytest
import tokenizers
import torch
from torch import nn

from deepseek.datasets import Tokenizer, train_tokenizer
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.errors import ConfigError
from deepseek.models import GPT, Llama, ModelEngine
from deepseek.models.generation import Sampling, generate_tokens
from deepseek.models.prompts import INCOMPLETE, Vocabulary

SIZES = {"context_length": 24, "num_layers": 2, "dim": 32, "heads": 4, "num_classes": 11}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
GREEDY = Sampling(temperature=0)


@pytest.fixture(params=["gpt", "llama"])
def model(request):
    torch.manual_seed(0)
    kind = {"gpt": GPT, "llama": lambda **sizes: Llama(kv_heads=2, **sizes)}[request.param]
    made = kind(**SIZES).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:  # far from uniform
            nn.init.normal_(parameter, std=0.4)
    return made


def run(model, prompts, num_new, sampling=GREEDY, **options):
    """Return the tokens of each row."""
    drawn = list(
        generate_tokens(model, prompts, max_new_tokens=num_new, sampling=sampling, **options)
    )
    return [[token for token in row if token is not None] for row in zip(*drawn, strict=True)]


def greedy_without_cache(model, prompt, num_new):
    tokens = list(prompt)
    for _ in range(num_new):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_cached_logits_are_those_of_the_whole_sequence(model):
    tokens = torch.randint(0, 11, (3, 20))
    positions = torch.arange(20).expand(3, -1)
    with torch.no_grad():
        want = model(tokens)
        cache = model.make_cache(3, 20)
        parts = [slice(0, 7), slice(7, 8), slice(8, 12), *(slice(i, i + 1) for i in range(12, 20))]
        found = [
            model.classify(model.run_cached(tokens[:, part], positions[:, part], cache))
            for part in parts
        ]
    torch.testing.assert_close(torch.cat(found, 1), want, atol=1e-5, rtol=1e-5)


def test_rows_of_different_lengths_are_what_each_is_alone(model):
    together = run(model, PROMPTS, 12)
    assert together == [greedy_without_cache(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(row) for row in together}) == 3


def test_slots_behind_a_row_are_never_seen(model):
    """What lies in the cache behind a row's last token changes nothing."""
    tokens, positions = torch.tensor([[3]]), torch.tensor([[2]])
    with torch.no_grad():
        found = []
        for garbage in (0.0, 100.0):
            cache = model.make_cache(1, 9)
            for tensor in (*cache.keys, *cache.values):
                tensor[:, :, 3:] = garbage
            found.append(model.run_cached(tokens, positions, cache))
    assert torch.equal(*found)


@pytest.mark.long  # compiles C++
def test_a_compiled_step_draws_the_same_tokens(model):
    assert run(model, PROMPTS, 12, compiles=True) == run(model, PROMPTS, 12)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(model):
    one, again, other = (run(model, PROMPTS, 15, Sampling(seed=seed)) for seed in (1, 1, 2))
    assert one == again != other


def test_a_row_ends_before_its_stop_token_and_the_others_go_on(model):
    free = run(model, PROMPTS, 12)
    stop = free[0][4]
    stopped = run(model, PROMPTS, 12, Sampling(temperature=0, stop=(stop,)))
    for row, tokens in zip(free, stopped, strict=True):
        assert tokens == (row[: row.index(stop)] if stop in row else row)


def test_all_of_the_context_can_be_filled(model):
    tokens = run(model, [[1, 2, 3]], None)
    assert len(tokens[0]) == 21


def test_a_step_is_taken_only_when_it_is_asked_for_and_no_mode_is_left_on(model):
    stream = generate_tokens(model, [[1]], max_new_tokens=5)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


# -- how a token is drawn -----------------------------------------------------------------------

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"top_k": 2}, [0.5, 0.3, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.4}, [0.5, 0, 0, 0]),
        ({"top_p": 0.79}, [0.5, 0.3, 0, 0]),
        ({"top_p": 0.81}, [0.5, 0.3, 0.15, 0]),
        ({"top_k": 3, "top_p": 0.6}, [0.5, 0.3, 0, 0]),
    ],
)
def test_probabilities_are_those_of_hand_computed_cases(options, expected):
    probs = Sampling(**options).probs(LOGITS)
    want = torch.tensor(expected) / sum(expected)
    torch.testing.assert_close(probs, torch.stack([want, want.flip(0)]))


def test_tokens_are_drawn_as_often_as_they_are_probable():
    generator = torch.Generator().manual_seed(0)
    logits = LOGITS[:1].expand(20_000, -1)
    drawn = Sampling(temperature=1.0).draw(logits, generator)
    shares = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(shares, LOGITS[0].exp(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_wrong_ways_to_draw_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    ("prompts", "num_new", "message"),
    [
        ([], 3, "no prompts"),
        ([[1], []], 3, "prompt 1 is empty"),
        ([[1, 11]], 3, "prompt 0 has token 11, the vocabulary 11 tokens"),
        ([[-1]], 3, "prompt 0 has token -1"),
        ([[1] * 20], 5, "20 tokens and max_new_tokens=5 do not fit context_length=24"),
        ([[1] * 24], None, "24 tokens do not fit"),
        ([[1]], 0, "max_new_tokens=0"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_anything_runs(model, prompts, num_new, message):
    with pytest.raises(ConfigError, match=message):
        generate_tokens(model, prompts, max_new_tokens=num_new)


# -- from text ----------------------------------------------------------------------------------


@pytest.fixture
def engine(model):
    field = FieldSpec((24,), "int64")
    spec = DataSpec("language_modelling", {"inputs": field}, tuple("abcdefghij "), (1,) * 11)
    return ModelEngine.wrap(model, spec).train()


def test_text_is_continued_as_its_tokens_are(engine):
    text = engine.generate("bcd", 8, temperature=0)
    ids = engine.generate([1, 2, 3], 8, temperature=0)
    tensor = engine.generate(torch.tensor([[1, 2, 3], [1, 2, 3]]), 8, temperature=0)
    assert text.tokens == ids.tokens == tensor[0].tokens == tensor[1].tokens
    assert text.text == "".join("abcdefghij "[token] for token in text.tokens)
    assert not text.has_stopped
    assert engine.training


def test_a_stream_is_the_text_piece_by_piece(engine):
    pieces = list(engine.stream("bcd", 8, seed=3))
    assert "".join(pieces) == engine.generate("bcd", 8, seed=3).text
    assert list(engine.stream([1, 2, 3], 8, seed=3)) == engine.generate("bcd", 8, seed=3).tokens


def test_a_text_stops_at_a_character(engine):
    free = engine.generate("bcd", 12, temperature=0)
    stop = free.text[5]
    stopped = engine.generate("bcd", 12, temperature=0, stop=[stop])
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.has_stopped


def test_what_cannot_be_written_is_said(engine):
    with pytest.raises(ConfigError, match="11 tokens, not with 'Z'"):
        engine.generate("abZ")
    with pytest.raises(ConfigError, match=r'unknown option topk=3(.|\n)*"top_k"'):
        engine.generate("ab", topk=3)
    with pytest.raises(ConfigError, match="no row of token ids"):
        engine.generate([[0.5]])
    with pytest.raises(ConfigError, match="'resnet20' is no decoder"):
        ModelEngine("resnet20").generate("a")
    engine.spec = None
    with pytest.raises(ConfigError, match="has none"):
        engine.generate("abc")


def test_text_goes_through_the_tokenizer_of_the_model_and_comes_back_whole():
    texts = ["the wölf ate the shéep", "the shéep ate the grass"] * 20
    tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=270)
    torch.manual_seed(0)
    engine = ModelEngine.wrap(GPT(**{**SIZES, "num_classes": tokenizer.vocab_size}))
    sequence = FieldSpec((24,), "int64")
    fields = {"inputs": sequence, "targets": sequence}
    engine.spec = DataSpec("language_modelling", fields, tokenizer=tokenizer.to_json())
    found = engine.generate("the wölf", 8, temperature=0)
    assert found.text == tokenizer.decode(found.tokens)
    prompt = tokenizer.encode(["the wölf"], is_whole=False)[0].tolist()
    assert found.tokens == engine.generate(prompt, 8, temperature=0).tokens
    # letters of two bytes, one token each: nothing is shown before a letter is whole
    vocabulary = Vocabulary((), tokenizer)
    spelled = [vocabulary.id_of(letter) for letter in "wÃ¶"]  # bytes c3 and b6, as it writes them
    assert list(vocabulary.decode_each(spelled)) == ["w", "ö"]


def test_a_stream_that_ends_inside_a_letter_gives_what_generate_gives():
    tokenizer = train_tokenizer(["the wölf ate the shéep"] * 20, kind="bpe", vocab_size=262)
    vocabulary = Vocabulary((), tokenizer)
    cut = [vocabulary.id_of(letter) for letter in "wÃ"]  # the second is half an ö
    assert list(vocabulary.decode_each(cut)) == ["w", INCOMPLETE]
    for tokens in ([], cut[:1], cut[1:], [*cut, *cut]):
        assert "".join(vocabulary.decode_each(tokens)) == tokenizer.decode(tokens)


def test_a_blank_between_prompt_and_text_is_kept():
    words = ["<unk>", "\u2581The", "\u2581cat", "\u2581sat", "s"]  # as SentencePiece writes blanks
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(backend.to_str())
    assert tokenizer.decode([3]) == "sat"  # a text begins with no blank
    vocabulary = Vocabulary((), tokenizer)
    for before in ([1, 2], [1, 2, 5]):  # <s> has no text
        assert vocabulary.decode([3, 4, 3], before) == " sats sat"
        assert list(vocabulary.decode_each([3, 4, 3], before)) == [" sat", "s", " sat"]
    assert vocabulary.decode([3], [5]) == "sat"
    torch.manual_seed(0)
    engine = ModelEngine.wrap(GPT(**{**SIZES, "num_classes": 5}))
    sequence = FieldSpec((24,), "int64")
    fields = {"inputs": sequence, "targets": sequence}
    engine.spec = DataSpec("language_modelling", fields, tokenizer=tokenizer.to_json())
    found = engine.generate("The cat", 6, seed=0)
    assert "The cat" + found.text == tokenizer.decode([1, 2, *found.tokens])
    assert "".join(engine.stream("The cat", 6, seed=0)) == found.text


def test_one_stop_token_needs_no_list_and_an_unknown_one_is_refused(engine):
    whole = engine.generate("abc", 12, temperature=0)
    last = whole.text[5]
    found = engine.generate("abc", 12, temperature=0, stop=last)
    assert found.text == whole.text[: whole.text.index(last)]
    assert engine.generate("abc", 12, temperature=0, stop=whole.tokens[5]) == found
    with pytest.raises(ConfigError, match="not with 'ab'"):
        engine.generate("abc", 3, stop="ab")
    with pytest.raises(ConfigError, match="stop has token 99, the vocabulary 11 tokens"):
        engine.generate("abc", 3, stop=[99])
    with pytest.raises(ConfigError, match="there is no prompt"):
        engine.generate(None, 3)
