"""The model file under attack: every damage is a CheckpointError, and nothing of it runs."""

import json
import os
import pickle
import random
import resource
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine, tensor_layout
from deepseek.models.model_file import ModelFile, read_model_file, write_model_file


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "model.bin"
    torch.manual_seed(0)
    ModelEngine("resnet", num_layers=8, width=2, num_classes=3).save(target)
    return target


def split(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def refuses(path, match=None):
    with pytest.raises(CheckpointError, match=match) as caught:
        ModelEngine.load(path)
    assert caught.value.exit_code == 4
    assert caught.value.fix


def test_is_a_safetensors_file_like_any_other(path):
    theirs = load_file(path)
    ours = read_model_file(path).state
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_same_model_gives_the_same_bytes(path, tmp_path):
    ModelEngine.load(path).save(tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def test_dtypes_empty_scalar_strided_and_tied_tensors_survive(tmp_path):
    shared = torch.randn(3, 4)
    state = {
        "half": torch.randn(5).bfloat16(),
        "flag": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
        "strided": torch.randn(4, 6).t(),
        "a": shared,
        "b": shared,
        "fp8": torch.randn(3).to(torch.float8_e4m3fn),
    }
    write_model_file(tmp_path / "m.bin", ModelFile("x.Y", {}, None, state))
    loaded = read_model_file(tmp_path / "m.bin").state
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].float(), tensor.float())
    assert loaded["a"] is loaded["b"]


class TiedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 4, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.embed(tokens))


def test_foreign_module_needs_an_object_to_fill_and_stays_tied(tmp_path):
    engine = ModelEngine.wrap(TiedModel())
    engine.save(tmp_path / "m.bin")
    refuses(tmp_path / "m.bin", r"TiedModel', which is no architecture(.|\n)*module=TiedModel")
    loaded = ModelEngine.load(tmp_path / "m.bin", module=TiedModel())
    assert loaded.module.out.weight is loaded.module.embed.weight
    tokens = torch.arange(4)
    assert torch.equal(loaded(tokens), engine(tokens))
    with pytest.raises(CheckpointError, match="missing: weight, bias"):
        ModelEngine.load(tmp_path / "m.bin", module=nn.Linear(2, 2))


def test_dotted_architecture_in_a_file_is_never_imported(path, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("import os; os._exit(66)")
    monkeypatch.syspath_prepend(tmp_path)
    content = read_model_file(path)
    write_model_file(path, ModelFile("evil_module.Net", {}, None, content.state))
    refuses(path, "no architecture of this library")


def test_every_flipped_bit_is_found(path):
    content = path.read_bytes()
    rng = random.Random(0)
    header_length = 8 + int.from_bytes(content[:8], "little")
    places = [rng.randrange(header_length) for _ in range(150)]
    places += [rng.randrange(header_length, len(content)) for _ in range(50)]
    changed = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = read_model_file(path)
        except CheckpointError:
            changed += 1
        else:  # a blank between two words that became another blank
            path.write_bytes(content)
            assert repr(loaded) == repr(read_model_file(path))
    assert changed > 190


def test_every_truncation_and_every_addition_is_found(path):
    content = path.read_bytes()
    for length in [*range(16), *range(16, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        refuses(path)
    path.write_bytes(content + b"\0")
    refuses(path, "its tensors take")


def test_huge_header_is_refused_before_it_is_read(path):
    _, data = split(path)
    for length in (2**63, 2**40, 100 * 2**20):
        join(path, b"{}", data, length)
        refuses(path, "its header declares")


def test_a_header_that_could_not_be_read_is_not_written(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(tensor_layout, "MAX_HEADER_BYTES", 4000)
    engine = ModelEngine("resnet", num_layers=8, width=2, num_classes=3)
    with pytest.raises(ConfigError, match=r"\d+ bytes, above the 4000 that can be read") as caught:
        engine.save(path)
    assert "encoding: hash" in caught.value.fix
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "header",
    [b"[]", b"null", b"{", b"\xff\xfe{}", b'{"a": ' * 3000 + b"1" + b"}" * 3000, b"[" * 100_000,
     b'{"a": ' + b"9" * 5000 + b"}", b'{"__metadata__": 3}', b'{"__metadata__": {"deepseek": {}}}'],
    ids=range(9),
)  # fmt: skip
def test_header_that_is_no_table_is_refused(path, header):
    join(path, header, b"")
    refuses(path)


def test_name_that_comes_twice_is_refused(path):
    entry = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    join(path, b'{"a":' + entry + b',"a":' + entry + b"}", b"")
    refuses(path, "a name twice")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**30]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [1] * 10_000, "data_offsets": [0, 4]},
        [],
        None,
    ],
)
def test_tensor_that_does_not_fit_its_bytes_is_refused(path, entry):
    join(path, {"a": entry}, b"\0" * 4)
    refuses(path, "is damaged")


