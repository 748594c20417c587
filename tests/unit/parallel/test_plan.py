import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepseek.config.parallel import AXES, ParallelConfig
from deepseek.errors import ConfigError
from deepseek.models import GPT, Encoder, ModelEngine, ResNet, VisionTransformer
from deepseek.parallel.plan import (
    MULTI_STAGE,
    BatchFacts,
    ModelFacts,
    Plan,
    facts_of,
    resolve_plan,
)

GPT_FACTS = ModelFacts(
    "GPT", heads=4, num_blocks=4, widths=(("attn.qkv", 96), ("fc1", 128)), has_context=True,
    sequence_length=8,
)  # fmt: skip
DIVIDED = "adagrad, adam, adamw, adamw8bit, adan, lion, nadamw, rmsprop, sgd"
FOREIGN = ModelFacts("Net")
BATCH = BatchFacts(batch_size=16)
SCHEDULES = (
    "gpipe", "1f1b", "interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv_zero_bubble",
)  # fmt: skip


def config(plan):
    return ParallelConfig.model_validate(plan)


def resolve(plan, size, model=GPT_FACTS, **batch):
    return resolve_plan(config(plan), size, model, replace(BATCH, **batch))


def refused(plan, size, model=GPT_FACTS, **batch):
    with pytest.raises(ConfigError) as caught:
        resolve(plan, size, model, **batch)
    return caught.value


def advised(error):
    """The plans that an error names, and the number of processes that it would start instead."""
    match = re.search(r"parallel=([\w-]+(?: or [\w-]+)*),", error.fix)
    other = re.search(r"start (\d+) with deepseek launch --nproc \1 ", error.fix)
    return match[1].split(" or ") if match else [], int(other[1]) if other else None


# -- degrees ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "size", "expected"),
    [
        ("none", 1, {}),
        ("auto", 1, {}),
        ("auto", 6, {"dp_replicate": 6}),
        ("fsdp", 4, {"dp_shard": 4}),
        ("fsdp-tp2", 8, {"dp_shard": 4, "tp": 2}),
        ("fsdp-tp2", 2, {"dp_shard": 1, "tp": 2}),
        ("dp2-tp2-pp2", 8, {"dp_replicate": 2, "tp": 2, "pp": 2}),
        ({"tp": 2, "cp": "auto"}, 4, {"tp": 2, "cp": 2}),
    ],
)
def test_an_axis_without_a_number_takes_the_processes_that_are_left(plan, size, expected):
    found = resolve(plan, size)
    assert {axis: getattr(found, axis) for axis in AXES} == dict.fromkeys(AXES, 1) | expected
    assert found.world_size == size


@settings(deadline=None)
@given(st.sampled_from(AXES[:4]), st.integers(1, 64))
def test_auto_leaves_no_process_out(axis, size):
    model = replace(GPT_FACTS, num_blocks=64, sequence_length=64)
    found = resolve({axis: "auto"}, size, model, batch_size=64)
    assert getattr(found, axis) == found.world_size == size


@pytest.mark.parametrize("text", ["dp2", "fsdp2-cp2", "dp2-fsdp2-tp2", "tp2-pp2", "dp2-cp2-pp4"])
def test_a_plan_is_described_by_what_makes_it_again(text):
    size = 1
    for number in re.findall(r"\d+", text):
        size *= int(number)
    found = resolve(text, size)
    assert found.describe() == text
    assert resolve(found.describe(), size) == found


def test_shares_are_the_ranks_that_see_other_samples():
    assert resolve("dp2-fsdp2-cp2-tp2", 16).num_shares == 4
    assert resolve("cp2-tp2-pp2", 8).num_shares == 1


