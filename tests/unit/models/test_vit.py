import math

import pytest
import torch
import torch.nn.functional as F

from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, VisionTransformer
from deepseek.models.vit import DropPath
from deepseek.models.zoo import build_model

SMALL = {"image_size": 16, "patch_size": 8, "num_layers": 2, "dim": 24, "heads": 3}


# Parameters with 1000 classes, as published: timm 1.0 results, `vit_*_patch16_224`.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_large_patch16_224", 304_326_632),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, count):
    with torch.device("meta"):
        model = build_model(name, 1000, {})
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_numbers_are_those_of_timm_with_the_same_weights():
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3,
        num_classes=5,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(theirs.head.weight)
    ours = VisionTransformer(**SMALL, num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-4)


def test_an_untrained_model_has_the_loss_of_a_guess():
    model = VisionTransformer(**SMALL, num_classes=10)
    loss = F.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.arange(4))
    assert loss.item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("distillation", ["token", "heads"])
def test_a_distillation_token_is_the_second_and_has_a_head_if_asked(distillation, tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, dim=24, heads=3, num_classes=5,
        distillation=distillation,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.randn(2, 3, 16, 16)
    assert model.embed(images).shape == (2, 4 + 2, 24)
    x = model.embed(images)
    for block in model.blocks:
        x = block(x)
    x = model.norm(x)
    want = model.head(x[:, 0])
    if distillation == "heads":
        want = (want + model.head_dist(x[:, 1])) / 2
    torch.testing.assert_close(model(images), want)
    engine = ModelEngine.wrap(model)
    engine.save(tmp_path / "model.bin")
    assert torch.equal(ModelEngine.load(tmp_path / "model.bin").eval()(images), model(images))


def test_images_may_be_oblong_and_pooled_by_the_mean():
    model = VisionTransformer(
        image_size=(16, 32), patch_size=8, num_layers=1, dim=24, heads=3, num_classes=2, pool="mean"
    )
    assert model.pos_embed.shape == (1, 8, 24)
    assert model(torch.randn(2, 3, 16, 32)).shape == (2, 2)
    assert model.config["image_size"] == [16, 32]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 100, "patch_size": 16}, "patch_size=16 does not divide image_size=100"),
        ({"heads": 5}, "heads=5 does not divide dim=24"),
        ({"pool": "max"}, "pool='max'"),
        ({"distillation": "soft"}, "distillation='soft'"),
        ({"distillation": "token", "pool": "mean"}, "pool='mean' has none"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"dim": 24.0}, "dim=24.0"),
        ({"image_size": (16, 16, 16)}, "image_size"),
        ({"image_size": "16"}, "image_size"),
    ],
)
def test_wrong_arguments_are_named_with_a_fix(change, message):
    with pytest.raises(ConfigError) as caught:
        VisionTransformer(**{**SMALL, **change})
    assert message in str(caught.value)
    assert "Fix:" in str(caught.value)


def test_images_of_another_size_are_refused():
    model = VisionTransformer(**SMALL, num_classes=2)
    with pytest.raises(ConfigError, match=r"24x16 pixels do not fit .*image_size=16"):
        model(torch.zeros(1, 3, 24, 16))


def test_stochastic_depth_drops_whole_samples_in_training_only():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    kept = drop(x).flatten(1)
    assert ((kept == 0).all(1) | torch.isclose(kept, torch.tensor(1 / 0.75)).all(1)).all()
    assert abs(kept.mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_rises_from_zero_over_the_blocks():
    model = VisionTransformer(**{**SMALL, "num_layers": 3}, drop_path=0.2)
    assert [block.drop_path.probability for block in model.blocks] == [0, 0.1, 0.2]


def test_bfloat16_autocast_stays_close_and_trains():
    torch.manual_seed(0)
    model = VisionTransformer(**SMALL, num_classes=5)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    images = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    logits.float().sum().backward()
    torch.testing.assert_close(logits.float(), model(images), atol=0.05, rtol=0.05)
