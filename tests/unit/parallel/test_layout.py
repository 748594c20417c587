"""All ranks of a layout, one after the other in this process, over torch's fake process group."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import placement_types
from torch.testing._internal.distributed.fake_pg import FakeStore

from deepseek.config.parallel import ParallelConfig
from deepseek.errors import ConfigError
from deepseek.models import GPT, Encoder, Llama, ModelEngine, ParallelHints, VisionTransformer
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.layout import LocalWeights
from deepseek.parallel.plan import BatchFacts, ModelFacts, facts_of, resolve_plan
from deepseek.parallel.tensor import divide_tables, rank_rows
from deepseek.parallel.world import World

SIZES = {"num_layers": 4, "dim": 32, "heads": 4}
LAYOUTS = [
    ("dp2", 2), ("cp2", 2), ("tp2", 2), ("tp4", 4), ("fsdp2", 2), ("pp2", 2), ("dp2-tp2", 4),
    ("dp2-fsdp2", 4), ("fsdp2-cp2", 4), ("fsdp3-tp2", 6), ("fsdp2-pp2", 4), ("tp2-pp2", 4),
    ("dp2-fsdp2-tp2", 8), ("fsdp2-tp2-pp2", 8), ("dp2-cp2-tp2-pp2", 16),
]  # fmt: skip


class Shift(nn.Module):
    """A layer with a buffer that is saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(6))

    def forward(self, x):
        return x + self.shift


class Hollow(nn.Module):
    """A layer with weights of no numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.none, self.rows = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(3, 0))

    def forward(self, x):
        return self.linear(x)


def make_model(kind):
    torch.manual_seed(0)
    if kind == "gpt":
        model = GPT(context_length=8, num_classes=67, **SIZES)
    elif kind == "llama":
        model = Llama(context_length=8, num_classes=67, kv_heads=2, qkv_bias=True, **SIZES)
    elif kind == "encoder":
        model = Encoder(vocab_size=20, context_length=8, num_classes=5, **SIZES)
    elif kind == "vit":
        model = VisionTransformer(image_size=8, patch_size=4, channels=1, num_classes=5, **SIZES)
    elif kind == "hollow":
        model = nn.Sequential(*(Hollow() for _ in range(2)))
    else:
        second = Shift if kind == "row" else partial(nn.BatchNorm1d, 6)
        layers = [nn.Sequential(nn.Linear(6, 6), second(), nn.ReLU()) for _ in range(4)]
        model = nn.Sequential(*layers, nn.Linear(6, 3))
    for tensor in model.state_dict().values():  # zeros and ones would hide what is exchanged
        if tensor.is_floating_point():
            tensor.normal_()
    return model


@contextmanager
def simulated_rank(rank, size):
    """Everything as on one of several ranks, but that nothing is ever sent."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def spread(monkeypatch):
    """Put a model on all ranks of a layout: [(ParallelModel, World) of each]."""

    def scatter(output, parts, mesh, mesh_dim=0, **kwargs):  # as if the first rank had sent it
        output.copy_(parts[mesh.get_local_rank(mesh_dim)])

    monkeypatch.setattr(placement_types, "mesh_scatter", scatter)

    def spread(kind, plan, size):
        found = []
        for rank in range(size):
            engine = ModelEngine.wrap(make_model(kind))
            settings = ParallelConfig.model_validate(plan)
            facts = facts_of(engine.module, engine.hints, 8)
            plan_of_all = resolve_plan(settings, size, facts, BatchFacts(batch_size=64))
            with simulated_rank(rank, size):
                world = World(plan_of_all, torch.device("cpu"))
                is_decoder = kind in ("gpt", "llama")
                model = ParallelModel(engine, world, takes_divided_logits=is_decoder)
                found.append((model, model.parts()))
        return found

    return spread


def cut_out(part):
    """Where a part lies in the whole."""
    sizes = zip(part.place.offset, part.tensor.shape, strict=True)
    return tuple(slice(start, start + size) for start, size in sizes)


def assert_whole(ranks, kind):
    """Check that parts are the model's, each number there and written by one rank."""
    expected = make_model(kind).state_dict()
    found = {name: torch.full_like(tensor, -1) for name, tensor in expected.items()}
    times = {name: torch.zeros(tensor.shape) for name, tensor in expected.items()}
    for _, parts in ranks:
        for part in parts:
            assert part.place.shape == tuple(expected[part.place.name].shape)
            here = cut_out(part)
            assert torch.equal(part.tensor, expected[part.place.name][here])
            found[part.place.name][here] = part.tensor
            times[part.place.name][here] += part.is_written
    for name, tensor in expected.items():
        known_as = ranks[0][0].whole_names[name]
        assert torch.equal(found[known_as], tensor), name
        assert (times[known_as] == 1).all(), name