@pytest.mark.parametrize(
    ("plan", "size", "uses_fsdp", "divides_weights"),
    [
        ("dp2", 2, False, False),
        ("cp2", 2, False, False),
        ("pp2", 2, False, False),
        ("fsdp2", 2, True, True),
        ("tp2", 2, False, True),
        ("dp2-tp2", 4, True, True),
        ("cp2-tp2", 4, True, True),
        ("dp2-tp2-pp2", 8, False, True),
        ("fsdp2-pp2", 4, True, True),
    ],
)
def test_weights_are_divided_by_dp_shard_and_tp(plan, size, uses_fsdp, divides_weights):
    found = resolve(plan, size)
    assert found.uses_fsdp == uses_fsdp
    assert found.divides_weights == divides_weights


def test_only_a_zbv_pipeline_goes_there_and_back():
    assert resolve({"pp": 2, "schedule": "zbv_zero_bubble"}, 2).is_v_shaped
    assert not resolve({"pp": 2, "schedule": "interleaved_zero_bubble"}, 2).is_v_shaped
    assert not resolve({"dp_replicate": 2, "schedule": "zbv_zero_bubble"}, 2).is_v_shaped


# -- facts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "num_blocks"),
    [
        (VisionTransformer(image_size=8, patch_size=4, num_layers=3, dim=24, heads=4), 3),
        (GPT(context_length=8, num_layers=2, dim=24, heads=4), 2),
        (Encoder(vocab_size=9, context_length=8, num_layers=2, dim=24, heads=4), 2),
    ],
)
def test_our_transformers_say_what_can_be_divided(model, num_blocks):
    facts = facts_of(model, model.hints, 8)
    assert facts.name == type(model).__name__
    assert (facts.heads, facts.num_blocks, facts.sequence_length) == (4, num_blocks, 8)
    assert sorted(width for _, width in facts.widths) == [24, 72, 96, 96]
    assert facts.has_context
    assert not facts.counts_batches


def test_a_row_of_modules_can_be_cut_into_stages_and_nothing_else():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    facts = facts_of(module, ModelEngine.wrap(module).hints)
    assert (facts.num_blocks, facts.widths, facts.has_context) == (3, (), False)
    assert facts.counts_batches


def test_a_resnet_is_no_row_of_blocks():
    model = ModelEngine("resnet20", num_classes=10).module
    assert isinstance(model, ResNet)
    facts = facts_of(model, model.hints)
    assert (facts.num_blocks, facts.counts_batches) == (0, True)


# -- problems --------------------------------------------------------------------------------

