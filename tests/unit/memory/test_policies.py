"""What a policy keeps, and that gradients are the same bits whatever it is."""

import gc
import weakref
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.memory.blocks import find_blocks
from deepseek.memory.policy import MemoryPolicy
from deepseek.models import GPT, Encoder, Llama, UNet3D, VisionTransformer

TOKENS = torch.arange(2 * 96).view(2, 96) % 50
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()
SIZES = {"num_layers": 2, "dim": 64, "heads": 4, "dropout": 0.1}


def llama(**changes):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, **changes,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.forward = partial(lambda forward, ids: forward(ids).logits, model.forward)
    return model


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Gate() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gate = nn.RMSNorm(48), nn.Linear(48, 96, bias=False)
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(F.dropout(F.silu(self.gate(h)) * self.up(h), 0.1))


MODELS = {
    "gpt": (lambda: GPT(context_length=96, num_classes=50, **SIZES), TOKENS),
    "own llama": (lambda: Llama(96, 2, 64, heads=4, num_classes=50, kv_heads=2), TOKENS),
    "unet3d": (
        lambda: UNet3D(1, 5, (8, 12), blocks=1),
        torch.linspace(-2, 2, 1024).view(2, 1, 8, 8, 8).cos(),
    ),
    "encoder": (
        lambda: Encoder(context_length=96, vocab_size=50, num_classes=5, **SIZES),
        TOKENS,
    ),
    "vit": (
        lambda: VisionTransformer(
            image_size=32, patch_size=4, channels=3, num_classes=5, **SIZES
        ),
        IMAGES,
    ),
    "swiglu": (SwiGLU, torch.linspace(-2, 2, 4 * 64 * 48).view(4, 64, 48).cos()),
    "llama": (llama, TOKENS),
    "resnet": (lambda: timm.create_model("resnet18", num_classes=5), IMAGES),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), IMAGES),
    "mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), IMAGES),
}  # fmt: skip


class Kept:
    """Adds up the memory of what is kept."""

    def __init__(self):
        self.storages = {}

    def note(self, place, tensor, packed, kind):
        if kind is None:
            self.storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()

    @property
    def nbytes(self):
        return sum(self.storages.values())


