"""Optimizer state in 8 bits and weights in bf16, on several ranks and from layout to layout."""

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.ranks import RankFailed, Trajectory, make_data, make_model, run_ranks
from tests.distributed.shortage import train_short

from deepseek.checkpoint import load_checkpoint
from deepseek.config.parallel import ParallelConfig
from deepseek.models import GPT, ModelEngine
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.plan import BatchFacts, ModelFacts, resolve_plan
from deepseek.parallel.world import World
from deepseek.trainer import Callback, Trainer

pytest.importorskip("torchao", reason="the extra memory")
CPU = torch.device("cpu")
EIGHT_BITS = {"optimizer": "adamw8bit"}
BF16 = {"param_dtype": "bf16", "precision": "bf16"}


def train(run_dir, parallel, **settings):
    torch.compiler.set_stance("force_eager")
    torch.manual_seed(1)
    model = GPT(context_length=8, num_layers=2, dim=128, heads=4)
    seen = Trajectory()
    chosen = {
        "batch_size": 16, "max_steps": 6, "lr": 1e-3, "precision": "fp32", "loggers": [],
        "num_workers": 0, "device": "cpu", "checkpoint_every": 3, "keep_checkpoints": 9,
        **settings,
    }  # fmt: skip
    trainer = Trainer(
        model, make_data("gpt"), parallel=parallel, run_dir=run_dir, callbacks=[seen], **chosen
    )
    trainer.fit()
    torch.compiler.set_stance("default")
    held = {
        w.name: w.local.detach().float() for w in trainer.assembly.step.parallel.weights.weights
    }
    return seen.losses, held


def run(plan, folder, run_dir, **settings):
    if plan == "none":
        return [train(run_dir, plan, **settings)]
    return run_ranks(2, train, run_dir, plan, folder=folder / f"ranks_{plan}", **settings)


