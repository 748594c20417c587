import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.transforms import IMAGENET
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine, Prediction, VisionTransformer

CLASSES = ("daisy", "rose", "tulip")


def make_spec(transform="resize_16", normalization=IMAGENET, channels=3, classes=CLASSES):
    return DataSpec(
        task="classification",
        fields={"inputs": FieldSpec((channels, 16, 16), "uint8")},
        class_names=classes,
        class_counts=(1,) * len(classes),
        transform=transform,
        normalization=normalization,
    )


@pytest.fixture
def engine():
    torch.manual_seed(0)
    engine = ModelEngine("resnet", num_layers=8, width=4)
    engine.bind(make_spec())
    nn.init.normal_(engine.module.linear.weight)
    return engine


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_uint8_images_are_normalised_on_the_way_in(engine):
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    engine.eval()
    assert torch.equal(engine(images), engine(IMAGENET.apply(images)))
    engine.bind(make_spec(normalization=None))
    torch.testing.assert_close(engine(images), engine(images / 255))


def test_uint8_images_without_a_spec_are_refused():
    engine = ModelEngine("resnet20", num_classes=2)
    with pytest.raises(ConfigError, match=r"uint8 images need a normalisation(.|\n)*engine.bind"):
        engine(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_path_picture_and_tensor_give_the_same_prediction(engine, picture, tmp_path):
    picture.save(tmp_path / "photo.png")
    from_path = engine.predict(tmp_path / "photo.png", top_k=2)
    assert isinstance(from_path, Prediction)
    assert from_path.label == CLASSES[from_path.index]
    assert from_path.top[0] == (from_path.label, from_path.prob)
    assert len(from_path.top) == 2
    assert from_path.prob == pytest.approx(from_path.probs.max().item())
    assert from_path.probs.sum().item() == pytest.approx(1)
    for same in (str(tmp_path / "photo.png"), picture):
        assert torch.equal(engine.predict(same).probs, from_path.probs)
    box = picture.resize((24, 16), Image.Resampling.BILINEAR).crop((4, 0, 20, 16))
    tensor = torch.from_numpy(np.array(box)).permute(2, 0, 1)
    torch.testing.assert_close(engine.predict(tensor).probs, from_path.probs, atol=0.1, rtol=0)


def test_lists_and_batches_give_lists_whatever_the_batch_size(engine, picture, tmp_path):
    picture.save(tmp_path / "photo.jpg")
    mixed = [tmp_path / "photo.jpg", picture, torch.zeros(3, 16, 16, dtype=torch.uint8)]
    whole = engine.predict(mixed)
    assert isinstance(whole, list)
    for one, other in zip(whole, engine.predict(mixed, batch_size=2), strict=True):
        torch.testing.assert_close(one.probs, other.probs)
    images = torch.rand(5, 3, 16, 16)
    assert len(engine.predict(images, batch_size=2)) == 5
    assert isinstance(engine.predict(images[:1]), list)
    assert engine.predict([]) == []
    assert engine.predict(images[:0]) == []


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_taken(engine, picture, mode):
    source = picture.convert("L") if mode == "I;16" else picture
    assert engine.predict(source.convert(mode)).label in CLASSES


def test_predict_restores_the_mode_of_every_part(engine):
    engine.train()
    engine.module.bn1.eval()
    before = copy.deepcopy(engine.state_dict())
    engine.predict(torch.rand(2, 3, 16, 16))
    assert engine.training
    assert engine.module.conv1.training
    assert not engine.module.bn1.training
    assert all(torch.equal(value, before[key]) for key, value in engine.state_dict().items())
    with pytest.raises(DataError):
        engine.predict("absent.png")
    assert engine.training


def test_prediction_is_shown_by_names():
    top = [("daisy", 0.75), ("rose", 0.25)]
    prediction = Prediction("daisy", 0, 0.75, top, torch.tensor([0.75, 0.25]))
    assert repr(prediction) == "Prediction(daisy 75.0%, rose 25.0%)"


def test_loaded_model_names_classes_of_a_photo(engine, picture, tmp_path):
    picture.save(tmp_path / "photo.jpg")
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin")
    want = engine.predict(tmp_path / "photo.jpg")
    assert loaded.predict(str(tmp_path / "photo.jpg")).label == want.label


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (3, "x is a int"),
        ([3], "a list holds a int"),
        (torch.zeros(3), r"shape \(3,\) is neither a sample"),
        ([torch.zeros(3, 16, 16), torch.zeros(3, 8, 8)], "different shapes"),
    ],
)
def test_what_cannot_be_predicted_is_named(engine, x, match):
    with pytest.raises((ConfigError, DataError), match=match):
        engine.predict(x)