def run(name, policy_name, autocast, make=None, inputs=None, copies=None):
    """Return gradients, buffers and kept bytes of a step."""
    if make is None:
        make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make().train()
    policy = MemoryPolicy(policy_name.removeprefix("mixed "), [model])
    if policy_name.startswith("mixed "):
        policy.recomputed = frozenset(range(0, len(policy.blocks), 2))
    policy.observer, policy.copies = (kept := Kept()), copies
    torch.manual_seed(1)
    with policy.saving(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(inputs).float().square().mean()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return grads, {name: b.clone() for name, b in model.named_buffers()}, kept.nbytes


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("policy", ["pointwise", "selective", "full", "mixed selective"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_are_the_same_bits(name, policy, autocast):
    grads, buffers, everything = run(name, "off", autocast)
    found, found_buffers, kept = run(name, policy, autocast)
    assert_same(found, grads)
    assert_same(found_buffers, buffers)
    assert kept < 0.95 * everything  # `full` is seen by nobody: 0


@pytest.mark.parametrize("name", ["gpt", "own llama", "vit", "encoder", "llama", "swiglu"])
def test_each_policy_keeps_less_than_the_one_before(name):
    kept = [run(name, policy, True)[2] for policy in ("off", "pointwise", "selective")]
    assert kept[0] > kept[1] > kept[2] > 0


def test_pointwise_keeps_what_the_formula_says():
    # Korthikanti et al. 2022, arXiv 2205.05198, eq. 1 without attention's core and dropout, of a
    # block on T tokens of width D in float32: inputs of two norms, q, k, v, the core's output, and
    # the input of the activation; norms' and the activation's outputs are made again
    tokens, dim = 2 * 96, 64
    sizes = {"context_length": 96, "num_classes": 50, "dim": dim, "heads": 4}
    kept = {
        (policy, layers): run(
            "", policy, False, lambda n=layers: GPT(num_layers=n, **sizes), TOKENS
        )[2]
        for policy in ("off", "pointwise")
        for layers in (1, 2)
    }
    block = {p: kept[p, 2] - kept[p, 1] for p in ("off", "pointwise")}
    unit = 4 * tokens * dim
    assert block["off"] - block["pointwise"] == (1 + 1 + 4) * unit


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["gpt", "encoder"])
def test_layer_norms_can_be_left_as_they_are(name, autocast):
    def kept(policy, keeps_norms):
        torch.manual_seed(0)
        model = MODELS[name][0]().train()
        memory = MemoryPolicy(policy, [model])
        memory.keeps_norms, memory.observer = keeps_norms, (found := Kept())
        torch.manual_seed(1)
        with memory.saving(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(MODELS[name][1]).float().square().mean()
        loss.backward()
        return {n: p.grad for n, p in model.named_parameters()}, found.nbytes

    grads, least = kept("pointwise", False)
    found, some = kept("pointwise", True)
    assert_same(found, grads)
    assert least < some < kept("off", True)[1]
    assert kept("selective", True)[1] == kept("selective", False)[1]


def test_norms_of_channels_are_made_again_all_the_same():
    make, inputs = MODELS["resnet"]
    sizes = []
    for keeps_norms in (False, True):
        policy = MemoryPolicy("pointwise", [model := make().train()])
        policy.keeps_norms, policy.observer = keeps_norms, (found := Kept())
        with policy.saving():
            model(inputs).square().mean().backward()
        sizes.append(found.nbytes)
    assert sizes[0] == sizes[1]


def test_nothing_is_left_after_the_backward_pass():
    model = SwiGLU()
    x = MODELS["swiglu"][1]
    policy = MemoryPolicy("selective", [model])
    with policy.saving():
        hidden = model.layers[0](x)
        loss = model.layers[1](hidden).sum()
    gone = weakref.ref(hidden)
    loss.backward()
    del hidden, loss
    gc.collect()
    assert gone() is None


def test_a_graph_that_is_thrown_away_leaves_nothing():
    model, x = SwiGLU(), MODELS["swiglu"][1]
    with MemoryPolicy("selective", [model]).saving():
        out = model(x)
    gone = weakref.ref(out)
    gc.disable()  # without the help of the collector: no cycles
    try:
        del out
        assert gone() is None
    finally:
        gc.enable()


def test_a_second_backward_pass_through_a_retained_graph_is_the_same():
    model, x = SwiGLU(), MODELS["swiglu"][1]
    with MemoryPolicy("selective", [model]).saving():
        loss = model(x).square().mean()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_write_into_what_is_kept_is_an_error():
    weight = torch.randn(64, 64, requires_grad=True)
    with MemoryPolicy("pointwise").saving():
        hidden = torch.randn(64, 64).requires_grad_() + 1
        loss = (hidden @ weight).sum()
    with torch.no_grad():
        hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_norms_of_different_epsilons_are_each_made_with_their_own():
    def make():
        norms = [nn.LayerNorm(48, eps=10.0**-n) for n in (1, 3, 5)]
        return nn.Sequential(*(m for norm in norms for m in (norm, nn.Linear(48, 48))))

    x = MODELS["swiglu"][1]
    assert_same(run("", "pointwise", False, make, x)[0], run("", "off", False, make, x)[0])


class OwnNorm(nn.Module):
    """Has an epsilon that no norm of torch's has."""

    def __init__(self, weighted):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(48, 48), nn.Linear(48, 48)])
        self.norm = nn.LayerNorm(48)
        self.weight = nn.Parameter(torch.ones(48)) if weighted else None

    def forward(self, x):
        x = F.layer_norm(self.norm(self.linears[0](x)), (48,), self.weight, eps=0.3)
        return self.linears[1](x)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_norm_of_unknown_epsilon_is_kept(weighted):
    make, x = partial(OwnNorm, weighted), MODELS["swiglu"][1]
    assert_same(run("", "pointwise", False, make, x)[0], run("", "off", False, make, x)[0])


class Averaging(nn.Module):
    """Uses a buffer that it changes."""

    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(48, 48), nn.GELU()
        self.register_buffer("mean", torch.zeros(48))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().flatten(0, -2).mean(0)
        return self.act(self.linear(x - self.mean))


def test_a_recomputed_block_finds_its_buffers_as_they_were():
    def make():
        blocks = [Averaging() for _ in range(3)]
        nn.utils.parametrizations.spectral_norm(blocks[1].linear)
        return nn.Sequential(*blocks)

    x = MODELS["swiglu"][1]
    for found, expected in zip(
        run("", "full", False, make, x)[:2], run("", "off", False, make, x)[:2], strict=True
    ):
        assert_same(found, expected)


def test_a_cache_of_keys_is_left_out_where_blocks_are_recomputed():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=50, attn_implementation="eager",
    )  # fmt: skip
    grads = []
    for name in ("off", "full"):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).train()
        with MemoryPolicy(name, [model]).saving():
            loss = model(TOKENS).logits.square().mean()
        loss.backward()
        assert model.config.use_cache
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert_same(grads[1], grads[0])