def test_overlapping_tensors_are_refused(path):
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    join(path, {"a": entry, "b": entry}, b"\0" * 4)
    refuses(path, "begins at byte 0, the one before ends at byte 4")


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_and_do_not_run(tmp_path):
    canary = tmp_path / "canary"
    file = tmp_path / "model.bin"
    for protocol in range(6):
        file.write_bytes(pickle.dumps(Canary(canary), protocol))
        refuses(file)
    for is_zip in (True, False):
        torch.save({"w": Canary(canary)}, file, _use_new_zipfile_serialization=is_zip)
        refuses(file, "pickle")
        with pytest.raises(CheckpointError):
            ModelEngine("resnet20", weights=file)
        pickled = file.rename(tmp_path / "model.pt")
        with pytest.raises(CheckpointError):
            ModelEngine("resnet20", weights=pickled, allow_pickle=True)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.onnx", b"\x08\x0a\x12\x07pytorch"), ("m.pt2", b"PK\x03\x04\x00\x00\x08\x08"),
     ("m.xml", b"<?xml version"), ("m.pte", b"\x20\x00\x00\x00ET12")],
)  # fmt: skip
def test_the_file_of_a_runtime_is_called_so(name, content, tmp_path):
    (tmp_path / name).write_bytes(content * 10)
    refuses(tmp_path / name, "is the file of a runtime, not of a model")


def test_a_folder_is_no_model_file(tmp_path):
    with pytest.raises(CheckpointError, match="Is a directory") as caught:
        ModelEngine.load(tmp_path)
    assert caught.value.fix == "give the model file in it, such as model.bin"


def test_file_that_is_also_a_zip_is_refused(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data.pkl", b"")
    refuses(path)


def test_other_safetensors_and_later_formats_say_so(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(2)}, file)
    refuses(file, "without the metadata")
    save_file({"w": torch.zeros(2)}, file, metadata={"deepseek": '{"format_version": 99}'})
    refuses(file, r"format_version=99(.|\n)*pip install --upgrade")
    refuses(tmp_path / "absent.bin", "cannot be read")
    refuses(tmp_path, "cannot be read")


@pytest.mark.parametrize(
    ("architecture", "config", "match"),
    [
        ("resnet", {"num_layers": 6 * 10**9 + 2}, "declares num_layers"),
        ("unet3d", {"features": [4, 8], "blocks": [1, 10**8]}, "declares blocks"),
        ("center_detector3d", {"features": [4, 8], "blocks": [1, 10**8]}, "declares blocks"),
        ("mmoe", {"num_experts": 10**8}, "declares num_experts"),
        ("ple", {"num_own": 10**8}, "declares num_own"),
        ("ple", {"num_shared": 10**8}, "declares num_shared"),
        ("ple", {"num_levels": 10**8}, "declares num_levels"),
        (
            "multi_head",
            {
                "trunk": "multi_head",
                "trunk_args": {
                    "trunk": "resnet",
                    "trunk_args": {"num_layers": 6 * 10**9 + 2},
                },
            },
            "declares num_layers",
        ),
        ("resnet", {"num_layers": 8, "width": 2**50}, "resnet"),
        ("resnet", {"num_layers": "8"}, "cannot be built"),
        ("resnet", {"num_layers": 8, "shell": "ls"}, "unknown argument"),
        ("resnet", {"num_layers": 8, "num_classes": "3"}, "num_classes"),
        ("resnet50", {"checkpoint_path": "/etc/passwd"}, "checkpoint_path"),
        ("resnet50", {"pretrained": True}, "pretrained"),
        ("resnet50", {"num_classes": 10**9}, "fit"),
        ("hf-hub:someone/model", {}, "no architecture"),
        ("timm/../x", {}, "no architecture"),
    ],
)
def test_config_that_asks_for_too_much_is_refused(path, architecture, config, match):
    content = read_model_file(path)
    write_model_file(path, ModelFile(architecture, config, None, content.state))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses(path, match)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 500_000  # KiB


def test_failed_save_leaves_the_old_file_and_no_rest(path):
    old = path.read_bytes()
    engine = ModelEngine.load(path)
    with pytest.raises(ConfigError, match="cannot be stored as JSON"):
        write_model_file(path, ModelFile("resnet", {"x": object()}, None, {}))
    with pytest.raises(ConfigError, match="is not a folder"):
        engine.save(path.parent / "absent" / "model.bin")
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == ["model.bin"]
