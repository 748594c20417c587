"""AdamW with moments in 8 bits, and with weights in bf16."""

import copy

import pytest
import torch
from torch import nn

from deepseek.memory.low_precision import LowPrecisionAdamW, adam_state_bytes, block_size

pytest.importorskip("torchao", reason="the extra memory")
SHAPES = ((48, 256), (20, 192), (8, 4, 4, 4), (96,), (5, 7))


@pytest.fixture
def eager():
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def make_weights(dtype=torch.float32, shapes=SHAPES):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(*shape).to(dtype)) for shape in shapes]


def make(weights, names=None, **options):
    names = names or [str(number) for number in range(len(weights))]
    groups = [{"params": weights, "weight_decay": 0.1}]
    return LowPrecisionAdamW(groups, dict(zip(weights, names, strict=True)), **options)


def take_steps(optimizer, weights, first=0, count=4):
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()


def state_of(optimizer, weight):
    return {key: value for key, value in optimizer.state[weight].items() if key != "step"}


@pytest.mark.usefixtures("eager")
def test_with_whole_moments_it_is_adamw():
    ours, theirs = make_weights(), make_weights()
    take_steps(make(ours, state_bits=32), ours)
    take_steps(torch.optim.AdamW(theirs, weight_decay=0.1), theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("eager")
def test_with_moments_of_8_bits_it_learns_what_torchao_learns_for_a_quarter_of_the_state():
    from torchao.optim import AdamW8bit

    ours, theirs, whole = (make_weights(shapes=((64, 256),)) for _ in range(3))
    optimizer = make(ours)
    take_steps(optimizer, ours)
    take_steps(AdamW8bit(theirs, lr=1e-3, weight_decay=0.1), theirs)
    take_steps(torch.optim.AdamW(whole, weight_decay=0.1), whole)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-6)
    off = float((ours[0] - whole[0]).detach().abs().max())
    assert 0 < off < 4e-3  # of four steps of about 1e-3
    kept = sum(value.nbytes for value in state_of(optimizer, ours[0]).values())
    assert kept == adam_state_bytes(ours[0], 8) < 0.26 * adam_state_bytes(ours[0], 32)


def test_a_compiled_update_is_the_one_that_runs_operator_by_operator():
    found = []
    for stance in ("force_eager", "default"):
        torch.compiler.set_stance(stance)
        weights = make_weights(shapes=((48, 256), (96,)))
        take_steps(make(weights), weights, count=2)
        found.append(weights)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_bits", [8, 32])
def test_a_state_that_is_put_back_goes_on_bit_for_bit(state_bits, dtype):
    weights = make_weights(dtype)
    optimizer = make(weights, state_bits=state_bits)
    take_steps(optimizer, weights)
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    twin = make(twins, state_bits=state_bits)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, own in ((optimizer, weights), (twin, twins)):
        take_steps(each, own, first=4)
    for one, other in zip(weights, twins, strict=True):
        assert torch.equal(one, other)
        for key, value in state_of(optimizer, one).items():
            assert torch.equal(value, twin.state[other][key])
            assert value.dtype == twin.state[other][key].dtype


@pytest.mark.usefixtures("eager")
def test_ranks_that_divide_rows_keep_the_blocks_of_the_whole():
    (whole,) = make_weights(shapes=((48, 192),))
    halves = [nn.Parameter(half.clone()) for half in whole.detach().chunk(2)]
    optimizers = make([whole]), make(halves)
    for optimizer in optimizers:
        for step in range(3):
            whole.grad = torch.randn(48, 192, generator=torch.Generator().manual_seed(step))
            for half, grad in zip(halves, whole.grad.chunk(2), strict=True):
                half.grad = grad
            optimizer.step()
    assert torch.equal(whole, torch.cat(halves))
    for key, value in state_of(optimizers[0], whole).items():
        parts = [optimizers[1].state[half][key] for half in halves]
        assert torch.equal(value, torch.cat(parts))
        assert len(value) == 48


@pytest.mark.usefixtures("eager")
def test_a_small_gradient_that_is_followed_by_none_makes_no_step_without_bound():
    weight = nn.Parameter(torch.zeros(1, 256))
    optimizer = make([weight], lr=1e-3)
    weight.grad = torch.ones(1, 256)
    weight.grad[0, 1:] = 1e-5
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = torch.zeros(1, 256)
    optimizer.step()
    assert float((weight.detach() - before).abs().max()) < 2e-3


# -- weights in bf16 -------------------------------------------------------------------------


@pytest.mark.usefixtures("eager")
def test_updates_below_the_distance_of_two_numbers_count_on_average():
    ours, theirs = (nn.Parameter(torch.ones(64, 256, dtype=torch.bfloat16)) for _ in range(2))
    pairs = ((make([ours], lr=1e-4), ours), (torch.optim.AdamW([theirs], lr=1e-4), theirs))
    for optimizer, weight in pairs:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        for _ in range(10):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    assert float((theirs.detach() - 1).abs().max()) == 0  # 1e-4 is a fortieth of the distance
    assert float(ours.detach().float().mean()) == pytest.approx(1 - 10 * 1e-4, abs=2e-4)


@pytest.mark.usefixtures("eager")
def test_rounding_follows_from_seed_and_name_and_leaves_the_generators_alone():
    def learnt(seed=0, name="a", others=()):
        weights = [*make_weights(torch.bfloat16, others), *make_weights(torch.bfloat16, ((9, 99),))]
        names = [*(f"other {n}" for n in range(len(others))), name]
        optimizer = make(weights, names, seed=seed)
        torch.manual_seed(len(others))
        before = torch.get_rng_state()
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), before)
        return weights[-1].detach()

    assert torch.equal(learnt(), learnt(others=((4, 4),)))  # another rank holds other weights
    assert not torch.equal(learnt(), learnt(seed=1))
    assert not torch.equal(learnt(), learnt(name="b"))


@pytest.mark.parametrize(
    ("shape", "block"),
    [((8, 1024), 256), ((8, 1600), 200), ((8, 384), 192), ((8, 3, 7, 7), 147), ((8, 63), None),
     ((4096,), None)],
)  # fmt: skip
def test_a_block_is_a_part_of_a_row(shape, block):
    assert block_size(shape) == block