PROBLEMS = [
    ("dp2-tp2", 3, {}, "parallel=dp2-tp2 is for 4 processes (dp_replicate=2 x tp=2), and there"
     " are 3"),
    ("dp2", 1, {}, "parallel=dp2 is for 2 processes (dp_replicate=2), and there is 1"),
    ("none", 2, {}, "parallel=none is for 1 process, and there are 2"),
    ("fsdp-tp2", 7, {}, "parallel=fsdp-tp2 is for 6 processes (dp_shard=3 x tp=2), and there are"
     " 7"),
    ("dp4", 4, {"batch_size": 3}, "batch_size=3 is below the 4 ranks that samples are shared out"
     " between"),
    ("dp2", 2, {"grad_accum_steps": "auto"}, "grad_accum_steps=auto tries one device at a time:"
     " give a number"),
    ("dp2", 2, {"keep_graph": True}, "keep_graph=true: gradients are reduced while the graph is"
     " freed"),
    ("dp2", 2, {"precision": "fp8"}, "precision=fp8 on several processes"),
    ("cp2", 2, {"ramps_sequence": True}, "sequence_length_ramp needs pp=1 and cp=1"),
    ("pp2", 2, {"ramps_sequence": True}, "sequence_length_ramp needs pp=1 and cp=1"),
    ("tp2", 2, {"model": FOREIGN}, "tp=2: Net does not say which of its linears can be divided"
     " (ParallelHints)"),
    ("tp3", 3, {}, "tp=3 does not divide heads=4; tp=3 does not divide the 128 features of fc1"),
    ("tp8", 8, {}, "tp=8 does not divide heads=4"),
    ("pp2", 2, {"model": FOREIGN}, "pp=2: Net is no row of blocks (ParallelHints.blocks, or an"
     " nn.Sequential)"),
    ("pp5", 5, {}, "5 stages (5 ranks x 1) for 4 blocks"),
    ({"pp": 4, "schedule": "looped_bfs"}, 4, {}, "8 stages (4 ranks x 2) for 4 blocks"),
    ({"pp": 4, "micro_batches": 3}, 4, {}, "micro_batches=3 are fewer than the 4 stages of the"
     " pipeline"),
    ("pp4", 4, {"batch_size": 3}, "4 micro-batches in a share of 3 samples (batch_size=3)"),
    ("dp2-pp4", 8, {"batch_size": 7, "grad_accum_steps": 6}, "6 micro-batches in a share of 4"
     " samples (batch_size=7)"),
    ({"pp": 2, "schedule": "looped_bfs", "micro_batches": 5}, 2, {}, "schedule=looped_bfs: pp=2"
     " does not divide micro_batches=5"),
    ({"pp": 2, "schedule": "looped_bfs", "stages_per_rank": 1}, 2, {}, "schedule=looped_bfs needs"
     " stages_per_rank of at least 2"),
    ({"pp": 2, "schedule": "zbv_zero_bubble", "stages_per_rank": 3}, 2,
     {"model": replace(GPT_FACTS, num_blocks=6)}, "schedule=zbv_zero_bubble needs"
     " stages_per_rank=2, not 3"),
    ({"pp": 2, "schedule": "gpipe", "stages_per_rank": 2}, 2, {}, "schedule=gpipe has one stage"
     " per rank, not 2"),
    ({"pp": 2, "schedule": "zbv_zero_bubble"}, 2, {"graph": "static"}, "schedule=zbv_zero_bubble"
     " splits the backward pass, which graph=static has as one"),
    ({"pp": 2, "schedule": "interleaved_zero_bubble"}, 2, {"graph": "static"},
     "schedule=interleaved_zero_bubble splits the backward pass, which graph=static has as one"),
    ({"dp_replicate": 2, "micro_batches": 4}, 2, {}, "micro_batches=4 without a pipeline: use"
     " grad_accum_steps"),
    ({"pp": 1, "micro_batches": 4}, 1, {}, "micro_batches=4 without a pipeline: use"
     " grad_accum_steps"),
    ({"dp_replicate": 2, "stages_per_rank": 2}, 2, {}, "stages_per_rank=2 without a pipeline: use"
     " pp"),
    ({"pp": 1, "stages_per_rank": 1}, 1, {}, "stages_per_rank=1 without a pipeline: use pp"),
    ("dp2", 2, {"batch_size": 5, "grad_accum_steps": 4}, "grad_accum_steps=4 for a rank's share of"
     " 3 samples (batch_size=5)"),
    ({"tp": 2, "compression": "bf16"}, 2, {}, "compression=bf16, but no gradients are reduced"
     " between ranks"),
    ({"pp": 2, "compression": "bf16"}, 2, {}, "compression=bf16, but no gradients are reduced"
     " between ranks"),
    ({"tp": 2, "sequence_parallel": True}, 2, {"model": replace(GPT_FACTS, sequence_length=5)},
     "sequence_parallel=true: tp=2 must divide the tokens of a rank in every step, and sequences of"
     " 5 tokens do not let it"),
    ({"tp": 2, "cp": 8, "sequence_parallel": True}, 16, {}, "sequence_parallel=true: tp=2 must"
     " divide the tokens of a rank in every step, and sequences of 8 tokens on cp=8 do not let it"),
    ({"tp": 2, "sequence_parallel": True}, 2, {"ramps_sequence": True}, "sequence_parallel=true:"
     " tp=2 must divide the tokens of a rank in every step, and sequences of 8 tokens that grow by"
     " sequence_length_ramp do not let it"),
    ("pp2", 2, {"model": ModelFacts("Sequential", num_blocks=4, counts_batches=True)}, "pp=2: a"
     " pipeline's trial pass would spoil the running statistics of Sequential (batch, instance or"
     " spectral norm)"),
    ("pp2", 2, {"model": replace(GPT_FACTS, counts_batches=True)}, "pp=2: a pipeline's trial pass"
     " would spoil the running statistics of GPT (batch, instance or spectral norm)"),
    ("tp2", 2, {"model": replace(GPT_FACTS, drops=True), "graph": "static"}, "tp=2 with"
     " graph=static and dropout, for which each rank draws numbers of its own within a block (set"
     " graph=dynamic, or dropout to 0)"),
    ("cp2", 2, {"model": FOREIGN}, "cp=2: the attention of Net cannot be divided by tokens (only"
     " that of this library's transformers can)"),
    ("cp16", 16, {}, "cp=16 ranks for sequences of 8 tokens"),
    ("ep2", 2, {}, "ep=2, but GPT has no experts"),
    ("fsdp2", 2, {"optimizer": "lamb"}, "optimizer=lamb needs whole weights, and dp_shard or tp"
     f" divide them (one of {DIVIDED} does not)"),
    ("tp2", 2, {"optimizer": "muon"}, "optimizer=muon needs whole weights, and dp_shard or tp"
     f" divide them (one of {DIVIDED} does not)"),
    ({"dp_shard": 2, "compression": "powersgd"}, 2, {}, "compression=powersgd works with"
     " dp_replicate alone"),
    ({"dp_replicate": 2, "pp": 2, "compression": "powersgd"}, 4, {}, "compression=powersgd works"
     " with dp_replicate alone"),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "size", "facts", "message"), PROBLEMS)
