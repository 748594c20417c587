import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.deploy import fuse, prune
from deepseek.deploy.pruning.groups import find_groups
from deepseek.deploy.pruning.units import silence
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.trainer import Trainer

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(0))
QUIET = {
    "loggers": ("jsonl",), "num_workers": 0, "precision": "fp32", "batch_size": 16, "device": "cpu",
}  # fmt: skip
BLOCKS = {"num_layers": 2, "dim": 32, "heads": 4}
MODELS = {
    "resnet": ({"num_layers": 8, "num_classes": 5}, IMAGES),
    "imagenet_resnet": ({"depths": (1, 1, 1, 1), "block": "basic", "num_classes": 5}, IMAGES),
    "unet3d": ({"features": (4, 8), "num_classes": 3}, torch.randn(1, 1, 8, 16, 16)),
    "vit": ({"image_size": 32, "patch_size": 8, "num_classes": 5, **BLOCKS}, IMAGES),
    "encoder": ({"vocab_size": 20, "context_length": 8, "num_classes": 5, **BLOCKS}, TOKENS),
    "gpt": ({"context_length": 8, "num_classes": 20, **BLOCKS}, TOKENS),
    "llama": ({"context_length": 8, "num_classes": 20, "kv_heads": 2, **BLOCKS}, TOKENS),
    "timm/resnet10t": ({"num_classes": 5}, IMAGES),
    "timm/mobilenetv3_small_050": ({"num_classes": 5}, IMAGES),
}


def build(name):
    torch.manual_seed(0)
    settings, inputs = MODELS[name]
    engine = ModelEngine(name, **settings)
    for parameter in engine.parameters():
        if not parameter.any():  # heads that begin at zero would hide any difference
            nn.init.normal_(parameter, std=0.05)
    return engine.eval(), inputs


def make_pictures(num_samples=64):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_samples, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.arange(num_samples) % 5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_really_smaller_and_is_loaded_as_it_was_saved(name, tmp_path):
    engine, inputs = build(name)
    before = engine.module(inputs)
    pruned = prune(engine, flops=0.6, inputs=inputs, latency=False)
    assert pruned.after.flops <= 0.6 * pruned.before.flops
    assert pruned.after.flops > 0.5 * pruned.before.flops
    assert pruned.after.num_parameters < pruned.before.num_parameters
    assert torch.equal(engine.module(inputs), before)
    pruned.model.save(tmp_path / "model.bin")
    again = ModelEngine.load(tmp_path / "model.bin").eval()
    assert again.changes == pruned.model.changes
    assert torch.equal(again.module(inputs), pruned.model.eval().module(inputs))
    assert "FLOPs" in pruned.describe()


@pytest.mark.parametrize("name", ["resnet", "llama", "gpt", "vit", "unet3d"])
def test_what_is_left_computes_what_the_model_does_without_the_units_that_went(name):
    engine, inputs = build(name)
    pruned = prune(engine, flops=0.6, inputs=inputs, latency=False, criterion="random")
    groups, _ = find_groups(engine, inputs)
    expected, _ = build(name)
    cut = {layer.name: layer for layer in pruned.cut}
    for group in groups:
        if group.name in cut:
            kept = kept_units(engine, pruned.model, group)
            assert int(kept.sum()) == cut[group.name].after
            silence(expected.module, group, kept)
    torch.testing.assert_close(
        pruned.model.eval().module(inputs), expected.eval().module(inputs), atol=1e-4, rtol=1e-4
    )


def kept_units(engine, pruned, group):
    """Return which units of a group are in the pruned model, by the weights that make them."""
    made = next(cut for cut in group.cuts if not cut.reads and cut.tensor.endswith("weight"))
    old = engine.module.get_parameter(made.tensor).detach().movedim(made.dim, 0).flatten(1)
    new = pruned.module.get_parameter(made.tensor).detach().movedim(made.dim, 0).flatten(1)
    # other dims may be cut as well: a row is known by numbers that it still has
    kept = torch.zeros(group.num_units, dtype=torch.bool)
    for place, row in enumerate(old):
        if any(set(each.tolist()) <= set(row.tolist()) for each in new):
            kept[made.unit_of[place]] = True
    return kept


def test_a_model_can_be_pruned_twice(tmp_path):
    engine, inputs = build("resnet")
    once = prune(engine, flops=0.7, inputs=inputs, latency=False)
    twice = prune(once.model, flops=0.7, inputs=inputs, latency=False)
    assert twice.after.flops <= 0.7 * once.after.flops
    twice.model.save(tmp_path / "model.bin")
    again = ModelEngine.load(tmp_path / "model.bin").eval()
    assert torch.equal(again.module(inputs), twice.model.eval().module(inputs))


