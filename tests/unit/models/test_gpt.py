import math

import pytest
import torch

from deepseek.errors import ConfigError
from deepseek.models import GPT, ModelEngine


def make_gpt(**args):
    torch.manual_seed(0)
    return GPT(**{"context_length": 16, "num_layers": 2, "dim": 32, "heads": 4, **args})


@pytest.mark.parametrize("grad", [True, False])
def test_no_token_sees_those_after_it(grad):
    model = make_gpt(num_classes=65).eval()
    tokens = torch.randint(0, 65, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = 0
    with torch.set_grad_enabled(grad):  # two implementations of attention
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


def test_head_and_embedding_share_a_weight_and_a_fresh_model_knows_nothing():
    model = make_gpt(num_classes=65)
    assert model.head.weight is model.tok_embed.weight
    logits = model(torch.randint(0, 65, (4, 16))).detach()
    assert logits.shape == (4, 16, 65)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 65, (64,)))
    assert loss.item() == pytest.approx(math.log(65), abs=0.3)


def test_it_survives_a_file(tmp_path):
    engine = ModelEngine(
        "gpt", context_length=16, num_layers=2, dim=32, heads=4, num_classes=65
    ).eval()
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin").eval()
    tokens = torch.randint(0, 65, (2, 16))
    assert torch.equal(loaded(tokens), engine(tokens))
    assert loaded.module.head.weight is loaded.module.tok_embed.weight


def test_too_long_a_sequence_and_wrong_sizes_are_named():
    with pytest.raises(ConfigError, match="17 tokens do not fit a model with context_length=16"):
        make_gpt(num_classes=5)(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(ConfigError, match="heads=5 does not divide dim=32"):
        make_gpt(heads=5)
    with pytest.raises(ConfigError, match="num_classes"):
        make_gpt()(torch.zeros(1, 4, dtype=torch.int64))