def test_a_plan_that_cannot_work_is_refused_in_words(plan, size, facts, message):
    assert refused(plan, size, **facts).message == message


def test_all_problems_are_told_at_once():
    plan = {"tp": 3, "cp": 16, "pp": 5, "schedule": "gpipe", "stages_per_rank": 2}
    error = refused(plan, 2, batch_size=16, precision="fp8", optimizer="lamb")
    assert error.message.split("; ") == [
        "parallel=cp16-tp3-pp5 is for 240 processes (pp=5 x cp=16 x tp=3), and there are 2",
        "precision=fp8 on several processes",
        "tp=3 does not divide heads=4",
        "tp=3 does not divide the 128 features of fc1",
        "10 stages (5 ranks x 2) for 4 blocks",
        "schedule=gpipe has one stage per rank, not 2",
        "cp=16 ranks for sequences of 8 tokens",
        "optimizer=lamb needs whole weights, and dp_shard or tp divide them (one of adagrad, adam,"
        " adamw, adamw8bit, adan, lion, nadamw, rmsprop, sgd does not)",
    ]


def test_batches_of_any_length_are_refused_by_pp_and_not_divided_by_tp():
    model = replace(GPT_FACTS, heads=24, widths=(("fc1", 48),), sequence_length=24)
    error = refused("pp2", 2, model, varies_in_length=True)
    assert error.message == (
        "pp=2: stages send activations of one shape, and batches differ in length (give the data"
        " padding=sequence_length)"
    )
    # batches are filled up to a multiple of 8
    for plan, size, divides in [("tp2", 2, True), ("cp2-tp4", 8, True), ("tp3", 3, False)]:
        assert resolve(plan, size, model).divides_tokens
        assert resolve(plan, size, model, varies_in_length=True).divides_tokens == divides
    wanted = {"tp": 3, "sequence_parallel": True}
    assert resolve(wanted, 3, model).divides_tokens
    assert "sequences of 24 tokens at most do not let it" in (
        refused(wanted, 3, model, varies_in_length=True).message
    )


def test_dropout_is_no_matter_where_blocks_are_not_compiled_or_not_divided():
    model = replace(GPT_FACTS, drops=True)
    assert resolve("tp2", 2, model).tp == 2
    assert resolve("dp2", 2, model, graph="static").dp_replicate == 2


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_model_says_whether_it_has_dropout(dropout):
    model = GPT(context_length=8, num_layers=1, dim=24, heads=4, dropout=dropout)
    assert facts_of(model, model.hints, 8).drops == (dropout > 0)