def test_what_matters_least_goes_first():
    engine, inputs = build("resnet")
    conv = engine.module.layer1[0].conv1
    with torch.no_grad():
        conv.weight[::2] *= 1e-3
        engine.module.layer1[0].conv2.weight[:, ::2] *= 1e-3
    pruned = prune(engine, flops=0.9, inputs=inputs, latency=False, skip=("layer2", "layer3"))
    left = pruned.model.module.layer1[0].conv1.weight
    assert len(left) < 16
    assert all(any(torch.equal(row, each) for each in left) for row in conv.weight[1::2])


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "bn_scale", "random"])
def test_every_criterion_keeps_to_the_budget(criterion):
    engine, inputs = build("resnet")
    data = make_pictures()
    pruned = prune(
        engine, parameters=0.6, criterion=criterion, data=data, inputs=inputs, latency=False
    )
    assert 0.5 < pruned.after.num_parameters / pruned.before.num_parameters <= 0.6


def test_taylor_knows_what_the_loss_depends_on():
    engine, inputs = build("resnet")
    with torch.no_grad():  # large weights that nothing sees
        engine.module.layer1[0].conv1.weight[:8] *= 100
        engine.module.layer1[0].bn1.weight[:8] = 0
        engine.module.layer1[0].bn1.bias[:8] = -1
    pruned = prune(
        engine, flops=0.9, criterion="taylor", data=make_pictures(), inputs=inputs, latency=False,
        skip=("layer2", "layer3"),
    )  # fmt: skip
    scale = pruned.model.module.layer1[0].bn1.weight
    assert len(scale) < 16
    assert int((scale != 0).sum()) == 8


def test_taylor_ranks_frozen_weights_and_leaves_them_frozen():
    engine, inputs = build("resnet")
    engine.module.layer1.requires_grad_(False)
    pruned = prune(
        engine, flops=0.9, criterion="taylor", data=make_pictures(), inputs=inputs, latency=False
    )
    assert pruned.after.flops < pruned.before.flops
    assert not engine.module.layer1[0].conv1.weight.requires_grad


@pytest.mark.parametrize(("name", "what"), [("vit", "blocks.0"), ("resnet", "layer1.1")])
def test_the_block_that_changes_least_is_dropped(name, what, tmp_path):
    settings = {"num_layers": 14} if name == "resnet" else {}
    torch.manual_seed(0)
    engine = ModelEngine(name, **{**MODELS[name][0], **settings})
    block = engine.module.get_submodule(what)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter *= 1e-3
    pruned = prune(
        engine, flops=0.9, what="depth", data=make_pictures(), inputs=IMAGES, latency=False
    )
    assert pruned.dropped == (what,)
    pruned.model.save(tmp_path / "model.bin")
    again = ModelEngine.load(tmp_path / "model.bin").eval()
    assert torch.equal(again.module(IMAGES), pruned.model.eval().module(IMAGES))


class Branch(nn.Module):
    """A block that adds what a list of blocks of its own makes."""

    def __init__(self, parts=0):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.parts = nn.Sequential(*(Branch() for _ in range(parts)))

    def forward(self, x):
        return x + 0.1 * self.linear(self.parts(x))


def test_blocks_inside_of_blocks_go_with_them(tmp_path):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(*(Branch(3) for _ in range(4))), nn.Linear(8, 5))

    data = TensorDataset(torch.randn(32, 8), torch.arange(32) % 5)
    pruned = prune(
        make(), parameters=0.6, what="depth", data=data, inputs=torch.randn(2, 8), latency=False
    )
    assert len(pruned.dropped) == 2
    assert all(name.startswith("0.") and name.count(".") == 1 for name in pruned.dropped)
    pruned.model.save(tmp_path / "model.bin")
    again = ModelEngine.load(tmp_path / "model.bin", make()).eval()
    assert torch.equal(again(data[:2][0]), pruned.model.eval()(data[:2][0]))


def test_a_model_whose_blocks_all_change_the_shape_is_refused():
    engine, _ = build("unet3d")
    volumes = torch.randn(4, 1, 8, 16, 16)
    data = TensorDataset(volumes, torch.zeros(4, 8, 16, 16, dtype=torch.int64))
    with pytest.raises(ConfigError, match="no block of this model keeps the shape"):
        prune(engine, flops=0.5, what="depth", data=data, inputs=volumes[:1], latency=False)


