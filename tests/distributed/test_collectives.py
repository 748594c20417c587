"""What a step sends is what the papers say, and nothing beside it.

Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053, section 3): f and g are two all-reduces forward
and two backward per block. Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2: each of them
becomes a reduce-scatter and an all-gather of the same tensor. ZeRO-3 / FSDP (Zhao et al. 2023,
arXiv 2304.11277): weights are gathered forward and backward, gradients reduce-scattered once. DDP
(Li et al. 2020, arXiv 2006.15704): each gradient is all-reduced once per step.
"""

from collections import Counter

import pytest
from tests.distributed.counting import (
    CONTEXT,
    DIM,
    NUM_ROWS,
    Reader,
    Talker,
    count_with_torch,
    trace_steps,
)
from tests.distributed.ranks import run_ranks

from deepseek.models import Llama

BATCH = 16
FLOAT_BYTES = 4
ACTIVATION = BATCH * CONTEXT * DIM
TOKENS = BATCH * CONTEXT
BLOCK_WEIGHTS = 12 * DIM**2 + 4 * DIM  # four projections, two of them four times as wide; two norms
END_WEIGHTS = NUM_ROWS * DIM + CONTEXT * DIM + 2 * DIM  # tied embedding and head, positions, norm
TP = {"tp": 2, "sequence_parallel": False, "vocab_parallel": False}
RUNS = {
    "dp": {"parallel": "dp2"},
    "dp accumulated": {"parallel": "dp2", "grad_accum_steps": 4},
    "dp in buckets": {"parallel": {"dp_replicate": 2, "bucket_mib": 0.02}},
    "fsdp": {"parallel": "fsdp2"},
    "fsdp deeper": {"parallel": "fsdp2", "num_layers": 3},
    "fsdp accumulated": {"parallel": "fsdp2", "grad_accum_steps": 2},
    "tp": {"parallel": TP},
    "tp deeper": {"parallel": TP, "num_layers": 3},
    "tp accumulated": {"parallel": TP, "grad_accum_steps": 2},
    "tp vocabulary": {"parallel": {**TP, "vocab_parallel": True}},
    "tp tokens": {"parallel": {**TP, "sequence_parallel": True}},
    "tp tokens deeper": {"parallel": {**TP, "sequence_parallel": True}, "num_layers": 3},
    "tp tokens vocabulary": {"parallel": {"tp": 2, "sequence_parallel": True}},
    "tp llama": {"parallel": TP, "build": Llama},
    "tp llama deeper": {"parallel": TP, "build": Llama, "num_layers": 3},
    "tp tokens llama": {"parallel": {**TP, "sequence_parallel": True}, "build": Llama},
    "tp tokens llama deeper": {
        "parallel": {**TP, "sequence_parallel": True},
        "build": Llama,
        "num_layers": 3,
    },
    "cp": {"parallel": "cp2"},
    "cp deeper": {"parallel": "cp2", "num_layers": 3},
    "pp": {"parallel": {"pp": 2, "micro_batches": 4}},
}
LAYOUTS = ("dp2", "fsdp2", "tp2")
QUIET = {
    "seldom": {"log_every": 100},
    "always": {"log_every": 1},
    "no loggers": {"log_every": 1, "loggers": []},
    "more loggers": {"log_every": 1, "loggers": ["console", "jsonl", "tensorboard"]},
    "read by callbacks": {"log_every": 1, "callbacks": [Reader(), Reader()]},
}
VERDICT = Counter({("optimizer", "all_reduce", 6): 1})
"""Loss, norm, damage, wish to stop, lack of memory and time used in one."""
AGREED = Counter({("", "all_reduce", 1): 1}) + VERDICT
"""And a step's count of items, where ranks have different ones."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collectives")
    runs = RUNS | {
        f"{layout} {name}": {"parallel": layout, **settings}
        for layout in LAYOUTS
        for name, settings in (QUIET | {"talks": {"callbacks": [Talker()]}}).items()
    }
    return run_ranks(2, trace_steps, runs, folder / "runs", folder=folder / "ranks", timeout_s=300)


@pytest.fixture(scope="module")
def step(ranks):
    """The collectives of a step of a run, on rank 0."""
    return lambda name: ranks[0][name][0]


def counted(collectives):
    return Counter((each.phase, each.kind, each.numel) for each in collectives)


def added(more, less):
    """What the one step asks for beside all that the other does."""
    assert counted(less) <= counted(more)
    return counted(more) - counted(less)


def moved(collectives, phase):
    """Bytes that a rank sends in a phase."""
    return sum(each.sent_bytes for each in collectives if each.phase == phase)


@pytest.mark.parametrize("name", RUNS)
def test_all_ranks_ask_for_the_same_and_gloo_does_no_more(name, ranks):
    asked, num_done, _ = ranks[0][name]
    collectives = [each for each in asked if each.kind not in ("send", "receive")]
    assert len(collectives) == num_done  # the recorder leaves out what is between two ranks
    if name != "pp":  # whose ends differ
        assert counted(ranks[1][name][0]) == counted(asked)


def test_torchs_own_counter_counts_the_same(tmp_path):
    plans = ("dp2", "fsdp2", "tp2", "cp2")
    for rank in run_ranks(2, count_with_torch, plans, tmp_path / "runs", folder=tmp_path / "r"):
        for plan in plans:
            by_torch, ours = rank[plan]
            assert by_torch == ours, plan


# -- tensor parallel -------------------------------------------------------------------------


def test_tp_needs_two_all_reduces_forward_and_two_backward_per_block(step):
    block = Counter(
        {("forward", "all_reduce", ACTIVATION): 2, ("backward", "all_reduce", ACTIVATION): 2}
    )
    for name, num_layers in (("tp", 2), ("tp deeper", 3)):
        blocks = Counter({key: n * num_layers for key, n in block.items()})
        assert counted(step(name)) == blocks + VERDICT


def test_tp_sends_as_much_in_two_micro_batches_as_in_one(step):
    whole, halves = step("tp"), step("tp accumulated")
    for phase in ("forward", "backward"):
        assert moved(halves, phase) == moved(whole, phase)
    assert len(halves) - len(VERDICT) == 2 * (len(whole) - len(VERDICT))


def test_a_divided_vocabulary_adds_its_embedding_its_head_and_three_numbers_per_token(step):
    # forward: each rank embeds the tokens of its own rows, and the sum is everybody's; the loss
    # needs the largest logit, the sum of the exponentials and the logit of the target;
    # backward: each rank has the share of the stream's gradient that its logits make
    assert added(step("tp vocabulary"), step("tp")) == Counter(
        {
            ("forward", "all_reduce", ACTIVATION): 1,
            ("forward", "all_reduce", TOKENS): 3,
            ("backward", "all_reduce", ACTIVATION): 1,
        }
    )


def test_divided_tokens_turn_each_all_reduce_into_a_reduce_scatter_and_an_all_gather(step):
    per_block = counted(step("tp tokens deeper")) - counted(step("tp tokens"))
    norms = {key: n for key, n in per_block.items() if key[0] == "optimizer"}
    assert per_block - Counter(norms) == Counter(
        {
            (phase, kind, ACTIVATION): 2
            for phase in ("forward", "backward")
            for kind in ("reduce_scatter", "all_gather")
        }
    )


def test_divided_tokens_send_the_same_bytes_per_block_as_all_reduces(step):
    for phase in ("forward", "backward"):
        whole = moved(step("tp deeper"), phase) - moved(step("tp"), phase)
        divided = moved(step("tp tokens deeper"), phase) - moved(step("tp tokens"), phase)
        assert divided == whole == 2 * ACTIVATION * FLOAT_BYTES


def test_divided_tokens_are_put_together_once_at_each_end_of_the_blocks(step):
    # after the last block for the head, and backward before the first for the embeddings
    once, thrice = counted(step("tp tokens")), counted(step("tp tokens deeper"))
    blocks = {key: 2 * (thrice[key] - n) for key, n in once.items()}
    ends = Counter({key: n - blocks[key] for key, n in once.items() if key[0] != "optimizer"})
    assert +ends == Counter(
        {
            ("forward", "all_gather", ACTIVATION): 1,
            ("backward", "all_gather", ACTIVATION): 1,
        }
    )


def test_gradients_of_norms_of_divided_tokens_are_summed_in_one_all_reduce(step):
    for name, num_layers in (("tp tokens", 2), ("tp tokens deeper", 3)):
        update = [each for each in step(name) if each.phase == "optimizer"]
        assert [each.numel for each in update] == [num_layers * 4 * DIM, 6]


def test_a_divided_vocabulary_costs_as_much_with_divided_tokens(step):
    assert added(step("tp tokens vocabulary"), step("tp tokens")) == added(
        step("tp vocabulary"), step("tp")
    )


@pytest.mark.parametrize("plan", ["tp", "tp tokens"])
def test_projections_that_read_the_same_share_what_is_sent(plan, step):
    """Queries, keys and values of a Llama, gate and up: no more than one fused projection."""

    def per_block(name):
        more = counted(step(f"{name} deeper")) - counted(step(name))
        return {key: n for key, n in more.items() if key[0] != "optimizer"}

    assert per_block(f"{plan} llama") == per_block(plan)


# -- fully sharded ---------------------------------------------------------------------------


def fsdp_step(num_layers):
    """Blocks are gathered twice; embedding, head and norm stay from forward to backward."""
    return Counter(
        {
            ("forward", "all_gather", BLOCK_WEIGHTS): num_layers,
            ("backward", "all_gather", BLOCK_WEIGHTS): num_layers,
            ("backward", "reduce_scatter", BLOCK_WEIGHTS): num_layers,
            ("forward", "all_gather", END_WEIGHTS): 1,
            ("backward", "reduce_scatter", END_WEIGHTS): 1,
        }
    )


@pytest.mark.parametrize(("name", "num_layers"), [("fsdp", 2), ("fsdp deeper", 3)])
def test_fsdp_gathers_a_block_forward_and_backward_and_reduces_it_once(name, num_layers, step):
    assert counted(step(name)) == fsdp_step(num_layers) + AGREED


@pytest.mark.parametrize(("name", "num_layers"), [("fsdp", 2), ("fsdp deeper", 3)])
def test_fsdp_sends_half_of_the_weights_a_gathering_and_a_reduction(name, num_layers, step):
    blocks, ends = num_layers * BLOCK_WEIGHTS * FLOAT_BYTES, END_WEIGHTS * FLOAT_BYTES
    assert moved(step(name), "forward") == (blocks + ends) / 2
    assert moved(step(name), "backward") == (2 * blocks + ends) / 2


def test_fsdp_reduces_after_each_micro_batch(step):
    one = fsdp_step(2)
    assert counted(step("fsdp accumulated")) == one + one + AGREED


# -- data parallel ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dp", "dp accumulated", "dp in buckets"])
def test_dp_reduces_every_gradient_once_per_step(name, step):
    gradients = [each for each in step(name) if each.phase == "backward"]
    assert {each.kind for each in gradients} == {"all_reduce"}
    assert sum(each.num_bytes for each in gradients) == FLOAT_BYTES * (
        2 * BLOCK_WEIGHTS + END_WEIGHTS
    )
    assert counted(step(name)) - counted(gradients) == AGREED


def test_smaller_buckets_are_more_of_them(step):
    whole, cut = (
        [each for each in step(name) if each.phase == "backward"]
        for name in ("dp", "dp in buckets")
    )
    assert len(whole) == 1
    assert len(cut) > 2


# -- context and pipeline parallel -----------------------------------------------------------


def test_cp_gathers_keys_and_values_of_each_block_and_scatters_their_gradients(step):
    per_block = counted(step("cp deeper")) - counted(step("cp"))
    assert Counter({k: n for k, n in per_block.items() if k[2] == ACTIVATION}) == Counter(
        {("forward", "all_gather", ACTIVATION): 2, ("backward", "reduce_scatter", ACTIVATION): 2}
    )


def test_a_pipeline_sends_each_micro_batch_there_and_its_gradient_back(step):
    between = [each for each in step("pp") if each.kind in ("send", "receive")]
    assert Counter((each.kind, each.numel) for each in between) == Counter(
        {("send", ACTIVATION // 4): 4, ("receive", ACTIVATION // 4): 4}
    )


# -- agreement -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_ranks_agree_on_a_verdict_and_where_they_have_different_samples_on_their_number(name, step):
    small = [each for each in step(name) if each.numel in (1, 6)]
    has_same = name.startswith(("tp", "pp"))
    assert counted(small) == (VERDICT if has_same else AGREED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in QUIET if name != "seldom"])
def test_metric_logging_adds_no_collective(name, layout, ranks):
    for rank in ranks:
        seldom, logged = rank[f"{layout} seldom"], rank[f"{layout} {name}"]
        assert logged[0] == seldom[0]  # of the last step, in order and in full
        assert logged[2] == seldom[2]  # operations of each step


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_callback_that_talks_to_other_ranks_would_be_noticed(layout, ranks):
    quiet, talks = ranks[0][f"{layout} seldom"], ranks[0][f"{layout} talks"]
    assert added(talks[0], quiet[0]) == Counter({("logging", "all_reduce", 1): 1})
    assert talks[1] == quiet[1] + 1
