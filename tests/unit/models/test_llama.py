"""Llama computes what transformers computes with the same weights."""

import math
import warnings

import pytest
import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.models import Llama
from deepseek.models.rotary import Rotary, rotate

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip
SCALING = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn.q", "self_attn.k_proj": "attn.k", "self_attn.v_proj": "attn.v",
    "self_attn.o_proj": "attn.proj", "self_attn.q_norm": "attn.q_norm",
    "self_attn.k_norm": "attn.k_norm", "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down", "input_layernorm": "norm1", "post_attention_layernorm": "norm2",
    "model.layers": "blocks", "model.norm": "norm", "model.embed_tokens": "tok_embed",
    "lm_head": "head",
}  # fmt: skip
CASES = {
    "llama 2": ("Llama", {}, {}),
    "grouped queries": ("Llama", {"num_key_value_heads": 2}, {"kv_heads": 2}),
    "one head of keys": ("Llama", {"num_key_value_heads": 1}, {"kv_heads": 1}),
    "llama 3.1": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, **SCALING}},
        {"rope_theta": 500_000.0, "rope_scaling": SCALING},
    ),
    "wide heads": ("Llama", {"head_dim": 12}, {"head_dim": 12}),
    "tied": ("Llama", {"tie_word_embeddings": True}, {"tied": True}),
    "mistral": (
        "Mistral",
        {"num_key_value_heads": 2, "sliding_window": None},
        {"kv_heads": 2},
    ),
    "qwen2": (
        "Qwen2",
        {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"kv_heads": 2, "rope_theta": 1e6, "qkv_bias": True},
    ),
    "qwen3": (
        "Qwen3",
        {
            "num_key_value_heads": 2,
            "head_dim": 12,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        {"kv_heads": 2, "head_dim": 12, "rope_theta": 1e6, "qk_norm": True},
    ),
}


def make_both(case):
    kind, theirs, ours = CASES[case]
    torch.manual_seed(0)
    config = {"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    made = getattr(transformers, f"{kind}Config")(**{**SIZES, **config, **theirs})
    other = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = Llama(256, 2, 32, 4, 128, hidden_dim=48, **ours).eval()
    state = {}
    for name, tensor in other.state_dict().items():
        for theirs_, ours_ in NAMES.items():
            name = name.replace(theirs_, ours_)
        state[name] = tensor
    model.load_state_dict(state)
    return model, other


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grad", [True, False])
def test_it_is_transformers_with_the_same_weights(case, grad):
    model, other = make_both(case)
    tokens = torch.randint(0, 128, (2, 200))  # beyond the original context of the scaling
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        want = other(tokens).logits
        found = model(tokens)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_attention_depends_on_the_distance_of_tokens_alone():
    rotary = Rotary(head_dim=16)
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16).double()
    scores = []
    for first in (0, 5, 100):
        rotations = rotary.rotation(torch.tensor([[first], [first + 7]])).double()
        turned = rotate(q, rotations[1:]) * rotate(k, rotations[:1])
        scores.append(float(turned.sum()))
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


def test_frequencies_are_those_of_the_paper():
    rotation = Rotary(head_dim=8, theta=10_000.0).rotation(torch.tensor([[3]]))
    angles = [3 / 10_000 ** (2 * i / 8) for i in range(4)]
    want = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    assert rotation.flatten().tolist() == pytest.approx(want, abs=1e-6)


def test_positions_stay_exact_in_a_model_of_bfloat16():
    rotary = Rotary(head_dim=8)
    x = torch.randn(1, 1, 1, 8, dtype=torch.bfloat16)
    late = [rotate(x, rotary.rotation(torch.tensor([[n]]))) for n in (4096, 4097)]
    assert not torch.equal(*late)  # 4097 is no bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 0}, "factor=0 is not a positive number"),
        ({"factor": "8"}, "factor='8' is not a positive number"),
        ({"low_freq_factor": 4.0}, "low_freq_factor=4.0 is not below high_freq_factor=4.0"),
        ({"rope_type": "yarn"}, "rope_type='yarn'"),
        ({"beta": 1}, r"unknown=\['beta'\]"),
    ],
)
def test_scaling_that_is_not_llama_3s_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Llama(16, 1, 8, 2, rope_scaling={**SCALING, **change})


def test_a_sequence_that_is_too_long_is_named():
    with pytest.raises(ConfigError, match="9 tokens do not fit a model with context_length=8"):
        Llama(8, 1, 8, 2, num_classes=5)(torch.zeros(1, 9, dtype=torch.int64))