def state(run_dir, step):
    return load_checkpoint(run_dir / f"checkpoints/step_{step}").tensors["optimizer"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process."""
    folder = tmp_path_factory.mktemp("whole")
    return train(folder / "run", "none", **EIGHT_BITS)[0], folder / "run"


@pytest.mark.parametrize("plan", ["dp2", "fsdp2", "tp2", "pp2"])
def test_state_in_8_bits_learns_on_every_layout_what_one_process_learns(plan, whole, tmp_path):
    found = run(plan, tmp_path, tmp_path / "run", **EIGHT_BITS)[0][0]
    assert found == pytest.approx(whole[0], abs=2e-3)
    one, many = state(whole[1], 6), state(tmp_path / "run", 6)
    assert sorted(one) == sorted(many)
    for name in one:
        assert one[name].dtype == many[name].dtype, name
        # tp cuts the rows of some linears: their blocks are shorter
        assert one[name].shape == many[name].shape or (plan == "tp2" and "scale" in name), name
    same = [name for name in one if one[name].shape == many[name].shape]
    scales = [name for name in same if name.endswith("exp_avg_sq_scale")]
    assert len(scales) > 4
    for name in scales:
        torch.testing.assert_close(many[name], one[name], rtol=0.05, atol=1e-12)


@pytest.mark.parametrize("plan", ["fsdp2", pytest.param("tp2", marks=pytest.mark.long)])
def test_it_goes_on_bit_for_bit_on_the_same_layout_and_on_to_another(plan, whole, tmp_path):
    run(plan, tmp_path, tmp_path / "run", **EIGHT_BITS)
    before = {name: tensor.clone() for name, tensor in state(tmp_path / "run", 6).items()}
    resume = tmp_path / "run/checkpoints/step_3"
    run(plan, tmp_path / "again", tmp_path / "run", resume=resume, **EIGHT_BITS)
    after = state(tmp_path / "run", 6)
    assert all(torch.equal(before[name], after[name]) for name in before)
    resumed = run("none", tmp_path, tmp_path / "run", resume=resume, **EIGHT_BITS)[0][0]
    assert resumed == pytest.approx(whole[0][3:], abs=2e-3)


@pytest.mark.parametrize("plan", ["dp2", "fsdp2"])
def test_weights_in_bf16_stay_equal_where_they_are_copies_and_go_on_bit_for_bit(plan, tmp_path):
    ranks = run(plan, tmp_path, tmp_path / "run", **BF16)
    assert ranks[0][0][-1] < ranks[0][0][0]
    if plan == "dp2":
        assert all(torch.equal(ranks[0][1][name], ranks[1][1][name]) for name in ranks[0][1])
    learnt = load_file(tmp_path / "run/model.bin")
    assert {tensor.dtype for tensor in learnt.values()} == {torch.bfloat16}
    resume = tmp_path / "run/checkpoints/step_3"
    run(plan, tmp_path / "again", tmp_path / "run", resume=resume, **BF16)
    again = load_file(tmp_path / "run/model.bin")
    assert all(torch.equal(learnt[name], again[name]) for name in learnt)


def gradients(folder, offloads):
    torch.manual_seed(1)
    world = World(
        resolve_plan(ParallelConfig(dp_shard=2), 2, ModelFacts("GPT"), BatchFacts(8)), CPU
    )
    engine = ModelEngine.wrap(GPT(context_length=8, num_classes=67, num_layers=2, dim=32, heads=4))
    parallel = ParallelModel(engine, world, offloads=offloads)
    tokens = torch.arange(32).view(4, 8) + world.rank
    for _ in range(2):
        parallel.weights.drop_gradients()
        parallel.forward(tokens).float().square().mean().backward()
        found = parallel.take_gradients()
        with torch.no_grad():
            for weight in parallel.weights.trained:
                weight.local.sub_(0.1 * weight.local.grad)
    return [grad.clone() for grad in found]


def test_offloaded_parameters_learn_the_same(tmp_path):
    plain, offloaded = (
        run_ranks(2, gradients, tmp_path, offloads, folder=tmp_path / f"{offloads}")
        for offloads in (False, True)
    )
    for rank in range(2):
        pairs = zip(plain[rank], offloaded[rank], strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)


BACKWARD = {"optimizer_in_backward": True, "clip_grad_norm": None}


class Gradients(Callback):
    """The most gradients that a rank has had at once, in bytes."""

    def __init__(self):
        self.most = 0

    def on_fit_begin(self, trainer):
        """Look whenever one is there."""
        weights = trainer.assembly.step.parallel.weights.trained
        for weight in weights:
            weight.parameter.register_post_accumulate_grad_hook(lambda _: self._look(weights))

    def _look(self, weights):
        found = [w.local for w in weights if w.parameter.grad is not None]
        self.most = max(self.most, sum(local.nbytes for local in found))


def train_plainly(run_dir, plan, **settings):
    seen, gradients = Trajectory(), Gradients()
    chosen = {
        "batch_size": 16, "max_steps": 6, "lr": 1e-2, "precision": "fp32", "num_workers": 0,
        "loggers": [], "device": "cpu", "clip_grad_norm": None, **settings,
    }  # fmt: skip
    trainer = Trainer(
        make_model("gpt", dropout=0.1), make_data("gpt"), parallel=plan, run_dir=run_dir,
        callbacks=[seen, gradients], **chosen,
    )  # fmt: skip
    trainer.fit()
    left = [w.name for w in trainer.trained.weights.weights if w.parameter.grad is not None]
    return seen.losses, seen.norms, gradients.most, left


@pytest.mark.parametrize(
    ("plan", "size", "settings"),
    [
        ("dp2", 2, {}),
        ("fsdp2", 2, {}),
        pytest.param(
            "fsdp2", 2, {"memory": "selective", "precision": "bf16"}, marks=pytest.mark.long
        ),
        pytest.param("dp2", 2, {"memory": "full", "precision": "bf16"}, marks=pytest.mark.long),
        pytest.param("dp2", 2, {"ema_decay": 0.9, "optimizer": "lion"}, marks=pytest.mark.long),
        pytest.param("cp2", 2, {}, marks=pytest.mark.long),
        pytest.param("fsdp2-cp2", 4, {}, marks=pytest.mark.long),
        pytest.param("dp2-fsdp2", 4, {}, marks=pytest.mark.long),
    ],
)
def test_an_update_in_the_backward_pass_is_the_ordinary_one_to_the_bit(
    plan, size, settings, tmp_path
):
    plain, found = (
        run_ranks(
            size,
            train_plainly,
            tmp_path / f"run_{at}",
            plan,
            folder=tmp_path / f"ranks_{at}",
            optimizer_in_backward=at,
            **settings,
        )
        for at in (False, True)
    )
    for rank in range(size):
        assert found[rank][0] == plain[rank][0]
        assert found[rank][1] == pytest.approx(plain[rank][1], rel=1e-5)
        assert not found[rank][3]
        assert found[rank][2] < 0.5 * plain[rank][2]
    one, two = (load_file(tmp_path / f"run_{at}/model.bin") for at in (False, True))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_rank_that_cannot_take_back_its_updates_ends_the_run(tmp_path):
    with pytest.raises(RankFailed, match="out of memory in a backward pass that updates weights"):
        run_ranks(
            2, train_short, tmp_path / "run", "fsdp2", "late backward", limit=0, step=1,
            folder=tmp_path / "ranks", **BACKWARD,
        )  # fmt: skip
