"""What a Hugging Face folder says of its pictures is what `predict` does with them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from deepseek.convert import deepseek_to_huggingface, pytorch_to_deepseek
from deepseek.convert.conversion import convert
from deepseek.datasets import ImageDataset
from deepseek.models import ModelEngine

transformers = pytest.importorskip("transformers")


def picture(height=50, width=70):
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9 + k) * np.cos(columns / 7 - k) for k in range(3)]
    return Image.fromarray((127 * (1 + np.stack(waves, -1))).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=3, id2label={0: "ant", 1: "bee", 2: "cat"},
        label2id={"ant": 0, "bee": 1, "cat": 2},
    )  # fmt: skip
    path = tmp_path / "vit"
    transformers.ViTForImageClassification(config).eval().save_pretrained(path)
    return path


def describe(folder, **settings):
    content = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def expected(folder, image):
    """Transformers' own, from picture to probabilities."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]


PROCESSORS = {
    "resize_32x32": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32},
    },
    "resize_40x40+center_crop_32": {
        "image_processor_type": "DeiTImageProcessor", "size": {"height": 40, "width": 40},
        "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    },
    "resize_36+center_crop_32": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36},
        "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    },
    "resize_40+center_crop_32": {
        "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32},
        "crop_pct": 0.8,
    },
}  # fmt: skip


@pytest.mark.parametrize("transform", PROCESSORS)
def test_a_picture_is_prepared_as_the_folder_says(transform, folder, tmp_path):
    describe(folder, **PROCESSORS[transform])
    engine = pytorch_to_deepseek(folder)
    assert engine.spec.transform == transform
    assert engine.spec.normalization.std == (0.25, 0.25, 0.25)
    engine.save(tmp_path / "vit.bin")
    prediction = ModelEngine.load(tmp_path / "vit.bin").predict(picture())
    assert prediction.label in ("ant", "bee", "cat")
    # the two round a resized pixel differently
    torch.testing.assert_close(prediction.probs, expected(folder, picture()), atol=2e-3, rtol=0)
    deepseek_to_huggingface(engine, tmp_path / "out")
    again = expected(tmp_path / "out", picture())
    torch.testing.assert_close(again, prediction.probs, atol=2e-3, rtol=0)


def test_pixels_that_are_not_resized_are_the_same_numbers(folder):
    describe(folder, **PROCESSORS["resize_32x32"])
    found = pytorch_to_deepseek(folder).predict(picture(32, 32)).probs
    torch.testing.assert_close(found, expected(folder, picture(32, 32)), atol=1e-6, rtol=0)


def test_another_interpolation_is_told(folder):
    describe(folder, **PROCESSORS["resize_32x32"], resample=3)
    conversion = convert(folder)
    assert conversion.engine.spec.transform == "resize_32x32"
    assert any("resample=3" in note for note in conversion.report.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 64, "width": 64}}, "pictures become 64 x 64, and the model takes 32"),
        ({"size": {"shortest_edge": 32}}, "pictures keep their shape"),
        ({"size": 32, "rescale_factor": 1.0}, "not divided by 255"),
        ({"size": 32, "image_mean": [0.5], "image_std": [0.5]}, "is not of 3 channels"),
        ({"size": {"longest": 3}}, "KeyError"),
        ({}, "KeyError"),
    ],
)
def test_what_cannot_be_taken_over_is_told(settings, message, folder):
    describe(folder, image_processor_type="ViTImageProcessor", **settings)
    conversion = convert(folder)
    assert conversion.engine.spec is None
    assert any(message in note for note in conversion.report.notes), conversion.report.notes


def test_what_was_trained_here_is_prepared_there_as_here(tmp_path):
    digits = ImageDataset("digits", transform="resize_8+hflip+normalize_half", channels=3)
    engine = ModelEngine("vit", image_size=8, patch_size=4, num_layers=1, dim=16, heads=2)
    engine.bind(digits.spec)
    deepseek_to_huggingface(engine, tmp_path / "out")
    found = engine.eval().predict(picture(8, 8)).probs
    torch.testing.assert_close(expected(tmp_path / "out", picture(8, 8)), found, atol=1e-6, rtol=0)