@pytest.mark.parametrize(
    ("kind", "plan", "size"),
    [("gpt", *layout) for layout in LAYOUTS]
    + [("llama", "tp2", 2), ("llama", "pp2", 2), ("llama", "fsdp2-tp2-pp2", 8)]
    + [("vit", "fsdp40", 40), ("vit", "fsdp5-tp4", 20), ("vit", "cp2-tp2", 4), ("vit", "pp4", 4)]
    + [("encoder", "fsdp3-tp2", 6), ("encoder", "cp2-pp2", 4), ("encoder", "fsdp2-tp2-pp2", 8)],
)
def test_the_parts_of_all_ranks_are_the_model_and_each_number_is_written_once(
    kind, plan, size, spread
):
    assert_whole(spread(kind, plan, size), kind)


@pytest.mark.parametrize(
    ("kind", "plan", "size"),
    [
        ("row", "dp2", 2),
        ("row", "fsdp2", 2),
        ("row", "pp2", 2),
        ("row", "dp2-pp2", 4),
        ("row", "fsdp3-pp2", 6),
        ("batch norms", "dp2", 2),
        ("batch norms", "fsdp2", 2),
    ],
)
def test_a_row_of_modules_and_its_buffers_are_written_once(kind, plan, size, spread):
    assert_whole(spread(kind, plan, size), kind)


@pytest.mark.parametrize(("plan", "size"), [("dp2", 2), ("fsdp2", 2), ("pp2", 2), ("dp2-pp2", 4)])
def test_a_weight_without_numbers_is_saved_by_ranks(plan, size, spread):
    ranks = spread("hollow", plan, size)
    assert_whole(ranks, "hollow")
    written = [part for _, parts in ranks for part in parts if part.is_written]
    for name, tensor in make_model("hollow").state_dict().items():
        found = [part for part in written if part.place.name == name]
        assert found, name
        assert tensor.numel() or len(found) == 1, name


@pytest.mark.parametrize(("num_rows", "degree"), [(9, 4), (3, 4), (5, 4)])
def test_a_table_that_leaves_a_rank_without_rows_is_refused(num_rows, degree):
    model = nn.ModuleDict({"table": nn.Embedding(num_rows, 2)})
    with simulated_rank(degree - 1, degree):
        mesh = init_device_mesh("cpu", (degree,))
        message = f"tp={degree} ranks for the {num_rows} rows of table"
        with pytest.raises(ConfigError, match=message):
            divide_tables(model, ParallelHints(row_tables=("table",)), mesh)


