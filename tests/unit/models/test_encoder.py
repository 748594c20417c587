import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from deepseek.errors import ConfigError
from deepseek.models import Encoder, ModelEngine
from deepseek.models.encoder import EncoderBlock
from deepseek.models.zoo import build_model
from deepseek.trainer import Trainer

SMALL = {"vocab_size": 40, "context_length": 16, "num_layers": 2, "dim": 24, "heads": 3}


def make_encoder(**args):
    torch.manual_seed(0)
    model = Encoder(**{**SMALL, "num_classes": 5, **args})
    for parameter in model.parameters():  # biases and norms too, or half the formula is untested
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_tokens(*shape):
    return torch.randint(1, 40, shape, generator=torch.Generator().manual_seed(1))


# BERT-base uncased with pooler (Devlin et al. 2018); BERT-tiny: 4.4 million (Turc et al. 2019).
@pytest.mark.parametrize(
    ("name", "count", "precision"), [("encoder_base", 109_482_240, 0), ("encoder_tiny", 4.4e6, 5e4)]
)
def test_presets_have_the_published_number_of_parameters(name, count, precision):
    with torch.device("meta"):
        model = build_model(name, None, {})
    assert abs(sum(parameter.numel() for parameter in model.parameters()) - count) <= precision


def reference_block(x, mask, block, heads):
    """BERT's layer as the paper has it: three projections, a large negative number where masked."""
    num_tokens, dim = x.shape[1:]
    q, k, v = (
        F.linear(x, weight, bias).view(-1, num_tokens, heads, dim // heads).transpose(1, 2)
        for weight, bias in zip(
            block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True
        )
    )
    scores = q @ k.transpose(2, 3) / (dim // heads) ** 0.5 + (~mask) * -1e9
    mixed = (scores.softmax(3) @ v).transpose(1, 2).reshape(x.shape)
    mixed = F.linear(mixed, block.attn.proj.weight, block.attn.proj.bias)
    x = F.layer_norm(x + mixed, (dim,), block.norm1.weight, block.norm1.bias, 1e-12)
    inner = F.linear(x, block.fc1.weight, block.fc1.bias)
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    branch = F.linear(inner, block.fc2.weight, block.fc2.bias)
    return F.layer_norm(x + branch, (dim,), block.norm2.weight, block.norm2.bias, 1e-12)


@pytest.mark.parametrize("grad", [True, False])
def test_a_block_is_the_layer_of_the_paper(grad):
    block = make_encoder().blocks[0].eval()
    assert isinstance(block, EncoderBlock)
    x = torch.randn(3, 7, 24)
    mask = torch.ones(3, 1, 1, 7, dtype=torch.bool)
    with torch.set_grad_enabled(grad):  # two implementations of attention
        torch.testing.assert_close(block(x), reference_block(x, mask, block, 3))
        mask[:, :, :, 4:] = False
        torch.testing.assert_close(block(x, mask), reference_block(x, mask, block, 3))


def test_embeddings_and_pooler_are_those_of_the_paper():
    model = make_encoder().eval()
    tokens = F.pad(make_tokens(2, 7), (0, 2))
    embed, linear = model.embedding, model.pooler.linear
    x = embed.tok_embed.weight[tokens] + embed.pos_embed[:9] + embed.type_embed[0]
    x = F.layer_norm(x, (24,), embed.norm.weight, embed.norm.bias, 1e-12)
    for block in model.blocks:
        x = reference_block(x, (tokens != 0)[:, None, None], block, 3)
    pooled = torch.tanh(x[:, 0] @ linear.weight.T + linear.bias)
    logits = pooled @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(tokens), logits, atol=1e-5, rtol=1e-4)


def as_bert_names(model):
    """Return the encoder's weights as transformers names them."""
    state = {
        "embeddings.word_embeddings.weight": model.embedding.tok_embed.weight,
        "embeddings.position_embeddings.weight": model.embedding.pos_embed,
        "embeddings.token_type_embeddings.weight": model.embedding.type_embed,
    }
    linears = {"embeddings.LayerNorm": model.embedding.norm, "pooler.dense": model.pooler.linear}
    for number, block in enumerate(model.blocks):
        layer = f"encoder.layer.{number}"
        linears |= {
            f"{layer}.attention.output.dense": block.attn.proj,
            f"{layer}.attention.output.LayerNorm": block.norm1,
            f"{layer}.intermediate.dense": block.fc1,
            f"{layer}.output.dense": block.fc2,
            f"{layer}.output.LayerNorm": block.norm2,
        }
        for kind in ("weight", "bias"):
            parts = getattr(block.attn.qkv, kind).chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                state[f"{layer}.attention.self.{name}.{kind}"] = part
    for name, linear in linears.items():
        state |= {f"{name}.weight": linear.weight, f"{name}.bias": linear.bias}
    return {name: tensor.detach() for name, tensor in state.items()}


def test_numbers_are_those_of_transformers_with_the_same_weights():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, max_position_embeddings=16, num_hidden_layers=2, hidden_size=24,
        num_attention_heads=3, intermediate_size=96,
    )  # fmt: skip
    theirs = transformers.BertModel(config).eval()
    ours = make_encoder().eval()
    theirs.load_state_dict(as_bert_names(ours))
    tokens = make_tokens(3, 12)
    tokens[1, 7:] = 0
    pooled = theirs(tokens, attention_mask=(tokens != 0).long()).pooler_output
    torch.testing.assert_close(ours(tokens), ours.head(pooled), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_padding_does_not_change_the_logits(grad):
    model = make_encoder(pad_token=3).eval()
    tokens = make_tokens(2, 9).masked_fill_(make_tokens(2, 9) == 3, 4)
    padded = F.pad(tokens, (0, 5), value=3)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(padded), model(tokens))
        model.pad_token = None
        assert not torch.allclose(model(padded), model(tokens))


