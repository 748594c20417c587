"""Each family of models in each format, and the table of docs/export.md that says so.

`DEEPSEEK_REGENERATE=1 pytest -m long tests/unit/deploy/test_formats.py` writes the table anew.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.models.test_contract import SMALL, make_engine, make_spec

from deepseek.datasets import ImageDataset
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.task_labels import joint_spec
from deepseek.deploy.artefact import load_engine
from deepseek.deploy.formats import FORMATS, export, find_format
from deepseek.deploy.runtimes import RUNTIMES
from deepseek.deploy.samples import random_inputs
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine, MultiHead, list_models
from deepseek.models.table_model import TableModel
from deepseek.models.zoo import ARCHITECTURES

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "export.md"
KNOWN = DOCS / "export_matrix.json"
MARKS = "<!-- table of models and formats: begin -->\n", "<!-- end -->\n"
COLUMNS = ["pt2", "aoti", "onnx", "onnx int8", "openvino", "openvino int8", "executorch",
           "executorch int8"]  # fmt: skip
TIMM = "timm/mobilenetv3_small_050"
TABLES = sorted(
    name for name in list_models(own_only=True)
    if not ARCHITECTURES.get(name).preset and issubclass(ARCHITECTURES.get(name).build, TableModel)
)  # fmt: skip
MODELS = [
    "vit", "resnet20", "imagenet_resnet", "encoder", "gpt", "llama", "unet3d", "center_detector3d",
    "multi_head", TIMM, *TABLES,
]  # fmt: skip
CHEAP = [("resnet20", "pt2"), ("unet3d", "executorch"), *((name, "onnx int8") for name in TABLES)]


def make_model(name):
    if name in SMALL:
        engine, spec = make_engine(name).eval(), make_spec(name)
        if name in ("unet3d", "center_detector3d"):
            volume = replace(spec.fields["inputs"], dtype="float32")
            spec = replace(spec, fields={"inputs": volume})
        engine.bind(spec)
        return engine
    torch.manual_seed(0)
    if name in TABLES:
        return ModelEngine(name)
    spec = make_spec("vit")
    if name == "multi_head":
        kinds = replace(spec, fields={"targets": FieldSpec((), "int64")})
        sizes = DataSpec("regression", {"targets": FieldSpec((), "float32")})
        engine = ModelEngine.wrap(MultiHead("resnet", {"num_layers": 8}))
        engine.bind(joint_spec(spec, {"kind": kinds, "size": sizes}))
        return engine.eval()
    engine = ModelEngine(name, num_classes=5).eval()
    engine.bind(replace(spec, fields={"inputs": FieldSpec((3, 32, 32), "uint8")}))
    return engine


def read_known():
    return json.loads(KNOWN.read_text()) if KNOWN.is_file() else {}


def try_cell(name, column, folder):
    """Return `None` where a model works in a format, else why not."""
    format, _, precision = column.partition(" ")
    engine = make_model(name)
    path = folder / f"model{RUNTIMES.get(FORMATS[format]).suffix}"
    try:
        data = random_inputs(engine, 16) if precision == "int8" else None
        export(engine, path, precision=precision or "fp32", data=data, threads=1)
    except (ConfigError, CheckpointError) as error:
        return error.message.replace(f"{name} ", "", 1)
    return None


def table_of(known):
    """Return Markdown: a row a model, and the reasons under it."""
    reasons = sorted({why for row in known.values() for why in row.values() if why})
    cells = lambda row: [  # noqa: E731
        "yes" if row[column] is None else f"no ({reasons.index(row[column]) + 1})"
        for column in COLUMNS
    ]
    lines = [
        "| model | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
        *(f"| `{name}` | " + " | ".join(cells(row)) + " |" for name, row in known.items()),
        "",
        *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def find_cells(name, columns, folder):
    found = {}
    for number, column in enumerate(columns):
        cell = folder / str(number)
        cell.mkdir()
        found[column] = try_cell(name, column, cell)
        print(f"{name} {column}: {found[column] or 'yes'}", flush=True)
    return found


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MODELS)
def test_the_table_holds_for_every_format(name, tmp_path):
    found = find_cells(name, COLUMNS, tmp_path)
    if os.environ.get("DEEPSEEK_REGENERATE"):
        known = read_known() | {name: found}
        ordered = {each: known[each] for each in MODELS if each in known}
        KNOWN.write_text(json.dumps(ordered, indent=1) + "\n")
        begin, end = MARKS
        before, _, rest = PAGE.read_text().partition(begin)
        after = rest.partition(end)[2]
        PAGE.write_text(f"{before}{begin}\n{table_of(ordered)}\n{end}{after}")
    assert found == read_known()[name]


@pytest.mark.parametrize(("name", "column"), CHEAP)
def test_cells_that_cost_little_are_as_the_table_says(name, column, tmp_path):
    if column == "executorch":
        pytest.importorskip("executorch")
    assert try_cell(name, column, tmp_path) == read_known()[name][column]


def test_the_table_has_every_architecture():
    own = {each for each in list_models(own_only=True) if not ARCHITECTURES.get(each).preset}
    assert {*MODELS, "resnet"} == {*own, "resnet20", TIMM}


def test_the_page_shows_what_was_found():
    known = read_known()
    assert list(known) == MODELS
    begin, end = MARKS
    assert PAGE.read_text().partition(begin)[2].partition(end)[0].strip() == table_of(known).strip()


def test_the_end_of_a_name_says_the_format():
    names = {"a.pt2": "pt2", "a.aoti.pt2": "aoti", "a.onnx": "onnx", "a.xml": "openvino",
             "a.pte": "executorch"}  # fmt: skip
    assert {name: find_format(Path(name), None) for name in names} == names
    assert find_format(Path("a.pt2"), "aoti") == "aoti"
    with pytest.raises(ConfigError, match=r"a\.h5 does not say which format"):
        find_format(Path("a.h5"), None)
    with pytest.raises(ConfigError, match="unknown format 'onxx'") as caught:
        find_format(Path("a.onnx"), "onxx")
    assert 'did you mean "onnx"?' in caught.value.fix


def test_real_samples_are_used_and_said_so(tmp_path):
    digits = ImageDataset("digits", transform="resize_16", channels=3)
    engine = ModelEngine("resnet20", num_classes=10).eval()
    engine.bind(digits.spec)
    engine.save(tmp_path / "model.bin")
    written = export(tmp_path / "model.bin", tmp_path / "m.pt2", data=digits, threads=1)
    assert written.is_real
    assert written.artefact.open_dims == ("batch",)
    assert written.num_bytes == (tmp_path / "m.pt2").stat().st_size
    assert "on samples of the data outputs differ by" in written.describe()
    assert load_engine(tmp_path / "m.pt2").predict(digits.image(3)).label in digits.class_names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int8"}, "calibrated on real samples, and there are no data"),
        ({"precision": "bf16"}, "does not convert to precision='bf16'"),
        ({"data": "val/"}, "data='val/' is a path"),
        ({"data": torch.zeros(4, 3, 8, 8)}, r"inputs of shape \(3, 8, 8\), the model takes"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(ConfigError, match=message):
        export(make_model("resnet20"), tmp_path / "m.onnx", **arguments)
    assert not list(tmp_path.glob("*m.onnx*"))


def test_an_opset_is_for_onnx_alone(tmp_path):
    with pytest.raises(ConfigError, match="opset=18 is of ONNX"):
        export(make_model("resnet20"), tmp_path / "m.pt2", opset=18)


def test_a_model_that_does_not_know_its_inputs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="it has no data spec"):
        export(make_engine("resnet"), tmp_path / "m.pt2")
