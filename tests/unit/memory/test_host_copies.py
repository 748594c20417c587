"""What waits on the host comes back with the same bits, and is gone from the device meanwhile."""

import gc
import os
import weakref

import pytest
import torch
from tests.unit.memory.test_policies import MODELS, SIZES, TOKENS, SwiGLU, assert_same, run
from torch import nn

from deepseek.memory import host_copies
from deepseek.memory.chunked_loss import chunked_loss
from deepseek.memory.host_copies import HostCopies, can_be_copied
from deepseek.memory.host_link import HostLink, measure_link
from deepseek.memory.policy import MemoryPolicy
from deepseek.models import GPT


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(host_copies, "MIN_COPIED_BYTES", 1 << 12)


def offloading(*modules, name="off"):
    policy = MemoryPolicy(name, modules)
    policy.copies = HostCopies()
    return policy


@pytest.mark.parametrize("policy", ["off", "pointwise", "selective"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_are_the_same_bits(name, policy):
    grads, buffers, _ = run(name, "off", True)
    found, found_buffers, _ = run(name, policy, True, copies=(copies := HostCopies()))
    assert_same(found, grads)
    assert_same(found_buffers, buffers)
    assert copies.num_copies >= 3
    assert copies.num_fetches >= copies.num_copies - 1  # logits may be asked for by nobody


def test_each_memory_is_copied_once_and_all_its_bytes_are_counted():
    weight = torch.randn(48, 3 * 48, requires_grad=True)
    policy = offloading()
    with policy.saving():
        whole = torch.randn(96, 48).requires_grad_() @ weight
        left, middle, right = whole.split(48, 1)
        loss = (left * middle * right).sum()
    # the product's input is a leaf; three views of its output, and left * middle
    assert policy.copies.num_copies == 2
    assert policy.copies.copied_bytes == 96 * 3 * 48 * 4 + 96 * 48 * 4
    loss.backward()
    assert policy.copies.num_fetches == 2


def test_the_device_keeps_nothing_of_it_between_forward_and_backward():
    model, x = SwiGLU(), MODELS["swiglu"][1]
    policy = offloading(model)
    with policy.saving():
        hidden = model.layers[0](x)
        storage = weakref.ref(hidden.untyped_storage())
        loss = model.layers[1](hidden).sum()
        del hidden
    gc.collect()
    assert storage() is None
    loss.backward()
    assert policy.copies.num_fetches == policy.copies.num_copies


def test_what_was_saved_before_comes_along_and_no_more():
    policy, x = offloading(), torch.randn(64, 64, requires_grad=True)
    with policy.saving():
        y = x
        for _ in range(6):
            y = (y * 1.5).exp()  # each saves its result
        loss = y.sum()
    seen = []
    x.register_hook(lambda grad: seen.append(policy.copies.num_fetches))
    y.register_hook(lambda grad: seen.append(policy.copies.num_fetches))
    y.grad_fn.next_functions[0][0].register_hook(
        lambda given, taken: seen.append(policy.copies.num_fetches)
    )
    loss.backward()
    assert seen == [0, 1 + host_copies.NUM_AHEAD, 6]


def test_a_later_write_is_harmless_for_what_has_arrived():
    def gradient(writes):
        torch.manual_seed(0)
        weight = torch.randn(64, 64, requires_grad=True)
        with offloading().saving():
            hidden = torch.randn(64, 64).requires_grad_() + 1
            loss = (hidden @ weight).sum()
        if writes:
            with torch.no_grad():
                hidden.add_(1)
        loss.backward()
        return weight.grad

    assert torch.equal(gradient(True), gradient(False))


def test_memory_that_is_written_to_between_two_operations_is_copied_twice():
    weights = [torch.ones(64, 64, requires_grad=True) for _ in range(2)]
    policy, held = offloading(), torch.ones(64, 64)
    hidden = held.requires_grad_() * 1.0
    with policy.saving():
        one = hidden @ weights[0]
        with torch.no_grad():
            hidden.mul_(2.0)
        two = hidden @ weights[1]
    (one + two).sum().backward()
    assert torch.equal(weights[0].grad, torch.full((64, 64), 64.0))
    assert torch.equal(weights[1].grad, torch.full((64, 64), 128.0))


def test_a_second_backward_pass_through_a_retained_graph_is_the_same():
    model, x = SwiGLU(), MODELS["swiglu"][1]
    with offloading(model, name="pointwise").saving():
        loss = model(x).square().mean()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_graph_that_is_thrown_away_leaves_nothing():
    model, x = SwiGLU(), MODELS["swiglu"][1]
    policy = offloading(model, name="selective")
    with policy.saving():
        out = model(x)
    gc.disable()  # without the help of the collector: no cycles
    try:
        assert len(policy.copies._known) == policy.copies.num_copies
        del out
        assert len(policy.copies._known) == 0
    finally:
        gc.enable()


def test_only_chosen_places_are_copied():
    model = GPT(context_length=96, num_classes=50, **SIZES)
    policy = offloading(model)
    policy.copied_places = frozenset()
    with policy.saving():
        model(TOKENS).sum().backward()
    assert policy.copies.num_copies == 0


def test_the_parts_of_a_loss_that_follow_each_other_at_once_stay():
    head, policy = nn.Linear(64, 256), offloading()
    hidden = torch.randn(2, 64, 64, requires_grad=True)
    with policy.saving():
        loss = chunked_loss(
            hidden, list(head.parameters()), lambda part, tokens: head(part).exp().sum(), 2
        )
    assert policy.copies.num_copies == 0
    loss.backward()
    assert hidden.grad is not None


def test_what_is_small_sparse_or_complex_stays():
    assert can_be_copied(torch.zeros(64, 64))
    assert not can_be_copied(torch.zeros(8))
    assert not can_be_copied(torch.zeros(64, 64).to_sparse())
    assert not can_be_copied(torch.zeros(64, 64, dtype=torch.complex64))


def test_a_link_hides_what_both_passes_have_time_for():
    link = HostLink(to_host=10.0, to_device=4.0)
    assert link.hidden_bytes(1.0, 2.0) == 8.0
    assert link.hidden_bytes(1.0, 9.0) == 10.0
    assert link.round_trip_s(20.0) == 7.0
    assert measure_link(torch.device("cpu")) is None


# -- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # else sums of gradients are in changing order
    yield torch.device("cuda")
    torch.use_deterministic_algorithms(False)


def on_gpu(policy, num_layers=8):
    """Return gradients and peak bytes of two passes of a GPT, beside its weights."""
    torch.manual_seed(0)
    model = GPT(
        context_length=512, num_classes=512, num_layers=num_layers, dim=512, heads=8, dropout=0.1
    ).cuda()
    tokens = torch.arange(8 * 512, device="cuda").view(8, 512) % 512
    policy.modules = (model,)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with policy.saving(), torch.autocast("cuda", torch.bfloat16):
            loss = model(tokens).float().square().mean()
        loss.backward()
    peak = torch.cuda.max_memory_allocated() - held
    return {name: p.grad for name, p in model.named_parameters()}, peak


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["off", "pointwise", "selective"])
def test_streams_bring_back_the_same_bits_and_the_peak_is_lower(name, cuda):
    grads, peak = on_gpu(MemoryPolicy(name))
    found, lower = on_gpu(offloading(name=name))
    assert_same(found, grads)
    if name == "selective" and 0.7 * peak <= lower < peak:
        pytest.xfail("0.94 of the peak on an H200: little is kept")
    assert lower < 0.7 * peak


@pytest.mark.gpu
def test_an_abandoned_pass_leaves_the_next_one_alone(cuda):
    policy = offloading()
    with policy.saving():
        out = torch.randn(4096, 4096, device=cuda, requires_grad=True).exp().exp()
    del out
    grads, _ = on_gpu(MemoryPolicy("off"), 2)
    assert_same(on_gpu(policy, 2)[0], grads)


@pytest.mark.gpu
def test_a_write_into_what_is_still_leaving_is_an_error(cuda):
    policy = offloading()
    with policy.saving():
        given = torch.randn(8192, 8192, device=cuda, requires_grad=True)
        torch.cuda._sleep(10**9)  # which the copy waits for
        hidden = given.exp()
        loss = hidden.sin().sum()
        with torch.no_grad():
            hidden.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.gpu
def test_a_link_is_measured(cuda):
    link = measure_link(cuda)
    assert min(link) > 1e9
