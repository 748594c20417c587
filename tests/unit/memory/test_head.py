"""Heads that are left out for a while: of our models, and of those of transformers."""

import pytest
import torch
from torch import nn

from deepseek.memory.head import find_head, why_not_apart
from deepseek.models import GPT, ModelEngine

TOKENS = torch.arange(1, 9)[None]


def own():
    return GPT(context_length=20, num_classes=31, num_layers=1, dim=16, heads=2)


def tiny(kind, **changes):
    transformers = pytest.importorskip("transformers", reason="needs the extra text: transformers")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 32,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        "initializer_range": 0.5, **changes,
    }  # fmt: skip
    config, cls = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
        "masked": ("BertConfig", "BertForMaskedLM"),
        "classifier": ("LlamaConfig", "LlamaForSequenceClassification"),
    }[kind]
    model = getattr(transformers, cls)(getattr(transformers, config)(**sizes))
    return ModelEngine.wrap(model).module.eval()


class Around(nn.Module):
    """What a user writes around a model of transformers."""

    def __init__(self, hf):
        super().__init__()
        self.hf = hf

    def forward(self, tokens):
        return self.hf(tokens).logits


@pytest.mark.parametrize(
    "make",
    [own, lambda: tiny("llama"), lambda: tiny("masked"), lambda: Around(tiny("llama").model)],
    ids=["own", "llama", "masked", "around"],
)
def test_what_is_left_is_what_the_head_takes(make):
    module = make().eval()
    head = find_head(module, module.hints.head if isinstance(module, GPT) else ())
    logits = module(TOKENS)
    with head.left_out():
        hidden = module(TOKENS)
        assert torch.equal(head(hidden), logits)
    assert hidden.shape == (1, 8, 16)
    assert torch.equal(module(TOKENS), logits)
    assert why_not_apart(module, head) == ""


def test_the_head_is_back_after_an_error():
    for module in (own(), tiny("llama")):
        with pytest.raises(ValueError), find_head(module).left_out():  # noqa: PT011
            raise ValueError
        assert module(TOKENS).shape == (1, 8, 31)


def test_only_a_head_for_each_token_counts():
    assert find_head(tiny("classifier")) is None
    assert find_head(nn.Linear(2, 2)) is None


def test_logits_that_are_capped_are_found_out():
    module = tiny("gemma2", final_logit_softcapping=30.0)
    assert "scaled or capped" in why_not_apart(module, find_head(module))
    with torch.device("meta"):
        on_paper = Around(type(module.model)(module.model.config))
    assert why_not_apart(on_paper, find_head(on_paper)) == ""