def test_a_pruned_model_is_trained_on_saved_by_the_run_and_fused(tmp_path):
    engine, inputs = build("resnet")
    pruned = prune(engine, flops=0.5, inputs=inputs, latency=False).model
    data = make_pictures()
    trainer = Trainer(pruned, data, data, run_dir=tmp_path / "run", max_steps=4, **QUIET)
    trainer.fit()
    again = ModelEngine.load(tmp_path / "run/model.bin")
    assert again.changes == pruned.changes
    assert len(fuse(again, inputs).folded) == 7


def test_a_decoder_with_fewer_heads_writes_as_it_would_without_a_cache():
    engine, inputs = build("llama")
    pruned = prune(engine, flops=0.6, inputs=inputs, latency=False).model.eval()
    model = pruned.module
    assert {heads for heads, _ in model.kv_shapes} == {1, 2}  # of two blocks
    cache = model.make_cache(2, 8)
    with torch.no_grad():
        whole = model(inputs)
        positions = torch.arange(8).expand(2, 8)
        parts = [
            model.classify(model.run_cached(inputs[:, t : t + 1], positions[:, t : t + 1], cache))
            for t in range(8)
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


def test_latency_is_measured_before_and_after():
    engine, inputs = build("resnet")
    pruned = prune(engine, flops=0.5, inputs=inputs)
    for cost in (pruned.before, pruned.after):
        assert cost.latencies_ms.keys() == {1, 32}
        assert all(time > 0 for time in cost.latencies_ms.values())
    assert "batch 32" in pruned.describe()


def test_what_cannot_be_cut_is_named():
    engine, inputs = build("resnet")
    pruned = prune(engine, flops=0.8, inputs=inputs, latency=False)
    kept = dict(pruned.kept)
    assert kept["linear"] == "its channels are the outputs of the model"
    assert kept["conv1"] == "what is left computes something else without them"  # padded shortcuts


class Twice(nn.Module):
    """One convolution in two places."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("resnet", {"flops": 1.5}, "flops=1.5 is not a share between 0 and 1"),
        ("resnet", {"parameters": 0.0}, "parameters=0.0 is not a share"),
        ("resnet", {"flops": 0.01}, "flops=0.01 would empty a layer"),
        ("resnet", {}, "nothing says how much"),
        ("resnet", {"flops": 0.5, "pattern": "2:4"}, "flops and pattern says how much"),
        ("resnet", {"pattern": "1:4"}, "pattern='1:4' is not known"),
        ("resnet", {"flops": 0.5, "what": "height"}, "what='height' is not known"),
        ("resnet", {"flops": 0.5, "criterion": "luck"}, "criterion='luck' is not known"),
        ("resnet", {"flops": 0.5, "criterion": "taylor"}, "there are no data"),
        ("resnet", {"flops": 0.5, "what": "depth"}, "there are no data"),
        ("resnet", {"flops": 0.5, "min_kept": 1.0}, "min_kept=1.0 is not a share"),
        ("vit", {"flops": 0.5, "criterion": "bn_scale"}, "has no batch norm"),
        ("resnet", {"flops": 0.5, "inputs": None}, "it has no data spec"),
        (nn.LayerNorm(4), {"flops": 0.5}, "neither linears nor convolutions"),
        (Twice(), {"flops": 0.5, "inputs": IMAGES}, "nothing of this model can be cut"),
    ],
)
def test_wrong_inputs_are_refused(model, settings, message):
    inputs = None
    if isinstance(model, str):
        model, inputs = build(model)
    with pytest.raises(ConfigError, match=message):
        prune(model, **{"inputs": inputs, "latency": False, **settings})


def test_a_module_of_the_users_own_is_pruned_and_filled_again(tmp_path):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
            nn.PReLU(8), nn.Flatten(), nn.Linear(8 * 28 * 28, 5),
        )  # fmt: skip

    pruned = prune(make(), parameters=0.5, inputs=IMAGES, latency=False)
    assert pruned.model.module[3].groups == len(pruned.model.module[4].weight) < 8
    pruned.model.save(tmp_path / "model.bin")
    again = ModelEngine.load(tmp_path / "model.bin", make()).eval()
    assert torch.equal(again(IMAGES), pruned.model.eval()(IMAGES))


def test_ranks_cannot_divide_a_pruned_model(monkeypatch):
    engine, inputs = build("gpt")
    pruned = prune(engine, flops=0.6, inputs=inputs, latency=False).model
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    data = TensorDataset(TOKENS, TOKENS)
    with pytest.raises(ConfigError, match="tp=2 and a pruned model"):
        Trainer(pruned, data, parallel="tp2", task="language_modelling", max_steps=1, **QUIET)