def test_a_weight_that_was_written_to_is_an_error():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    with MemoryPolicy("pointwise", [model]).saving():
        loss = model(IMAGES).sum()
    with torch.no_grad():
        model[1].bias.add_(1)
    with pytest.raises(RuntimeError, match="a weight that is needed"):
        loss.backward()


def test_a_long_row_of_operations_is_no_recursion():
    x = torch.ones(64, 64, requires_grad=True)
    with MemoryPolicy("pointwise").saving():
        y = x * 1.0
        for _ in range(400):
            y = y * 1.001
        loss = (y @ y).sum()
    loss.backward()
    assert x.grad is not None


def test_sparse_and_complex_tensors_are_kept():
    weight = torch.randn(64, 64, requires_grad=True)
    with MemoryPolicy("pointwise").saving():
        spread = torch.view_as_complex(F.gelu(weight).view(64, 32, 2))
        loss = (spread * spread).abs().sum()
        loss = loss + torch.sparse.mm(weight.to_sparse(), weight).sum()
    loss.backward()
    assert torch.isfinite(weight.grad).all()


class ScaledInPlace(nn.Module):
    """Multiplies what autocast has made bfloat16 by float32 numbers, in place."""

    def __init__(self, act):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(48, 64), nn.Linear(64, 48), act
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 64))

    def forward(self, x):
        hidden = self.first(x.flatten(0, 1))  # no view of what a product has made
        return self.second(self.act(hidden, self.scale))


@pytest.mark.parametrize("act", [torch.Tensor.mul_, torch.Tensor.div_])
def test_a_product_in_place_is_made_again_in_its_own_dtype(act):
    make, x = partial(ScaledInPlace, act), MODELS["swiglu"][1]
    assert_same(run("", "pointwise", True, make, x)[0], run("", "off", True, make, x)[0])


@pytest.mark.parametrize(
    ("name", "num", "kind"),
    [("gpt", 2, "GPTBlock"), ("resnet", 8, "BasicBlock"), ("llama", 2, "LlamaDecoderLayer"),
     ("swiglu", 3, "Gate"), ("convnext", 12, "ConvNeXtBlock")],
)  # fmt: skip
def test_blocks_are_what_is_repeated(name, num, kind):
    blocks = find_blocks(MODELS[name][0]())
    assert [type(block).__name__ for block in blocks] == [kind] * num


def test_linears_in_a_row_are_no_blocks():
    assert find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == []
