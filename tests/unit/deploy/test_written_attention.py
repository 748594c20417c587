"""Attention as people write it: fused where it is attention, left with the reason where not."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from deepseek.deploy.fusion import fuse

DIM, HEADS, LENGTH = 16, 4, 6


class Written(nn.Module):
    """Self-attention whose core is another in each case."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.scale = (DIM // HEADS) ** -0.5
        self.dropout, self.softmax = nn.Dropout(0.1), nn.Softmax(dim=-1)
        mask = torch.tril(torch.ones(LENGTH, LENGTH))
        self.register_buffer("mask", mask.view(1, 1, LENGTH, LENGTH))
        bias = torch.randn(HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0))
        self.bias = nn.Parameter(bias)
        self.temperature = nn.Parameter(torch.full((HEADS, 1, 1), 0.5))

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.qkv(x).reshape(B, T, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        return self.out(self.core(q, k, v, T).transpose(1, 2).reshape(B, T, C))


class Plain(Written):
    def core(self, q, k, v, T):
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        return self.dropout(scores.softmax(dim=-1)) @ v


class Causal(Written):
    """As in minGPT."""

    def core(self, q, k, v, T):
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        return torch.matmul(torch.nn.functional.softmax(scores, dim=-1), v)


class Filled(Written):
    def core(self, q, k, v, T):
        scores = torch.matmul(q, k.mT) * self.scale
        scores = torch.where(self.mask[:, :, :T, :T].bool(), scores, -1e9)
        return torch.nn.functional.dropout(self.softmax(scores), 0.1, self.training) @ v


class MaskedBias(Written):
    """As in GPT-2 of old: the number in masked places is a buffer, and saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("masked_bias", torch.tensor(-1e9))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)

    def core(self, q, k, v, T):
        scores = torch.matmul(q, k.mT) * self.scale + self.unsaved.sum()
        scores = torch.where(self.mask[:, :, :T, :T].bool(), scores, self.masked_bias)
        return scores.softmax(-1) @ v


class Biased(Written):
    """As in Swin: the queries are scaled, a table is added."""

    def core(self, q, k, v, T):
        scores = (q * self.scale) @ k.transpose(-2, -1)
        scores = scores + self.bias.unsqueeze(0)
        return self.softmax(scores) @ v


class Einsum(Written):
    def core(self, q, k, v, T):
        scores = torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


class Flat(Written):
    def core(self, q, k, v, T):
        q, k, v = (each.reshape(-1, T, DIM // HEADS) for each in (q, k, v))
        found = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * self.scale).softmax(2), v)
        return found.reshape(-1, HEADS, T, DIM // HEADS)


class Tempered(Written):
    def core(self, q, k, v, T):
        return (q @ k.mT * self.temperature).softmax(-1) @ v


class Talking(Written):
    """Weights are read twice."""

    def core(self, q, k, v, T):
        weights = (q @ k.mT * self.scale).softmax(-1)
        return weights @ v + weights.mean()


class Shallow(Written):
    """What is masked keeps some weight."""

    def core(self, q, k, v, T):
        scores = (q @ k.mT * self.scale).masked_fill(self.mask == 0, -2.0)
        return scores.softmax(-1) @ v


class OverQueries(Written):
    def core(self, q, k, v, T):
        return (q @ k.mT * self.scale).softmax(-2) @ v


class Asking(Written):
    def core(self, q, k, v, T):
        factor = 2.0 if float(q.sum()) > 0 else 1.0
        return (q @ k.mT * factor).softmax(-1) @ v


class Squared(Written):
    def core(self, q, k, v, T):
        return (q @ k.mT).square().softmax(-1) @ v


def model_of(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, DIM), kind(), nn.LayerNorm(DIM)).eval()


def count_kernels(module, inputs):
    with torch.profiler.profile() as profile, torch.inference_mode():
        module(inputs)
    names = [event.key for event in profile.key_averages()]
    return sum(name == "aten::scaled_dot_product_attention" for name in names)


@pytest.mark.parametrize("kind", [Plain, Causal, Filled, Biased, Einsum, Flat])
def test_what_is_attention_is_computed_by_the_kernel(kind):
    module = model_of(kind)
    inputs = torch.randn(3, LENGTH, 8)
    found = fuse(module, inputs)
    assert (found.attentions, found.kept) == (("1",), ())
    assert found.difference < 1e-5
    assert "1 attentions fused" in found.describe()
    assert (count_kernels(module, inputs), count_kernels(found.model, inputs)) == (0, 1)
    assert found.model.state_dict().keys() == module.state_dict().keys()
    other = torch.randn(5, LENGTH, 8)  # of another size
    with torch.inference_mode():
        torch.testing.assert_close(found.model(other), module(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Tempered, "its scores are scaled by more than a number"),
        (Talking, "its weights are read elsewhere, too"),
        (Shallow, "what it masks is filled with -2, of which something is left"),
        (OverQueries, "its softmax is not along the last dimension"),
        (Asking, "cannot be traced: "),
        (Squared, "its scores go through square"),
    ],
)
def test_what_is_something_else_stays_with_the_reason(kind, why):
    found = fuse(model_of(kind), torch.randn(3, LENGTH, 8))
    assert found.attentions == ()
    [(name, reason)] = found.kept
    assert name == "1"
    assert reason.startswith(why)
    assert found.difference == 0


def test_a_softmax_of_something_else_is_no_attention():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(x).softmax(-1) * x

    found = fuse(nn.Sequential(Gate()), torch.randn(3, 8))
    assert (found.attentions, found.kept) == ((), ())


def test_a_module_that_others_look_into_stays():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Plain()

        def forward(self, x):
            return self.inner(x) * self.inner.num_turns

    model = Looking().eval()
    model.inner.num_turns = 2
    found = fuse(model, torch.randn(2, LENGTH, DIM))
    assert found.attentions == ()
    assert "the model needs it as it is" in found.kept[0][1]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_what_was_fused_holds_all_that_the_model_held(again):
    module, inputs = model_of(MaskedBias), torch.randn(3, LENGTH, 8)
    found = fuse(module, inputs)
    assert found.attentions == ("1",)
    copied = again(again(found.model))
    assert copied.state_dict().keys() == module.state_dict().keys()
    assert count_kernels(copied, inputs) == 1
    copied.load_state_dict(module.state_dict())
    with torch.inference_mode():
        assert torch.equal(copied(inputs), found.model(inputs))
        copied[1].qkv.weight.zero_()
    assert found.model[1].qkv.weight.any()