@pytest.mark.parametrize(
    ("module", "sample", "shape"),
    [
        (nn.Conv3d(1, 2, 1), (1, 4, 8, 6), r"\[2, 4, 8, 6\]"),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), (5,), r"\[5, 3\]"),
    ],
)
def test_predict_of_a_segmenter_says_what_to_use(module, sample, shape):
    dtype = "float32" if len(sample) == 4 else "int64"
    targets = FieldSpec(sample[-3:], "int64")
    fields = {"inputs": FieldSpec(sample, dtype), "targets": targets}
    engine = ModelEngine.wrap(module, DataSpec("segmentation", fields, ("a", "b"), (1, 1)))
    x = torch.zeros(sample, dtype=getattr(torch, dtype))
    for given in (x, x[None]):
        with pytest.raises(ConfigError, match=rf"outputs {shape} for a sample, not one class") as e:
            engine.predict(given)
        for name in ("engine(batch)", "VolumeSegmenter", "VolumeDetector"):
            assert name in e.value.fix


def test_pictures_need_a_transform_that_a_spec_can_hold(engine, picture):
    engine.bind(make_spec(transform=None))
    with pytest.raises(ConfigError, match=r"Python function as transform(.|\n)*give the tensor"):
        engine.predict(picture)
    with pytest.raises(ConfigError, match="no data spec"):
        ModelEngine("resnet20", num_classes=2).predict(picture)
    with pytest.raises(ConfigError, match="top_k=0"):
        engine.predict(picture, top_k=0)


def test_wrapped_model_of_ours_is_known_by_name(tmp_path):
    model = VisionTransformer(
        image_size=16, patch_size=8, num_layers=1, dim=12, heads=2, num_classes=3
    )
    engine = ModelEngine.wrap(model, make_spec())
    assert engine.architecture == "vit"
    assert ModelEngine.wrap(engine) is engine
    engine.save(tmp_path / "m.bin")
    assert isinstance(ModelEngine.load(tmp_path / "m.bin").module, VisionTransformer)


def test_wrapped_foreign_module_keeps_its_own_forward():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    engine = ModelEngine.wrap(module)
    assert engine.architecture == "torch.nn.modules.container.Sequential"
    x = torch.randn(2, 1, 2, 2)
    assert torch.equal(engine(x), module(x))
    assert len(engine.predict(x)) == 2
    assert engine.predict(x)[0].label in "012"
    assert engine.flops((1, 2, 2)) == 2 * 4 * 3


def test_outputs_that_are_not_the_classes_are_refused():
    engine = ModelEngine.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 5)), make_spec())
    with pytest.raises(ConfigError, match="5 outputs, the data 3 class_names"):
        engine.predict(torch.rand(3, 16, 16))


@pytest.mark.long  # compiles C++
def test_static_graph_gives_the_same_numbers_and_names(engine):
    static = ModelEngine("resnet", num_layers=8, width=4, num_classes=3, graph="static")
    static.load_state_dict(engine.state_dict())
    names = list(static.state_dict())
    static.spec = engine.spec
    torch._dynamo.reset()
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(static.eval()(images), engine.eval()(images), atol=1e-4, rtol=1e-4)
    assert list(static.state_dict()) == names
    with pytest.raises(ConfigError, match="graph='lazy'"):
        ModelEngine("resnet20", graph="lazy")


def test_engine_can_be_copied(engine):
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(copy.deepcopy(engine).eval()(images), engine.eval()(images))
