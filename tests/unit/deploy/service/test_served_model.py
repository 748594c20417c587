import numpy as np
import pytest
import torch
from tests.unit.deploy.service.conftest import make_engine, make_text_engine

from deepseek.deploy.artefact import convert
from deepseek.deploy.runtimes import RUNTIMES
from deepseek.deploy.service.served_model import ModelSettings, ServedModel
from deepseek.deploy.service.shelf import Shelf
from deepseek.errors import ConfigError

PIXELS = np.random.default_rng(0).integers(0, 255, (5, 1, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    "runtime",
    ["eager", pytest.param("compiled", marks=pytest.mark.long), "onnxruntime", "openvino"],
)
def test_the_file_of_a_runtime_answers_as_the_model(runtime, tmp_path):
    kind = RUNTIMES.get(runtime)
    if kind().find_missing():
        pytest.skip(f"{runtime} is not installed")
    engine = make_engine().eval()
    expected = engine.probs_of(torch.from_numpy(PIXELS)).detach()
    path = tmp_path / f"m{kind.suffix}"
    convert(engine, path, torch.from_numpy(PIXELS), runtime)
    served = ServedModel.open(ModelSettings(path, max_batch=4))
    for count in (1, 3, 5):  # five: more than it was compiled for
        assert np.allclose(served.compute(PIXELS[:count]), expected[:count], atol=1e-5)


def test_tokens_are_filled_up_for_a_program_of_one_length(tmp_path):
    engine = make_text_engine(tmp_path).eval()
    tokens = torch.tensor([[2, 5, 6, 3, 0, 0, 0, 0]])
    expected = engine.probs_of(tokens).detach()
    served = ServedModel(engine, sizes=(1, 2, 4), has_one_length=True)
    assert np.allclose(served.compute(tokens.numpy()), expected, atol=1e-6)
    assert served._fill(np.tile(tokens.numpy(), (3, 1))).shape == (4, 16)


def test_what_is_not_finite_is_not_served():
    engine = make_engine()
    with torch.no_grad():
        next(engine.parameters()).fill_(float("nan"))
    with pytest.raises(ConfigError, match="not finite"):
        ServedModel(engine)


def test_the_folder_has_model_files_and_described_ones(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    for name in ("v1.bin", "v2.onnx", "v2.onnx.json", "v3.xml", "v3.xml.json", "v3.bin", "a.txt"):
        (folder / name).touch()
    shelf = Shelf({}, tmp_path, lambda name, version, path: None)  # builds nothing here
    assert shelf.list_versions() == {"digits": ["v1", "v2.onnx", "v3.xml"]}