@pytest.mark.parametrize("facts", [{"keep_graph": True}, {"precision": "fp8"}])
def test_one_process_has_none_of_these_problems(facts):
    assert resolve("none", 1, FOREIGN, grad_accum_steps="auto", **facts) == Plan(
        config("none"), micro_batch_size=16
    )


@pytest.mark.parametrize("plan", ["dp2", "cp2", "pp2"])
def test_an_optimizer_that_needs_whole_weights_has_them(plan):
    assert resolve(plan, 2, optimizer="lamb").world_size == 2


@pytest.mark.parametrize("plan", ["dp2", "cp2", "fsdp2"])
def test_batch_norms_are_refused_in_a_pipeline_alone(plan):
    assert resolve(plan, 2, replace(GPT_FACTS, counts_batches=True)).world_size == 2


@pytest.mark.parametrize(
    ("plan", "size"), [("dp2", 2), ("cp2", 2), ("fsdp2", 2), ("dp2-tp2", 4), ("dp2-pp2", 4)]
)
def test_gradients_that_are_reduced_can_be_compressed(plan, size):
    settings = config(plan).model_copy(update={"compression": "bf16"})
    assert resolve_plan(settings, size, GPT_FACTS, BATCH).world_size == size


# -- tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "size", "length", "divides"),
    [
        ("tp2", 2, 8, True),
        ("tp2", 2, 5, False),
        ("tp2", 2, None, False),
        ("cp2-tp2", 4, 8, True),
        ("cp2-tp2", 4, 6, False),
        ("cp2-tp2", 4, 7, True),  # filled up to 4 tokens a rank
        ("dp2", 2, 8, False),
        ("none", 1, 8, False),
    ],
)
def test_by_default_tokens_are_divided_where_tp_divides_those_of_a_rank(
    plan, size, length, divides
):
    found = resolve(plan, size, replace(GPT_FACTS, sequence_length=length))
    assert found.divides_tokens is divides


def test_a_ramp_of_lengths_is_not_divided_by_tokens():
    assert resolve("tp2", 2).divides_tokens
    assert not resolve("tp2", 2, ramps_sequence=True).divides_tokens


@pytest.mark.parametrize(("wanted", "expected"), [(True, True), (False, False), ("auto", True)])
def test_tokens_are_divided_as_is_wanted_where_they_can_be(wanted, expected):
    assert resolve({"tp": 2, "sequence_parallel": wanted}, 2).divides_tokens is expected


def test_tokens_are_not_divided_without_tp():
    assert not resolve({"dp_replicate": 2, "sequence_parallel": True}, 2).divides_tokens


# -- advice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("plan", "size", "facts", "message"), PROBLEMS)
def test_every_advised_plan_works(plan, size, facts, message):
    error = refused(plan, size, **facts)
    plans, other = advised(error)
    assert len(plans) <= 3
    assert bool(plans) == ("parallel=" in error.fix)
    for text in plans:
        assert resolve(text, size, **facts).describe() == text
    if other is not None:
        assert resolve(plan, other, **facts).world_size == other


def test_no_plan_is_advised_where_none_works():
    assert advised(refused("dp2", 2, keep_graph=True))[0] == []


def test_an_advised_text_works_as_it_is_written():
    # the text is the whole setting: pp=4 works without what is set beside it, dp2-pp2 does not
    facts = {"batch_size": 4, "grad_accum_steps": 3}
    error = refused({"dp_replicate": 2, "pp": 2, "micro_batches": 3}, 4, **facts)
    assert "pp4" in advised(error)[0]
    for text in advised(error)[0]:
        assert resolve(text, 4, **facts).describe() == text


def test_plans_that_are_advised_to_a_ramp_of_lengths_work():
    for text in advised(refused("cp2", 2, ramps_sequence=True))[0]:
        assert resolve(text, 2, ramps_sequence=True).describe() == text


