from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from deepseek.datasets import DataSpec, FieldSpec, TextDataset, train_tokenizer
from deepseek.errors import ConfigError
from deepseek.models import GPT, Encoder, ModelEngine

TEXTS = ["the cat sat", "a dog barked loudly", "no news is good news"] * 10
TOKENIZER = train_tokenizer(TEXTS, "wordpiece", 80)


@pytest.fixture
def data(tmp_path):
    rows = "".join(f"{text},{len(text) % 3}\n" for text in TEXTS)
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    return TextDataset(
        tmp_path / "a.csv", "sequence_classification", tokenizer=TOKENIZER, sequence_length=16,
        cache="off",
    )  # fmt: skip


def encoder(**options):
    sizes = {"vocab_size": 80, "context_length": 16, "num_layers": 1, "dim": 16, "heads": 2}
    return ModelEngine("encoder", **{**sizes, **options})


def test_a_packed_row_has_the_logits_of_each_document_alone():
    torch.manual_seed(0)
    model = GPT(32, num_layers=2, dim=32, heads=4, num_classes=50, document_token=1)
    documents = [
        torch.cat([torch.tensor([1]), torch.randint(2, 50, (length,))]) for length in (9, 5, 12)
    ]
    row = torch.cat(documents)[None]
    for mode in (True, False):  # explicit attention, and the fused kernel
        with torch.set_grad_enabled(mode):
            alone = torch.cat([model(each[None])[0] for each in documents])
            assert torch.allclose(model(row)[0], alone, atol=1e-6)
    together = GPT(**{**model.config, "document_token": None})
    together.load_state_dict(model.state_dict())
    assert not torch.allclose(together(row)[0], alone, atol=1e-2)


def test_a_model_learns_from_the_data_that_documents_are_apart(tmp_path):
    fields = {"inputs": FieldSpec((8,), "int64"), "targets": FieldSpec((8,), "int64")}
    names = tuple("abcd")
    spec = DataSpec("language_modelling", fields, names, (1,) * 4, document_token=2)
    engine = ModelEngine("gpt", context_length=8, num_layers=1, dim=8, heads=1)
    engine.bind(spec)
    engine.save(tmp_path / "model.bin")
    inputs = torch.tensor([[0, 1, 2, 3, 0, 2, 1, 1]])
    loaded = ModelEngine.load(tmp_path / "model.bin")
    assert loaded.config["document_token"] == 2
    assert torch.equal(loaded(inputs), engine(inputs))
    with pytest.raises(ConfigError, match="Encoder lets a token see all before it"):
        encoder(num_classes=4).bind(spec)


def decoder(name, num_classes=None, **options):
    sizes = {"context_length": 8, "num_layers": 1, "dim": 8, "heads": 1}
    return ModelEngine(name, num_classes=num_classes, **sizes, **options)


def characters(count):
    fields = {"inputs": FieldSpec((8,), "int64"), "targets": FieldSpec((8,), "int64")}
    return DataSpec("language_modelling", fields, tuple(map(chr, range(count))), (1,) * count)


@pytest.mark.parametrize(("name", "options"), [("gpt", {}), ("llama", {"tied": False})])
def test_a_decoder_from_weights_keeps_its_embedding_when_the_data_are_bound(
    name, options, tmp_path
):
    torch.manual_seed(0)
    trained = decoder(name, 200, **options).eval()
    trained.save(tmp_path / "model.bin")
    for count, num_rows in ((200, 256), (120, 128)):
        engine = decoder(name, weights=tmp_path / "model.bin", **options).eval()
        few = pytest.warns(UserWarning, match="first 120 of 256 rows of the vocabulary are kept")
        with few if count == 120 else nullcontext():
            engine.bind(characters(count))
        assert engine.num_classes == count
        tokens = torch.arange(8)[None]
        assert torch.equal(engine(tokens), trained(tokens)[..., :count])
        module = engine.module
        assert len(module.tok_embed.weight) == len(module.head.weight) == num_rows
        assert (module.tok_embed.weight is module.head.weight) == module.is_tied
        engine.save(tmp_path / "narrow.bin")
        again = ModelEngine.load(tmp_path / "narrow.bin").eval()
        assert torch.equal(again(tokens), engine(tokens))
    engine = decoder(name, weights=tmp_path / "model.bin", **options)
    with pytest.raises(ConfigError, match="num_classes=256 tokens, the data have 300"):
        engine.bind(characters(300))


def test_rows_beyond_the_tokens_of_a_model_s_own_tokenizer_are_left_out(tmp_path):
    data = TextDataset(TEXTS, "language_modelling", tokenizer=TOKENIZER, sequence_length=8,
                       cache="off")  # fmt: skip
    count = TOKENIZER.vocab_size
    published = decoder("gpt", 200)
    published.spec = replace(data.spec, class_names=(), class_counts=())  # as a folder tells it
    rows = published.module.tok_embed.weight[:count].clone()
    published.bind(data.spec)
    assert published.config["num_classes"] == count
    assert torch.equal(published.module.tok_embed.weight[:count], rows)
    other = decoder("gpt", 200)
    other.bind(characters(200))
    with pytest.raises(ConfigError, match=f"num_classes=200, the data {count} classes"):
        other.bind(data.spec)  # whose tokens are others


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 20}, "the tokenizer has .* tokens, the model vocab_size=20"),
        ({"context_length": 8}, "sequences of 16 tokens, the model context_length=8"),
        ({"pad_token": 3}, "filled up with token 0, the model has pad_token=3"),
        ({"pad_token": None}, "filled up with token 0, the model has pad_token=None"),
    ],
)
def test_a_model_that_does_not_fit_the_tokens_is_refused(options, message, data):
    with pytest.raises(ConfigError, match=message):
        encoder(**options).bind(data.spec)


def test_texts_are_predicted_from_the_model_file_alone(data, tmp_path):
    engine = encoder()
    engine.bind(data.spec)
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin")
    found = loaded.predict(TEXTS[:3], batch_size=2)
    assert [len(each.probs) for each in found] == [len(data.class_names)] * 3
    engine.eval()
    batch, _ = data.get_batch([0, 1, 2], 0)
    expected = engine(batch["inputs"]).softmax(-1)
    assert torch.allclose(torch.stack([each.probs for each in found]), expected, atol=1e-6)
    assert loaded.predict(TEXTS[0]).label == found[0].label
    assert loaded.predict("x " * 100).label in data.class_names
    with pytest.raises(ConfigError, match="x is a int, which cannot be predicted"):
        loaded.predict(3)


def test_padding_changes_no_prediction(data):
    engine = encoder(dropout=0.0)
    engine.bind(data.spec)
    engine.eval()
    alone = [engine(data.get_batch([i], 0)[0]["inputs"]) for i in range(3)]
    together = engine(data.get_batch([0, 1, 2], 0)[0]["inputs"])
    assert torch.allclose(torch.cat(alone), together, atol=1e-6)
    assert isinstance(engine.module, Encoder)
