from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.models import GPT, Encoder, ModelEngine, VisionTransformer
from deepseek.models.classifier import BlockModel
from deepseek.parallel.stages import block_ranges, cut_stage, stage_ids, tied_names, untie

SIZES = {"num_layers": 4, "dim": 16, "heads": 2}
KINDS = ["vit", "vit of means", "gpt", "encoder", "row"]


def make_engine(kind):
    torch.manual_seed(0)
    if kind.startswith("vit"):
        pool = "mean" if kind == "vit of means" else "cls"
        model = VisionTransformer(
            image_size=8, patch_size=4, channels=1, num_classes=5, pool=pool, **SIZES
        )
        nn.init.normal_(model.head.weight)  # it begins at zero
    elif kind == "gpt":
        model = GPT(context_length=8, num_classes=11, **SIZES)
    elif kind == "encoder":
        model = Encoder(vocab_size=9, context_length=8, num_classes=5, dropout=0.0, **SIZES)
    else:
        layers = [nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3)]
        model = nn.Sequential(*layers)
    return ModelEngine.wrap(model)


def make_inputs(kind):
    generator = torch.Generator().manual_seed(1)
    if kind.startswith("vit"):
        return torch.randn(3, 1, 8, 8, generator=generator)
    if kind == "row":
        return torch.randn(4, 6, generator=generator)
    tokens = torch.randint(1, 9, (3, 8), generator=generator)
    tokens[1, 5:] = tokens[2, 2:] = 0  # the encoder's padding
    return tokens


def cut(engine, num_stages):
    module = engine.module
    num_blocks = len(module.blocks if isinstance(module, BlockModel) else module)
    return [
        cut_stage(
            engine, engine.hints, blocks, is_first=number == 0, is_last=number == num_stages - 1
        )
        for number, blocks in enumerate(block_ranges(num_blocks, num_stages))
    ]


def run(stages, inputs):
    first = stages[0].model
    beside = first.beside(inputs) if isinstance(first, BlockModel) else {}
    x = inputs
    for stage in stages:
        x = stage(x, **beside)
    return x


# -- which blocks, on which rank -------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_every_block_is_in_one_stage_and_in_order(sizes):
    num_blocks, num_stages = sizes
    ranges = block_ranges(num_blocks, num_stages)
    assert len(ranges) == num_stages
    assert [block for each in ranges for block in each] == list(range(num_blocks))


@settings(deadline=None)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_stages_are_even_and_the_first_is_never_the_longer_one(sizes):
    lengths = [len(each) for each in block_ranges(*sizes)]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("per_rank", [1, 2, 3])
def test_rounds_send_every_stage_to_the_next_rank(degree, per_rank):
    owner = {
        stage: rank
        for rank in range(degree)
        for stage in stage_ids(rank, degree, per_rank, is_v=False)
    }
    assert [owner[stage] for stage in range(degree * per_rank)] == list(range(degree)) * per_rank


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_a_v_goes_there_and_back(degree):
    owner = {
        stage: rank for rank in range(degree) for stage in stage_ids(rank, degree, 2, is_v=True)
    }
    there = list(range(degree))
    assert [owner[stage] for stage in range(2 * degree)] == there + there[::-1]


# -- stages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_one_after_the_other_are_the_whole_model(kind, num_stages):
    engine, inputs = make_engine(kind), make_inputs(kind)
    engine.eval()
    expected = engine(inputs)
    torch.testing.assert_close(run(cut(engine, num_stages), inputs), expected, rtol=0, atol=0)