def test_the_last_block_computes_the_first_token_alone_with_the_numbers_of_all(monkeypatch):
    model, tokens = make_encoder(dropout=0.0, pad_token=0), make_tokens(3, 11)
    tokens[1, 6:] = 0
    found = []
    for reads_first_alone in (model._reads_first_alone(), False):
        monkeypatch.setattr(model, "_reads_first_alone", lambda value=reads_first_alone: value)
        model.zero_grad()
        logits = model(tokens)
        logits.square().sum().backward()
        found.append([logits, *(weight.grad for weight in model.parameters())])
    assert Encoder._reads_first_alone(model)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("outputs", ["tokens", "hidden", "vocabulary"])
def test_what_is_read_at_every_token_is_computed_at_every_token(outputs):
    model = Encoder(**SMALL, outputs=outputs, num_classes=3 if outputs == "tokens" else None)
    assert model(make_tokens(2, 7)).shape[:2] == (2, 7)


def test_without_a_pad_token_no_mask_is_made():
    seen = []

    def attend(q, k, v, *, mask, dropout):
        seen.append((mask, dropout))
        return v

    for pad_token in (0, None):
        model = make_encoder(pad_token=pad_token, num_layers=1)
        model.blocks[0].attn.attend = attend
        model(make_tokens(2, 6))
    assert seen[0][0].shape == (2, 1, 1, 6)
    assert seen[1] == (None, 0.1)


def test_a_token_sees_those_before_and_after_it():
    model = make_encoder().eval()
    tokens = make_tokens(1, 10)
    changed = tokens.clone()
    changed[0, 9] = tokens[0, 9] % 39 + 1
    assert not torch.allclose(model(tokens), model(changed))  # the logits come from the first


