"""Inputs that cannot be converted: each a clear error that says how to mend it; nothing is run."""

import copy
import json
import os
import pickle
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deepseek.convert import convert, deepseek_to_huggingface, deepseek_to_pytorch
from deepseek.convert.conversion import find_writer
from deepseek.convert.export import write_state_dict
from deepseek.convert.source import is_model_file, read_source
from deepseek.errors import CheckpointError, ConfigError, DeepSeekError
from deepseek.models import ModelEngine
from deepseek.models.changes import apply_changes

transformers = pytest.importorskip("transformers")
CANARY = "somebody_elses_code_has_run"


class Payload:
    """What a hostile pickle has in it: loading it makes a file."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


@pytest.fixture(autouse=True)
def nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(CANARY)


@pytest.fixture
def state(make):
    return make("bert_formaskedlm").state_dict()


@pytest.fixture
def folder(make, tmp_path):
    make("bert_formaskedlm").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


STATES = {
    "empty": (lambda s: {}, "holds no tensor"),
    "a number in it": (lambda s: {**s, "step": 3}, "under 'step' is a int, not a tensor"),
    "a list in it": (lambda s: {**s, QUERY: [1.0]}, "is a list, not a tensor"),
    "a name that is no text": (lambda s: {**s, 5: s[QUERY]}, "under 5 is a Tensor"),
    "an optimizer's state": (lambda s: {"state": {}, "param_groups": []}, "is a dict, not a"),
    "a key missing": (lambda s: without(s, QUERY), f"1 missing: {QUERY}"),
    "many keys missing": (
        lambda s: {k: t for k, t in s.items() if "layer.1.output" not in k}, "4 missing"
    ),
    "a layer missing": (
        lambda s: {k: t for k, t in s.items() if "layer.0." not in k}, "none of"
    ),
    "a layer in between missing": (
        lambda s: {k.replace("layer.1.", "layer.2."): t for k, t in s.items()},
        r"the numbers \[1\] are missing",
    ),
    "words missing": (lambda s: without(s, WORDS), "none of"),
    "positions missing": (
        lambda s: without(s, "bert.embeddings.position_embeddings.weight"), "says the size"
    ),
    "types missing": (
        lambda s: without(s, "bert.embeddings.token_type_embeddings.weight"), "says the size"
    ),
    "the bias of the head missing": (lambda s: without(s, "cls.predictions.bias"), "1 missing"),
    "a key too many": (lambda s: {**s, "bert.adapter.weight": s[QUERY]}, "1 unexpected"),
    "a lora": (
        lambda s: {**s, QUERY.replace("weight", "lora_A.weight"): s[QUERY]}, "unexpected: .*lora_A"
    ),
    "a renamed key": (
        lambda s: {k.replace("query", "queries"): t for k, t in s.items()}, "none of"
    ),
    "a renamed key in one layer": (
        lambda s: {k.replace("1.attention.self.query", "1.attention.q"): t for k, t in s.items()},
        "2 missing: .*; 2 unexpected",
    ),
    "names of nothing": (lambda s: {"a.b": s[QUERY], "c": s[WORDS]}, "they are a.b, c"),
    "a transposed weight": (
        lambda s: {
            k: t.t() if k == "bert.encoder.layer.0.intermediate.dense.weight" else t
            for k, t in s.items()
        },
        "of another shape",
    ),
    "a cut weight": (lambda s: {**s, QUERY: s[QUERY][:-1]}, r"query.weight \(23, 24\) for"),
    "a bias of a scalar": (
        lambda s: {**s, "bert.encoder.layer.0.output.dense.bias": torch.tensor(1.0)}, r"\(\) for"
    ),
    "words in one dim": (lambda s: {**s, WORDS: s[WORDS][0]}, "has the shape"),
    "an untied head": (
        lambda s: {**s, "cls.predictions.decoder.weight": s[WORDS] + 1},
        "differs from bert.embeddings.word_embeddings.weight",
    ),
    "an untied bias": (
        lambda s: {**s, "cls.predictions.decoder.bias": s["cls.predictions.bias"] + 1}, "differs"
    ),
    "int8": (lambda s: {**s, QUERY: s[QUERY].to(torch.int8)}, "quantised"),
    "uint8": (lambda s: {**s, QUERY: s[QUERY].to(torch.uint8)}, "quantised"),
    "float8": (lambda s: {**s, QUERY: s[QUERY].to(torch.float8_e4m3fn)}, "quantised"),
    "int64 weights": (lambda s: {**s, QUERY: s[QUERY].long()}, "dtype int64"),
    "bool weights": (lambda s: {**s, QUERY: s[QUERY] > 0}, "dtype bool"),
    "complex weights": (lambda s: {**s, QUERY: s[QUERY] + 0j}, "dtype complex64"),
    "bitsandbytes": (lambda s: {**s, f"{QUERY}.absmax": s[QUERY]}, "quantised"),
    "GPTQ": (lambda s: {**s, "bert.x.qweight": torch.zeros(2, dtype=torch.int32)}, "quantised"),
    "NaN": (lambda s: {**s, QUERY: s[QUERY] * float("nan")}, "576 values that are not finite"),
    "infinity": (lambda s: {**s, QUERY: s[QUERY] / 0}, "not finite"),
    "no values": (lambda s: {**s, QUERY: s[QUERY].to("meta")}, "has no values"),
    "sparse": (lambda s: {**s, QUERY: s[QUERY].to_sparse()}, "is sparse"),
}  # fmt: skip


@pytest.mark.parametrize("what", STATES)
def test_a_wrong_state_dict_is_refused(what, state):
    spoil, message = STATES[what]
    with pytest.raises(CheckpointError, match=rf"{message}(.|\n)*Fix:"):
        convert(spoil(state), heads=3)


ARGUMENTS = {
    "no heads": ({}, "number of attention heads .*(.|\n)*give heads=1 if"),
    "heads that do not divide": ({"heads": 5}, "heads=5 does not divide dim=24"),
    "a depth of another model": ({"heads": 3, "num_layers": 4}, "num_layers=4, the weights 2"),
    "a width of another model": ({"heads": 3, "dim": 48}, "dim=48, the weights 24"),
    "an unknown argument": ({"heads": 3, "layers": 2}, "unknown argument layers=2"),
    "an argument misspelled": ({"head": 3}, 'unknown argument head=3(.|\n)*"heads"'),
    "an unknown family": ({"heads": 3, "family": "brt"}, "unknown family 'brt'"),
    "another family": ({"heads": 3, "family": "gpt2"}, "not those of gpt2"),
    "an unknown dtype": ({"heads": 3, "dtype": "int4"}, "dtype='int4'"),
    "unknown outputs": ({"heads": 3, "outputs": "words"}, "outputs='words'"),
    "a padding outside": ({"heads": 3, "pad_token": 99}, "pad_token=99"),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_a_wrong_argument_is_refused(what, state):
    args, message = ARGUMENTS[what]
    with pytest.raises(DeepSeekError, match=rf"{message}(.|\n)*"):
        convert(state, **args)


def set_config(**changes):
    def spoil(folder):
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps(config))

    return spoil


def cut(name, keep):
    def spoil(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return spoil


def shard(lose=(), rename=None, claim=None, drop_tensor=False):
    """Divide the weights into two files with an index, and spoil that."""

    def spoil(folder):
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(state)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        table = {name: file for file, inside in parts.items() for name in inside}
        if drop_tensor:
            parts["a.safetensors"].pop()
        for file, inside in parts.items():
            if file not in lose:
                save_file({name: state[name] for name in inside}, folder / file)
        table = {name: rename if rename and file[0] == "b" else file
                 for name, file in table.items()}  # fmt: skip
        index = {"weight_map": {**table, **(claim or {})}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": Payload()}, folder / "pytorch_model.bin")


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


FOLDERS = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is not there"),
    "a config that is no JSON": (write("config.json", b"{model_type: bert}"), "not JSON"),
    "a config that is a list": (write("config.json", b"[]"), "not a JSON object"),
    "a config cut off": (cut("config.json", 0.5), "not JSON"),
    "a config with a name twice": (
        write("config.json", b'{"model_type": "bert", "model_type": "gpt2"}'), "a name twice"
    ),
    "an unknown model": (set_config(model_type="mamba"), "model_type='mamba'"),
    "no model type": (set_config(model_type=None), "model_type=None"),
    "remote code": (
        set_config(auto_map={"AutoModel": "evil--x.Model"}), "auto_map: .* never run"
    ),
    "remote code further in": (set_config(text={"auto_map": {"A": "b"}}), "text.auto_map"),
    "remote code of a tokenizer": (
        write("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
        "tokenizer_config.json has auto_map",
    ),
    "quantised": (set_config(quantization_config={"bits": 4}), "quantization_config"),
    "another activation": (set_config(hidden_act="relu"), "hidden_act='relu'"),
    "a decoder": (set_config(is_decoder=True), "is_decoder=True"),
    "relative positions": (
        set_config(position_embedding_type="relative_key"), "position_embedding_type"
    ),
    "a depth that is no number": (set_config(num_hidden_layers="two"), "num_hidden_layers='two'"),
    "a negative width": (set_config(hidden_size=-24), "hidden_size=-24"),
    "no heads": (set_config(num_attention_heads=0), "num_attention_heads=0"),
    "a depth of another model": (
        set_config(num_hidden_layers=3), "config.json says num_layers=3, the weights 2"
    ),
    "a vocabulary of another model": (set_config(vocab_size=41), "vocab_size=41"),
    "an impossible dropout": (set_config(hidden_dropout_prob=1.5), "hidden_dropout_prob=1.5"),
    "weights cut off": (cut("model.safetensors", 0.7), "is damaged"),
    "weights cut in the header": (cut("model.safetensors", 0.001), "is damaged"),
    "weights that are text": (write("model.safetensors", b"version https://git-lfs"), "damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has neither"),
    "a pickle only": (only_pickle, "pytorch_model.bin only, a pickle"),
    "a missing shard": (shard(lose=("b.safetensors",)), r"b.safetensors, which is not there: 2"),
    "a shard elsewhere": (shard(rename="../b.safetensors"), "which is no safetensors file of"),
    "a shard that is a pickle": (shard(rename="b.bin"), "which is no safetensors file of"),
    "a tensor that no shard has": (shard(claim={"x": "a.safetensors"}), "1 tensors that no file"),
    "a shard without a tensor": (shard(drop_tensor=True), "1 tensors that no file has"),
    "an index without a table": (
        lambda f: (shard()(f), write("model.safetensors.index.json", b'{"weight_map": 3}')(f)),
        "has no weight_map",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FOLDERS)
def test_a_wrong_folder_is_refused(what, folder):
    spoil, message = FOLDERS[what]
    spoil(folder)
    with pytest.raises(DeepSeekError, match=rf"{message}(.|\n)*Fix:"):
        convert(folder)


def test_a_sharded_folder_is_whole_again(folder, make):
    whole = convert(folder).engine.state_dict()
    shard()(folder)
    parts = convert(folder).engine.state_dict()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def pickled(content, protocol=2):
    def make_file(path):
        torch.save(content, path) if protocol == "torch" else path.write_bytes(
            pickle.dumps(content, protocol=protocol)
        )

    return make_file


FILES = {
    "a state dict by torch.save": (pickled({"a": torch.zeros(2)}, "torch"), {}, "--allow-pickle"),
    "a module by torch.save": (pickled(nn.Linear(2, 2), "torch"), {}, "--unsafe-pickle"),
    "a hostile torch.save": (pickled({"a": Payload()}, "torch"), {}, "is a pickle"),
    "a hostile pickle": (pickled(Payload(), 4), {}, "is a pickle"),
    "a hostile torch.save, allowed": (
        pickled({"a": Payload()}, "torch"), {"allow_pickle": True}, "cannot be read as pickled"
    ),
    "a hostile pickle, allowed": (
        pickled(Payload(), 2), {"allow_pickle": True}, "cannot be read as pickled"
    ),
    "a module, allowed": (
        pickled(nn.Linear(2, 2), "torch"), {"allow_pickle": True}, "Unsupported global"
    ),
    "numbers, allowed": (pickled([1, 2], "torch"), {"allow_pickle": True}, "no state dict"),
    "an empty file": (lambda path: path.touch(), {}, "less than the 8"),
    "text": (lambda path: path.write_text("hello, this is no model"), {}, "damaged"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), {}, "damaged"),
    "a header of terabytes": (
        lambda path: path.write_bytes((2**42).to_bytes(8, "little") + b"{}"), {}, "declares"
    ),
    "a model file already": (
        lambda path: ModelEngine("resnet20", num_classes=2).save(path), {}, "a model file of this"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_a_wrong_file_is_refused(what, suffix, tmp_path):
    make_file, options, message = FILES[what]
    make_file(tmp_path / f"model{suffix}")
    with pytest.raises(DeepSeekError, match=rf"{message}(.|\n)*"):
        convert(tmp_path / f"model{suffix}", **options)


@pytest.mark.parametrize("num_bytes", [128, 640])
def test_a_safetensors_file_with_a_header_of_640_bytes_is_no_pickle(num_bytes, tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(num_bytes)
    path = tmp_path / "model.safetensors"
    path.write_bytes(num_bytes.to_bytes(8, "little") + header + bytes(4))
    assert read_source(path).state.keys() == {"a"}
    assert not is_model_file(path)


def test_a_quantised_pruned_or_folded_engine_is_not_written_for_another_library(tmp_path, make):
    engine = convert(make("llama")).engine
    kept = {name: tensor.clone() for name, tensor in deepseek_to_pytorch(engine).items()}
    linear = "blocks.0.mlp.down"
    for scheme, is_written in (("bf16", True), ("int8_weight_only", False)):
        changed = copy.deepcopy(engine)
        change = {"kind": "quantised", "layers": {linear: {"scheme": scheme}}}
        apply_changes(changed.module, [change], "the test")
        changed.changes = (change,)
        if is_written:
            assert deepseek_to_pytorch(changed).keys() == kept.keys()
            continue
        for write in (deepseek_to_pytorch, partial(deepseek_to_huggingface, folder=tmp_path / "x")):
            with pytest.raises(ConfigError, match=r"\(quantised\), and no model of another"):
                write(changed)
    for kind in ("pruned", "folded", "quantisation-aware"):
        engine.changes = ({"kind": kind},)
        with pytest.raises(ConfigError, match=rf"\({kind}\)"):
            find_writer(engine)
    timms = ModelEngine("timm/resnet10t", num_classes=2)
    timms.changes = ({"kind": "pruned"},)
    with pytest.raises(ConfigError, match="pruned"):
        write_state_dict(timms, tmp_path / "model.safetensors")


def test_what_is_no_model_is_refused(tmp_path):
    for thing in (3, None, torch.zeros(2), [nn.Linear(2, 2)]):
        with pytest.raises(ConfigError, match=r"is no model(.|\n)*Fix:"):
            convert(thing)
    with pytest.raises(ConfigError, match="neither a file, a folder nor"):
        convert(str(tmp_path / "missing.safetensors"))
    with pytest.raises(ConfigError, match="is a ModelEngine already"):
        convert(ModelEngine("resnet20"))


def test_an_image_that_is_not_square_is_asked_for(make):
    state = make("vit_timm").state_dict()
    state["pos_embed"] = state["pos_embed"][:, :4]
    with pytest.raises(ConfigError, match=r"4 positions, 1 of them(.|\n)*give image_size="):
        convert(state, heads=3)


def test_what_no_library_has_is_not_written(tmp_path, make):
    engine = ModelEngine(
        "gpt", context_length=8, num_layers=1, dim=8, heads=2, num_classes=9, document_token=3
    )
    for layout in ("auto", "huggingface"):
        with pytest.raises(ConfigError, match=r"gpt2 \(huggingface\) were tried(.|\n)*Fix:"):
            deepseek_to_pytorch(engine, layout)
    with pytest.raises(ConfigError, match="layout='keras' is not known"):
        deepseek_to_pytorch(engine, "keras")
    good = convert(make("gpt2")).engine
    with pytest.raises(ConfigError, match="no model of another library"):
        deepseek_to_pytorch(good, "timm")
    with pytest.raises(ConfigError, match="does not say what to write"):
        write_state_dict(good, tmp_path / "model.onnx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ConfigError, match="is there already"):
        deepseek_to_huggingface(good, tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    shutil.rmtree(tmp_path / "full")