def test_another_number_of_processes_is_advised_only_where_it_works():
    assert advised(refused("tp3", 2))[1] is None
    assert advised(refused("tp4", 2))[1] == 4


def test_the_nearest_plans_are_advised():
    given_degrees = {"dp_replicate": 2, "tp": 2}
    for text in advised(refused("dp2-tp2", 8))[0]:
        found = config(text)
        ratios = [getattr(found, axis) / given_degrees.get(axis, 1) for axis in AXES]
        assert sorted(ratios) == [1, 1, 1, 1, 1, 2]  # one axis is twice as long
    assert advised(refused("pp8", 8))[0] == ["cp2-pp4", "dp2-pp4", "fsdp2-pp4"]


def test_where_no_plan_works_the_advice_is_to_change_what_is_named():
    error = refused("dp2", 2, grad_accum_steps="auto")
    assert error.fix == "use one process, or change what the message names"


# -- micro-batches ---------------------------------------------------------------------------

PIPELINES = st.fixed_dictionaries(
    {"pp": st.integers(2, 4), "schedule": st.sampled_from(SCHEDULES)},
    optional={
        "dp_replicate": st.integers(1, 3),
        "dp_shard": st.integers(1, 3),
        "micro_batches": st.integers(1, 12),
        "stages_per_rank": st.integers(1, 3),
    },
)


@settings(max_examples=400, deadline=None)
@given(PIPELINES, st.integers(1, 50), st.integers(1, 9), st.integers(1, 16))
def test_a_pipeline_that_is_accepted_has_micro_batches_for_all(plan, batch, accum, num_blocks):
    size = plan["pp"] * plan.get("dp_replicate", 1) * plan.get("dp_shard", 1)
    model = replace(GPT_FACTS, num_blocks=num_blocks)
    facts = {"batch_size": batch, "grad_accum_steps": accum}
    try:
        found = resolve(plan, size, model, **facts)
    except ConfigError as error:
        for text in advised(error)[0]:
            assert resolve(text, size, model, **facts).describe() == text
        return
    share = -(-batch // found.num_shares)
    assert found.num_micro_batches * found.micro_batch_size >= share  # no sample is lost
    assert found.num_micro_batches <= share
    assert found.num_micro_batches >= found.num_stages
    assert found.num_stages <= num_blocks
    if plan["schedule"] in MULTI_STAGE:
        assert found.num_micro_batches % found.pp == 0
        assert found.stages_per_rank >= 2
    else:
        assert found.stages_per_rank == 1
    if "micro_batches" in plan:
        assert found.num_micro_batches == plan["micro_batches"]
    else:
        assert found.num_micro_batches >= accum  # no more memory than was asked for


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(6, 100), st.integers(1, 20))
def test_without_a_pipeline_micro_batches_are_the_accumulated_ones(copies, shards, batch, accum):
    plan = {"dp_replicate": copies, "dp_shard": shards}
    if batch < copies * shards:
        return
    share = -(-batch // (copies * shards))
    facts = {"batch_size": batch, "grad_accum_steps": accum}
    if copies * shards > 1 and accum > share:
        assert f"grad_accum_steps={accum} for" in refused(plan, copies * shards, **facts).message
        return
    found = resolve(plan, copies * shards, **facts)
    assert found.num_micro_batches == accum
    assert found.micro_batch_size == max(1, -(-share // accum))
    assert found.micro_batch_size * accum >= share


@settings(deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.sampled_from(SCHEDULES))
def test_a_pipeline_has_twice_as_many_micro_batches_as_stages_where_they_are_even(
    degree, accum, schedule
):
    per_rank = 2 if schedule in MULTI_STAGE else 1
    model = replace(GPT_FACTS, num_blocks=16)
    batch = 4 * degree * per_rank
    found = resolve({"pp": degree, "schedule": schedule}, degree, model, batch_size=batch)
    assert found.num_micro_batches == 2 * found.num_stages
    assert found.num_micro_batches * found.micro_batch_size == batch