def test_a_sequence_of_nothing_but_padding_has_finite_logits_and_gradients():
    model = make_encoder()
    tokens = make_tokens(2, 6)
    tokens[0] = 0
    logits = model(tokens)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_fresh_model_begins_as_bert_does():
    torch.manual_seed(0)
    model = Encoder(**{**SMALL, "dim": 96, "num_classes": 7})
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_export_takes_any_number_of_tokens():
    model = make_encoder().eval()
    dims = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("t", min=2, max=16)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        program = torch.export.export(model, (make_tokens(2, 6),), dynamic_shapes=(dims,))
    tokens = F.pad(make_tokens(4, 9), (0, 3))
    torch.testing.assert_close(program.module()(tokens), model(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.long  # compiles C++
def test_static_graph_gives_the_same_numbers():
    dynamic = ModelEngine("encoder", num_classes=5, **SMALL).eval()
    static = ModelEngine("encoder", num_classes=5, graph="static", **SMALL).eval()
    static.load_state_dict(dynamic.state_dict())
    tokens = F.pad(make_tokens(4, 9), (0, 3))
    torch.testing.assert_close(static(tokens), dynamic(tokens), atol=1e-4, rtol=1e-4)


def test_it_learns_from_tensors_through_the_trainer(tmp_path):
    # Class 1 where token 2 is in the sequence; lengths differ, token 1 begins each.
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 12, (256, 8), generator=generator)
    labels = torch.arange(256) % 2
    places = torch.randint(1, 5, (256,), generator=generator)
    tokens[torch.arange(256), places] = torch.where(labels == 1, 2, 3)
    lengths = torch.randint(5, 9, (256, 1), generator=generator)
    tokens = tokens.masked_fill(torch.arange(8) >= lengths, 0)
    tokens[:, 0] = 1
    torch.manual_seed(0)
    trainer = Trainer(
        Encoder(vocab_size=12, context_length=8, num_layers=1, dim=32, heads=2, dropout=0.0),
        TensorDataset(tokens[:192], labels[:192]),
        TensorDataset(tokens[192:], labels[192:]),
        batch_size=16,
        epochs=6,
        lr=2e-3,
        run_dir=tmp_path / "run",
        loggers=("jsonl",),
        num_workers=0,
    )
    history = trainer.fit()
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history.best["val_accuracy"] > 0.9
    loaded = ModelEngine.load(tmp_path / "run/model.bin").eval()
    found = (loaded(tokens[192:]).argmax(1) == labels[192:]).float().mean().item()
    assert found == pytest.approx(history.best["val_accuracy"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads=5 does not divide dim=24"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"context_length": 0}, "context_length=0"),
        ({"num_types": -1}, "num_types=-1"),
        ({"outputs": "words"}, "outputs='words' is not known"),
        ({"pooler": "gelu"}, "pooler='gelu' is not known"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0"),
        ({"outputs": "hidden"}, "num_classes=5, and an Encoder with outputs='hidden' has no"),
        ({"outputs": "vocabulary"}, "num_classes=5, .* the 40 tokens of its vocabulary"),
        ({"pad_token": None, "skips_padding_positions": True}, "pad_token=None"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"pad_token": 40}, "pad_token=40 is not of a vocabulary of vocab_size=40"),
        ({"pad_token": -1}, "pad_token=-1"),
        ({"pad_token": True}, "pad_token=True"),
    ],
)
def test_wrong_arguments_are_named_with_a_fix(change, message):
    with pytest.raises(ConfigError) as caught:
        make_encoder(**change)
    assert re.search(message, str(caught.value))
    assert "Fix:" in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "num_classes", "shape"),
    [
        ("sequence", 5, (2, 5)),
        ("tokens", 5, (2, 7, 5)),
        ("vocabulary", None, (2, 7, 40)),
        ("hidden", None, (2, 7, 24)),
    ],
)
def test_outputs_have_their_shape_and_survive_a_file(outputs, num_classes, shape, tmp_path):
    model = make_encoder(outputs=outputs, num_classes=num_classes).eval()
    engine = ModelEngine.wrap(model)
    tokens = F.pad(make_tokens(2, 5), (0, 2))
    found = engine(tokens)
    assert found.shape == shape
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert (model.hints.head[-1:] == ("head",)) == model.makes_logits
    for name in (*model.hints.head, *model.hints.no_weight_decay):
        assert name in dict(model.named_modules()) or name in dict(model.named_parameters())
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin").eval()
    assert loaded.config == engine.config
    assert torch.equal(loaded(tokens), found)


def test_the_logits_of_the_vocabulary_share_the_weight_of_the_token_embedding(tmp_path):
    model = make_encoder(outputs="vocabulary", num_classes=None).eval()
    assert model.head.weight is model.embedding.tok_embed.weight
    ModelEngine.wrap(model).save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin").module
    assert loaded.head.weight is loaded.embedding.tok_embed.weight
    assert loaded.config["num_classes"] == 40


@pytest.mark.parametrize("sides", [(0, 3), (3, 0), (1, 2)])
def test_positions_that_skip_padding_are_those_of_the_sequence_alone(sides):
    model = make_encoder(
        outputs="hidden", num_classes=None, pad_token=1, skips_padding_positions=True, num_types=0
    ).eval()
    assert len(model.embedding.pos_embed) == 16 + 2
    tokens = make_tokens(2, 6).clamp(min=2)
    want = model(tokens)
    found = model(F.pad(tokens, sides, value=1))[:, sides[0] : sides[0] + 6]
    torch.testing.assert_close(found, want)


def test_too_long_a_sequence_and_a_missing_head_are_named():
    with pytest.raises(ConfigError, match=r"17 tokens do not fit .*context_length=16(.|\n)*Fix:"):
        make_encoder()(make_tokens(1, 17))
    with pytest.raises(ConfigError, match="num_classes=None"):
        make_encoder(num_classes=None)(make_tokens(1, 4))
