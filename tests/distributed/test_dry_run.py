"""A step on paper asks for the collectives of a real one, and needs its memory."""

from collections import Counter

import pytest
from tests.distributed.measured_steps import make_trainer, measure_steps
from tests.distributed.ranks import run_ranks

from deepseek.trainer.dry_run import dry_run

RUNS = {
    "dp": {"parallel": "dp2"},
    "dp accumulated": {"parallel": "dp2", "grad_accum_steps": 4},
    "fsdp": {"parallel": "fsdp2"},
    "fsdp accumulated": {"parallel": "fsdp2", "grad_accum_steps": 4},
    "fsdp bf16": {"parallel": "fsdp2", "precision": "bf16"},
    "fsdp full": {"parallel": "fsdp2", "memory": "full"},
    "tp": {"parallel": "tp2"},
    "tp whole": {"parallel": {"tp": 2, "sequence_parallel": False, "vocab_parallel": False}},
    "cp": {"parallel": "cp2"},
    "pp": {"parallel": {"pp": 2, "micro_batches": 4}},
    **{
        f"{schedule} {memory}": {
            "parallel": {"pp": 2, "micro_batches": 4, "schedule": schedule}, "memory": memory
        }
        for schedule, memory in (
            ("gpipe", "off"), ("interleaved_zero_bubble", "off"), ("zbv_zero_bubble", "selective"),
        )
    },
}  # fmt: skip
HOST_BYTES = (8, 48)
"""Count of items; loss, norm, damage, wish to stop, lack of memory and time used."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Real steps of rank 1."""
    return run_ranks(2, measure_steps, RUNS, folder=tmp_path_factory.mktemp("ranks"))[1]


@pytest.fixture(scope="module")
def walked():
    return {
        name: dry_run(lambda s=settings: make_trainer(s, "meta"), world_size=2, rank=1)
        for name, settings in RUNS.items()
    }


@pytest.mark.parametrize("name", RUNS)
def test_it_asks_for_the_collectives_of_a_real_step(name, measured, walked):
    number, num_bytes = Counter(), Counter()
    for kind, size in measured[name][0]:
        if size not in HOST_BYTES:
            number[kind] += 1
            num_bytes[kind] += size
    on_paper, bytes_on_paper = Counter(), Counter()
    for each in walked[name].traffic:
        on_paper[each.kind] += each.number
        bytes_on_paper[each.kind] += each.num_bytes
    assert not walked[name].notes
    assert on_paper == number
    assert bytes_on_paper == num_bytes


# between micro-batches Gloo's threads hold what they have reduced for a while, now more, now less
@pytest.mark.parametrize("name", sorted(RUNS.keys() - {"fsdp accumulated"}))
def test_it_needs_the_memory_of_a_real_step(name, measured, walked):
    _, peak, before, received = measured[name]
    run = walked[name]
    assert sum(run.held.values()) == before
    assert run.peak_bytes == pytest.approx(peak + before + received, rel=0.05)
    if run.forecast is not None and "pp" in RUNS[name]["parallel"]:
        planned = sum(run.forecast.memory.values())
        assert planned == pytest.approx(peak + before + received, rel=0.12)
