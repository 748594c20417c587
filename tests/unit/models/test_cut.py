import json

import pytest
import torch
from torch import nn

from deepseek.errors import CheckpointError
from deepseek.models import ModelEngine
from deepseek.models.changes import apply_changes


def make_model():
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2),
            nn.ModuleList(nn.Linear(4, 4) for _ in range(4)), nn.LayerNorm(4),
        )  # fmt: skip


SHAPES = {
    "0.weight": [5, 3, 3, 3], "1.weight": [5], "1.bias": [5], "1.running_mean": [5],
    "1.running_var": [5], "2.weight": [5, 2, 2, 2], "2.bias": [2],
}  # fmt: skip


def table(**changed):
    return {"kind": "pruned", "blocks": {}, "shapes": {}, **changed}


def test_layers_know_their_new_sizes_on_the_meta_device():
    model = make_model()
    # what a file holds has been through JSON
    apply_changes(model, json.loads(json.dumps([table(shapes=SHAPES)])), "a test")
    assert (model[0].in_channels, model[0].out_channels) == (3, 5)
    assert model[1].num_features == 5
    assert (model[2].in_channels, model[2].out_channels) == (5, 2)
    assert all(tensor.is_meta for tensor in model.parameters())
    assert isinstance(model[0].weight, nn.Parameter)


def test_blocks_are_left_out_and_numbered_anew():
    model = make_model()
    kept = [model[3][0], model[3][3]]
    apply_changes(model, [table(blocks={"3": [0, 3]})], "a test")
    assert list(model[3]) == kept
    assert "3.1.weight" in model.state_dict()
    assert "3.2.weight" not in model.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (table(shapes={"0.weight": [9, 3, 3, 3]}), "cannot be cut to"),
        (table(shapes={"0.weight": [0, 3, 3, 3]}), "cannot be cut to"),
        (table(shapes={"0.weight": [5, 3, 3]}), "cannot be cut to"),
        (table(shapes={"0.weight": [True, 3, 3, 3]}), "cannot be cut to"),
        (table(shapes={"0.weight": "5"}), "cannot be cut to"),
        (table(shapes={"0.width": [5]}), "no attribute"),
        (table(shapes={"4.weight": [2]}), "a LayerNorm, which cannot be cut"),
        (table(blocks={"3": []}), "has 4 blocks, not"),
        (table(blocks={"3": [1, 4]}), "has 4 blocks, not"),
        (table(blocks={"3": [2, 1]}), "has 4 blocks, not"),
        (table(blocks={"3": ["1"]}), "cannot be pruned"),
        (table(blocks={"0": [0]}), "no list of modules"),
        (table(blocks=[1]), "cannot be pruned"),
        ({"kind": "pruned"}, "has the keys"),
        (table(code="print()"), "has the keys"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        apply_changes(make_model(), [change], "a test")


def test_shapes_of_a_file_that_differ_from_its_tensors_are_refused(tmp_path):
    engine = ModelEngine("resnet", num_layers=8, num_classes=3)
    engine.changes = (table(shapes={"layer1.0.bn1.weight": [4]}),)
    engine.save(tmp_path / "model.bin")
    with pytest.raises(CheckpointError):
        ModelEngine.load(tmp_path / "model.bin")