def test_processes_that_have_met_for_devices_alone_are_refused():
    plan = resolve_plan(
        ParallelConfig(dp_replicate=2), 2, ModelFacts("Net"), BatchFacts(batch_size=4)
    )
    dist.init_process_group("cuda:fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(ConfigError, match="init_process_group for cuda:fake") as caught:
            World(plan, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    assert "cpu:gloo,cuda:nccl" in caught.value.fix


@pytest.mark.parametrize(
    "schedule", ["interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv_zero_bubble"]
)
def test_several_stages_on_a_rank_are_written_once(schedule, spread):
    assert_whole(spread("gpt", {"pp": 2, "schedule": schedule}, 2), "gpt")


@pytest.mark.parametrize(
    ("plan", "size"),
    [("dp2", 2), ("tp2", 2), ("pp2", 2), ("dp2-fsdp2", 4), ("fsdp3-tp2", 6), ("fsdp2-tp2-pp2", 8)],
)
def test_shares_of_the_squared_norm_add_up_to_that_of_the_model(plan, size, spread):
    model = make_model("gpt")
    expected = sum(float(p.detach().double().square().sum()) for p in model.parameters())
    total = 0.0
    for parallel, _ in spread("gpt", plan, size):
        for weight in parallel.weights.trained:
            weight.local.grad = weight.local.detach().clone()

        def norm(grads):
            return torch.cat([grad.double().flatten() for grad in grads]).norm()

        total += parallel.weights.sum_of_squares(norm)
    assert total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("degree", [2, 4])
def test_a_rank_of_tp_has_its_heads_of_queries_keys_and_values(degree, spread):
    whole = make_model("vit").state_dict()["blocks.0.attn.qkv.weight"]
    head_rows = 32 // degree
    for rank, (parallel, parts) in enumerate(spread("vit", f"tp{degree}", degree)):
        local = parallel.weights.named()["blocks.0.attn.qkv.weight"]
        queries, keys, values = local.chunk(3)
        own = slice(rank * head_rows, (rank + 1) * head_rows)
        for group, rows in enumerate((queries, keys, values)):
            assert torch.equal(rows, whole[32 * group : 32 * (group + 1)][own])
        boxes = [p for p in parts if p.place.name == "blocks.0.attn.qkv.weight"]
        assert [p.place.offset for p in boxes] == [
            (32 * group + rank * head_rows, 0) for group in range(3)
        ]


@pytest.mark.parametrize(("num_rows", "groups", "degree"), [(24, 3, 2), (24, 3, 4), (8, 1, 2)])
def test_rows_of_ranks_are_all_rows_each_once(num_rows, groups, degree):
    order = rank_rows(num_rows, groups, degree)
    assert order.sort().values.tolist() == list(range(num_rows))
    size = num_rows // groups
    for rank, rows in enumerate(order.chunk(degree)):
        per_group = rows.view(groups, -1)
        for group in range(groups):
            first = group * size + rank * size // degree
            assert per_group[group].tolist() == list(range(first, first + size // degree))


def test_ranks_beyond_the_rows_of_a_weight_hold_nothing_of_it(spread):
    ranks = spread("vit", "fsdp8", 8)
    rows = [parallel.weights.named()["head.bias"].numel() for parallel, _ in ranks]
    assert rows == [1, 1, 1, 1, 1, 0, 0, 0]
    for (parallel, parts), held in zip(ranks, rows, strict=True):
        assert ("head.bias" in parallel.weights.named_trained()) == bool(held)
        assert any(part.place.name == "head.bias" for part in parts) == bool(held)


def test_a_weight_of_both_ends_of_a_pipeline_has_one_name_and_two_copies(spread):
    ranks = spread("gpt", "pp2", 2)
    held = [
        [w for w in parallel.weights.weights if w.name == "tok_embed.weight"]
        for parallel, _ in ranks
    ]
    assert [len(each) for each in held] == [1, 1]
    assert [each[0].num_copies for each in held] == [2, 2]
    assert [each[0].is_written for each in held] == [True, False]
    assert "head.weight" not in {w.name for parallel, _ in ranks for w in parallel.weights.weights}


def test_an_update_of_what_is_held_is_one_of_the_model(spread):
    for parallel, _ in spread("gpt", "fsdp2-tp2", 4):
        for weight in parallel.weights.weights:
            with torch.no_grad():
                weight.local.fill_(7.0)
            assert (weight.parameter.to_local() == 7.0).all()


# -- one process -----------------------------------------------------------------------------


def test_without_a_world_weights_are_the_parameters_themselves():
    model = make_model("gpt")
    weights = LocalWeights([model])
    named = dict(model.named_parameters())
    assert list(weights.named()) == list(named)
    for weight in weights.weights:
        assert weight.local is weight.parameter is named[weight.name]
        [part] = weight.parts(weight.local)
        assert part.key == weight.name
        assert (part.is_written, weight.num_copies) == (True, 1)
        assert part.tensor.data_ptr() == weight.local.data_ptr()


def test_what_has_the_shape_of_a_weight_is_cut_as_it_is():
    model = make_model("vit")
    weights = LocalWeights([model])
    moment = torch.randn_like(model.head.weight)
    [part] = weights.cut("head.weight", moment, "/exp_avg")
    assert part.key == "head.weight/exp_avg"
    assert torch.equal(part.tensor, moment)


def test_frozen_weights_are_held_but_not_trained():
    model = make_model("vit")
    model.patch_embed.requires_grad_(False)
    weights = LocalWeights([model])
    frozen = set(weights.named()) - set(weights.named_trained())
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_gradients_are_taken_and_dropped():
    model = make_model("row")
    weights = LocalWeights([model])
    assert weights.take_gradients() == []
    model(torch.randn(4, 6)).sum().backward()
    taken = weights.take_gradients()
    assert [grad.data_ptr() for grad in taken] == [p.grad.data_ptr() for p in model.parameters()]
    norm = torch.nn.utils.get_total_norm(taken)
    assert weights.sum_of_squares(torch.nn.utils.get_total_norm) == pytest.approx(float(norm) ** 2)
    weights.drop_gradients()
    assert all(p.grad is None for p in model.parameters())
