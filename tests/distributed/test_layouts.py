"""However a model is spread over ranks, it learns what one process learns."""

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.ranks import run_ranks, train

LAYOUTS = {
    "dp2": 2, "fsdp2": 2, "tp2": 2, "pp2": 2, "cp2": 2, "dp2-tp2": 4, "fsdp2-pp2": 4,
    "tp2-pp2": 4, "dp2-tp2-pp2": 8,
}  # fmt: skip
FURTHER = {"dp2-fsdp2": 4, "fsdp2-cp2": 4, "cp2-pp2": 4, "cp2-tp2": 4, "fsdp2-tp2-pp2": 8, "dp3": 3}
SCHEDULES = (
    "gpipe",
    "interleaved_1f1b",
    "looped_bfs",
    "interleaved_zero_bubble",
    "zbv_zero_bubble",
)
# Twenty steps of AdamW in fp32. Sums in another order differ by an ulp; Adam divides a gradient by
# its own size, so that where it is all rounding a weight may move by a share of lr=1e-3.
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 2e-4
_references = {}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One process."""

    def get(kind):
        if kind not in _references:
            run = tmp_path_factory.mktemp(kind) / "run"
            _references[kind] = (train(kind, run), load_file(run / "model.bin"))
        return _references[kind]

    yield get
    _references.clear()


def compare(expected, found, run):
    (losses, norms, _), weights = expected
    assert len(found[0]) == len(losses) == 20
    assert max(abs(a - b) for a, b in zip(losses, found[0], strict=True)) < LOSS_TOLERANCE
    assert max(abs(a - b) / a for a, b in zip(norms, found[1], strict=True)) < 1e-4
    loaded = load_file(run / "model.bin")
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=WEIGHT_TOLERANCE)


# a product of axes is one more proof of the same code where a GPT does the same
EVERY = [
    pytest.param(
        layout, kind,
        marks=pytest.mark.long
        if LAYOUTS[layout] > 2 and kind != "gpt"
        else (),
    )
    for kind in ("vit", "gpt", "llama", "encoder")
    for layout in LAYOUTS
]  # fmt: skip


@pytest.mark.parametrize(("layout", "kind"), EVERY)
def test_a_layout_learns_what_one_process_learns(layout, kind, reference, tmp_path):
    run = tmp_path / "run"
    found = run_ranks(LAYOUTS[layout], train, kind, run, parallel=layout, folder=tmp_path / "ranks")
    compare(reference(kind), found[0], run)
    assert all(other[0] == found[0][0] for other in found)  # the same bits on every rank


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gpt2", "masked_encoder", "qwen3"])
@pytest.mark.parametrize("layout", ["dp2", "fsdp2", "tp2", "pp2", "cp2", "fsdp2-tp2"])
def test_models_for_published_weights_do_as_well(layout, kind, reference, tmp_path):
    run = tmp_path / "run"
    size = 4 if "-" in layout else 2
    found = run_ranks(size, train, kind, run, parallel=layout, folder=tmp_path / "ranks")
    compare(reference(kind), found[0], run)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gpt", "llama"])
@pytest.mark.parametrize("layout", FURTHER)
def test_further_products_of_axes_do_as_well(layout, kind, reference, tmp_path):
    run = tmp_path / "run"
    found = run_ranks(FURTHER[layout], train, kind, run, parallel=layout, folder=tmp_path / "ranks")
    compare(reference(kind), found[0], run)


@pytest.mark.parametrize("kind", ["gpt", pytest.param("encoder", marks=pytest.mark.long)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_pipeline_schedule_computes_the_same(schedule, kind, reference, tmp_path):
    run, plan = tmp_path / "run", {"pp": 2, "schedule": schedule}
    found = run_ranks(2, train, kind, run, parallel=plan, folder=tmp_path / "ranks")
    compare(reference(kind), found[0], run)


@pytest.mark.parametrize("kind", ["gpt", "llama", pytest.param("qwen3", marks=pytest.mark.long)])
@pytest.mark.parametrize("sequence", [False, True])
def test_tensor_parallel_with_and_without_divided_tokens(sequence, kind, reference, tmp_path):
    run, plan = tmp_path / "run", {"tp": 2, "sequence_parallel": sequence, "vocab_parallel": False}
    found = run_ranks(2, train, kind, run, parallel=plan, folder=tmp_path / "ranks")
    compare(reference(kind), found[0], run)


@pytest.mark.parametrize(
    "layout",
    ["dp4", "fsdp4", *(pytest.param(p, marks=pytest.mark.long) for p in ("dp4-pp2", "fsdp2-cp2"))],
)
def test_batches_that_leave_ranks_without_a_sample_count_right(layout, tmp_path):
    settings = {"batch_size": 16, "epochs": 3, "max_steps": None, "grad_accum_steps": 1}
    settings["data_size"] = 34  # the last batch of an epoch has two samples
    expected = train("gpt", tmp_path / "one", **settings)
    size = 8 if layout == "dp4-pp2" else 4
    found = run_ranks(
        size, train, "gpt", tmp_path / "run", parallel=layout, folder=tmp_path / "ranks",
        **settings,
    )[0]  # fmt: skip
    assert len(found[0]) == len(expected[0]) == 9
    assert found[0] == pytest.approx(expected[0], abs=LOSS_TOLERANCE)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize("layout", ["dp2", "fsdp2", "tp2", "pp2", "cp2", "dp2-tp2"])
def test_evaluation_and_average_are_those_of_one_process(layout, tmp_path):
    settings = {"ema_decay": 0.9, "max_steps": 8, "val_size": 21}
    expected = train("gpt", tmp_path / "one", **settings)[2]
    size = 4 if "-" in layout else 2
    found = run_ranks(
        size, train, "gpt", tmp_path / "run", parallel=layout, folder=tmp_path / "ranks",
        **settings,
    )  # fmt: skip
    for _, _, last in found:
        assert last["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-5)
        assert last["val_accuracy"] == pytest.approx(expected["val_accuracy"], abs=1e-9)
    one, many = (load_file(tmp_path / run / "model.bin") for run in ("one", "run"))
    for name in one:
        torch.testing.assert_close(many[name], one[name], rtol=0, atol=WEIGHT_TOLERANCE)
    kept = [load_file(tmp_path / r / "evaluation/predictions.safetensors") for r in ("one", "run")]
    assert torch.equal(kept[0]["index"], kept[1]["index"])
    torch.testing.assert_close(kept[0]["loss"], kept[1]["loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.long  # compiles C++
@pytest.mark.parametrize("kind", ["gpt", "llama", "vit"])
@pytest.mark.parametrize("layout", ["dp2", "fsdp2", "tp2", "pp2", "cp2"])
def test_compiled_blocks_learn_what_one_process_learns(layout, kind, reference, tmp_path):
    run = tmp_path / "run"
    found = run_ranks(
        2, train, kind, run, parallel=layout, graph="static", folder=tmp_path / "ranks",
        timeout_s=300,
    )  # fmt: skip
    (losses, _, _), _ = reference(kind)
    assert found[0][0] == pytest.approx(losses, abs=1e-4)
