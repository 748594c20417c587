"""A Hugging Face model learns on any layout what it learns in one process."""

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.ranks import run_ranks

pytest.importorskip("transformers", reason="needs the extra text: transformers")

from tests.distributed.huggingface_models import train_by_hand, train_pretrained

LAYOUTS = {"tp2": 2, "pp2": 2, "fsdp2-tp2": 4, "dp2-tp2-pp2": 8}
TIED = {"tie_word_embeddings": True}
# Ten steps of AdamW in fp32, as in test_layouts.py
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 2e-4
TIMEOUT_S = (
    280.0  # a rank imports transformers: some seconds each, one after the other on two cores
)
_references = {}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One process."""

    def get(kind, changes, **settings):
        key = repr((kind, changes, settings))
        if key not in _references:
            run = tmp_path_factory.mktemp(kind) / "run"
            trained = train_pretrained(kind, run, changes, **settings)
            _references[key] = (trained, load_file(run / "model.bin"))
        return _references[key]

    yield get
    _references.clear()


def check(expected, size, layout, kind, changes, folder, **settings):
    run = folder / "run"
    found = run_ranks(
        size, train_pretrained, kind, run, changes, parallel=layout, folder=folder / "ranks",
        timeout_s=TIMEOUT_S, **settings,
    )  # fmt: skip
    (losses, norms, record), weights = expected
    assert len(found[0][0]) == len(losses) == 10
    assert max(abs(a - b) for a, b in zip(losses, found[0][0], strict=True)) < LOSS_TOLERANCE
    assert max(abs(a - b) / a for a, b in zip(norms, found[0][1], strict=True)) < 1e-4
    assert all(other[0] == found[0][0] for other in found)  # the same bits on every rank
    loaded = load_file(run / "model.bin")
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=WEIGHT_TOLERANCE)
    if "val_loss" in record:
        assert found[0][2]["val_loss"] == pytest.approx(record["val_loss"], abs=LOSS_TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("llama", {}), pytest.param("qwen2", TIED, marks=pytest.mark.long)],
)
@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=pytest.mark.long if k > 4 else ()) for n, k in LAYOUTS.items()]
)
def test_a_layout_learns_what_one_process_learns(layout, kind, changes, reference, tmp_path):
    expected = reference(kind, changes, val_size=21)
    check(expected, LAYOUTS[layout], layout, kind, changes, tmp_path, val_size=21)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3", {}),  # norms of heads: each rank has the gradient of its own
        ("gemma3", {}),  # an embedding with a scale, tied
        ("phi3", {}),  # fused projections, whole between linears that are divided
        ("mistral", {"vocab_size": 67}),  # a vocabulary that stays whole
        ("llama", {"pad_token_id": 40, "attention_bias": True}),  # a row without gradient
    ],
)
def test_the_styles_of_tp_plans_mean_what_they_say(kind, changes, reference, tmp_path):
    check(reference(kind, changes), 2, "tp2", kind, changes, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2-tp2-pp2"])
@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("qwen2", TIED)])
def test_a_loss_in_chunks_changes_nothing(kind, changes, layout, reference, tmp_path):
    expected = reference(kind, changes, val_size=21)
    settings = {"val_size": 21, "loss_chunks": 3}
    check(expected, LAYOUTS[layout], layout, kind, changes, tmp_path, **settings)


def test_every_stage_makes_the_mask_of_its_tokens(reference, tmp_path):
    expected = reference("llama", {}, pad=7)
    assert expected[0][0] != reference("llama", {}, val_size=21)[0][0]  # it matters
    check(expected, 2, "pp2", "llama", {}, tmp_path, pad=7)


def test_a_head_beside_the_pp_plan_is_in_the_last_stage(reference, tmp_path):
    changes = {"pad_token_id": 5, "num_labels": 5}
    expected = reference("llama_classifier", changes)
    check(expected, 2, "pp2", "llama_classifier", changes, tmp_path)


def test_what_is_done_around_the_layers_is_not_done_again(reference, tmp_path):
    check(reference("gemma3", {}), 2, "pp2", "gemma3", {}, tmp_path)  # scales its embeddings


@pytest.mark.long
@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zbv_zero_bubble"])
def test_several_stages_on_a_rank(schedule, reference, tmp_path):
    layout = {"pp": 2, "tp": 2, "schedule": schedule}
    check(reference("qwen2", TIED), 4, layout, "qwen2", TIED, tmp_path)


def test_a_compiled_layer_of_a_stage(reference, tmp_path):
    expected = reference("llama", {}, val_size=21)
    check(expected, 2, "pp2", "llama", {}, tmp_path, graph="static", val_size=21)


def test_a_weight_used_past_the_plan_is_explained(tmp_path):
    found = run_ranks(
        2, train_by_hand, tmp_path / "run", "tp2", folder=tmp_path / "ranks", timeout_s=TIMEOUT_S
    )
    for text in found:
        assert "a divided weight meets a whole one in one operation" in text
        assert "hf.model.embed_tokens.weight" in text
        assert "set tp=1" in text