def test_padding_is_hidden_in_every_stage():
    engine, inputs = make_engine("encoder"), make_inputs("encoder")
    stages, other = cut(engine, 3), inputs.clone()
    alone = run(stages, inputs[2:, :2])  # without the padding that fills it up
    torch.testing.assert_close(run(stages, inputs)[2:], alone)
    other[2, 3] = 7  # a token where there was padding is seen
    assert not torch.allclose(run(stages, other)[2:], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_stages_have_the_gradients_of_the_whole_model(kind):
    engine, inputs = make_engine(kind), make_inputs(kind)
    engine(inputs).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in engine.module.named_parameters()}
    engine.zero_grad()
    run(cut(engine, 3), inputs).square().sum().backward()
    for name, parameter in engine.module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_in_one_stage_under_its_own_name_but_tied_ones(kind, num_stages):
    engine = make_engine(kind)
    found = [dict(stage.model.named_parameters()) for stage in cut(engine, num_stages)]
    whole = dict(engine.module.named_parameters(remove_duplicate=False))
    times = Counter(name for stage in found for name in stage)
    assert times == Counter(whole.keys())  # the head of a GPT is in the last stage alone
    for stage in found:
        for name, parameter in stage.items():
            assert parameter is whole[name]
    buffers = [name for stage in cut(engine, num_stages) for name, _ in stage.model.named_buffers()]
    assert sorted(buffers) == sorted(name for name, _ in engine.module.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_stays_as_it_was(kind):
    engine, inputs = make_engine(kind).eval(), make_inputs(kind)
    expected, state = engine(inputs), engine.module.state_dict()
    cut(engine, 3)
    assert torch.equal(engine(inputs), expected)
    assert engine.module.state_dict().keys() == state.keys()


def test_a_stage_in_the_middle_has_blocks_alone():
    for kind in KINDS[:4]:
        middle = cut(make_engine(kind), 3)[1]
        assert {name.partition(".")[0] for name, _ in middle.model.named_parameters()} == {"blocks"}
        assert len(middle.blocks) == len(middle.block_ids)


def test_raw_images_are_prepared_by_the_first_stage():
    engine = make_engine("vit")
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(ConfigError, match="uint8 images need a normalisation"):
        run(cut(engine, 2), images)
    engine.spec = DataSpec("classification", fields={})
    assert torch.equal(run(cut(engine, 2), images), engine(images))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_stage_gives_can_be_sent_as_it_lies(kind):
    x = make_inputs(kind)
    stages = cut(make_engine(kind), 4)
    beside = stages[0].model.beside(x) if isinstance(stages[0].model, BlockModel) else {}
    for stage in stages:
        x = stage(x, **beside)
        assert x.is_contiguous()


# -- tied weights ----------------------------------------------------------------------------


def test_tied_weights_are_found_by_their_names():
    assert tied_names(make_engine("gpt").module) == [("tok_embed.weight", "head.weight")]
    assert tied_names(make_engine("vit").module) == []


def test_the_last_stage_gets_a_copy_of_what_it_shares_with_the_first():
    engine, inputs = make_engine("gpt"), make_inputs("gpt")
    expected = engine(inputs)
    stages = cut(engine, 2)
    untie(stages[1:], tied_names(engine.module))
    embedding, head = stages[0].model.tok_embed.weight, stages[1].model.head.weight
    assert torch.equal(embedding, head)
    assert embedding.data_ptr() != head.data_ptr()
    assert engine.module.head.weight is engine.module.tok_embed.weight  # the model's own stay
    torch.testing.assert_close(run(stages, inputs), expected, rtol=0, atol=0)


def test_gradients_of_copies_add_up_to_that_of_the_tied_weight():
    engine, inputs = make_engine("gpt"), make_inputs("gpt")
    engine(inputs).square().sum().backward()
    expected = engine.module.tok_embed.weight.grad.clone()
    engine.zero_grad()
    stages = cut(engine, 2)
    untie(stages[1:], tied_names(engine.module))
    run(stages, inputs).square().sum().backward()
    both = stages[0].model.tok_embed.weight.grad + stages[1].model.head.weight.grad
    torch.testing.assert_close(both, expected)


def test_a_stage_that_is_first_and_last_keeps_its_tie():
    engine = make_engine("gpt")
    [stage] = cut(engine, 1)
    untie([stage], tied_names(engine.module))
    assert stage.model.head.weight is stage.model.tok_embed.weight
