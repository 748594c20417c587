"""Every family: in, out and in again, with the numbers of the library that it comes from."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from deepseek.convert import convert, deepseek_to_huggingface, deepseek_to_pytorch
from deepseek.convert.conversion import find_writer
from deepseek.convert.mapping import substitute
from deepseek.convert.recognition import FAMILIES
from deepseek.convert.verify import compare, sample_inputs
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.classifier import Classifier

transformers = pytest.importorskip("transformers")


def outputs_of(engine, inputs):
    module = engine.module.eval()
    with torch.no_grad():
        has_no_head = engine.num_classes is None and module.makes_logits
        return features(module, inputs) if has_no_head else module(inputs)


def features(module, inputs):
    name = module.hints.head[-1]
    setattr(module, name, torch.nn.Identity())
    try:
        return module(inputs)
    finally:
        setattr(module, name, None)


def test_a_module_becomes_our_model_with_its_numbers(original):
    conversion = convert(original)
    assert conversion.family is not None, conversion.report.summary()
    assert isinstance(conversion.engine.module, Classifier)
    difference = compare(conversion.engine, conversion.family, original, seed=1)
    assert difference.is_small, difference.describe()
    assert difference.scale > 1e-2
    told = {fate.theirs for fate in conversion.report.fates if fate.theirs}
    assert told == {respelled(conversion.family, key) for key in original.state_dict()}
    assert not conversion.report.lost


def respelled(family, key):
    return substitute(key, [(memory, file) for file, memory in reversed(family.in_memory)])


def test_weights_come_back_as_they_were(name, original):
    engine = convert(original).engine
    family = convert(original).family
    back = deepseek_to_pytorch(engine, family.layout)
    state = original.state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)
    original.load_state_dict(back)


def test_a_state_dict_needs_what_weights_do_not_tell_and_no_more(name, original):
    want = convert(original).engine
    needed = ["heads", "norm_eps", "activation", "rope_theta", "rope_scaling"]
    needed += ["context_length"] if want.architecture == "llama" else []
    given = {key: want.config[key] for key in needed if key in want.config}
    engine = convert(original.state_dict(), **given).engine
    dropout = {"dropout": want.config.get("dropout")}
    assert {**engine.config, **dropout} == {**want.config, **dropout}
    inputs = sample_inputs(want)
    assert torch.equal(outputs_of(engine, inputs), outputs_of(want, inputs))


def test_a_folder_of_transformers_is_read_and_written(name, original, tmp_path):
    if not isinstance(original, transformers.PreTrainedModel):
        pytest.skip("not of transformers")
    original.save_pretrained(tmp_path / "theirs")
    conversion = convert(tmp_path / "theirs")
    assert conversion.report.assumptions == []
    assert compare(conversion.engine, conversion.family, original).is_small
    deepseek_to_huggingface(conversion.engine, tmp_path / "ours")
    is_bare = type(original).__name__ in ("BertModel", "RobertaModel", "ViTModel")
    bare = {"add_pooling_layer": False} if is_bare and name != "bert_pooled" else {}
    opened, info = type(original).from_pretrained(
        tmp_path / "ours", output_loading_info=True, **bare
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert compare(conversion.engine, conversion.family, opened.eval()).is_small
    theirs, ours = original.state_dict(), opened.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_a_model_of_ours_is_written_in_every_layout_that_computes_it(name, original):
    engine = convert(original).engine
    num_written = 0
    for layout in ("huggingface", "timm", "torchvision"):
        if not any(
            family.layout == layout
            and family.architecture == engine.architecture
            and family.can_write(engine.config)
            for family in FAMILIES
        ):
            with pytest.raises(ConfigError, match="no model of another library"):
                deepseek_to_pytorch(engine, layout)
            continue
        family = find_writer(engine, layout)
        module = family.reference(engine.config, {})
        module.load_state_dict(deepseek_to_pytorch(engine, layout))
        assert compare(engine, family, module.eval()).is_small
        num_written += 1
    assert num_written > 0


LOAD = """
import sys
for name in ("transformers", "timm", "safetensors.torch"):
    sys.modules[name] = None  # importing them fails
import torch
from deepseek.models import ModelEngine
from deepseek.models.weights import read_weights
torch.set_num_threads(1)
for path in sys.argv[1:]:
    engine = ModelEngine.load(path).eval()
    kept = read_weights(path + ".safetensors")
    with torch.no_grad():
        found = engine(kept["inputs"])
    assert torch.equal(found, kept["outputs"]), path
print("equal", len(sys.argv) - 1)
"""


def test_model_files_load_without_the_library_that_they_come_from(make, tmp_path):
    names = ["bert_formaskedlm", "roberta_forsequenceclassification", "distilbert_model", "gpt2",
             "deit_two_heads", "vit_torchvision", "resnet_timm", "resnet_huggingface"]  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    paths = []
    for name in names:
        engine = convert(make(name)).engine.eval()
        path = str(tmp_path / f"{name}.bin")
        engine.save(path)
        inputs = sample_inputs(engine)
        with torch.no_grad():
            outputs = engine(inputs).contiguous()
        save_file({"inputs": inputs, "outputs": outputs}, f"{path}.safetensors")
        paths.append(path)
    torch.set_num_threads(threads)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout.strip() == f"equal {len(names)}", done.stderr


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision_become_float32_unless_kept(dtype, make):
    half = getattr(torch, dtype)
    state = {key: tensor.to(half) for key, tensor in make("bert_model").state_dict().items()}
    conversion = convert(state, heads=3)
    assert all(p.dtype == torch.float32 for p in conversion.engine.parameters())
    assert any("cast from" in note for note in conversion.report.notes)
    kept = convert(state, heads=3, dtype="keep").engine
    assert all(p.dtype == half for p in kept.parameters())


def test_converted_models_are_trained_without_touching_the_original(make):
    original = make("bert_forsequenceclassification")
    before = {key: tensor.clone() for key, tensor in original.state_dict().items()}
    engine = convert(original).engine.train()
    engine(sample_inputs(engine)).sum().backward()
    assert all(parameter.grad is not None for parameter in engine.parameters())
    with torch.no_grad():
        for parameter in engine.parameters():
            parameter.add_(1)
    assert all(torch.equal(original.state_dict()[key], before[key]) for key in before)


def test_tied_weights_stay_tied(make, tmp_path):
    engine = convert(make("gpt2")).engine
    assert engine.module.head.weight is engine.module.tok_embed.weight
    engine.save(tmp_path / "gpt2.bin")
    module = ModelEngine.load(tmp_path / "gpt2.bin").module
    assert module.head.weight is module.tok_embed.weight
