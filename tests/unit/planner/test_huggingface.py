import pytest

from deepseek.errors import ConfigError
from deepseek.planner import (
    TransformerShape,
    find_shape,
    shape_from_huggingface,
    shape_from_table,
)
from deepseek.planner.flops import count_parameters
from deepseek.planner.huggingface import KINDS

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
    "hidden_act": "silu",
}
CONFIGS = {
    "gpt2-124m": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
        "resid_pdrop": 0.1,
    },
    "llama3-8b": LLAMA_3_8B,
    "mixtral-8x7b": LLAMA_3_8B
    | {
        "model_type": "mixtral",
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_shape_of_the_preset(name):
    shape, preset = shape_from_huggingface(CONFIGS[name]), find_shape(name)
    assert count_parameters(shape) == count_parameters(preset)
    assert (shape.kv_heads, shape.hidden_dim, shape.dropout) == (
        preset.kv_heads,
        preset.hidden_dim,
        preset.dropout,
    )


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (
            {
                "model_type": "bert",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "max_position_embeddings": 512,
                "vocab_size": 30522,
            },
            0.335,
        ),
        (
            {
                "model_type": "opt",
                "hidden_size": 4096,
                "ffn_dim": 16384,
                "num_attention_heads": 32,
                "num_hidden_layers": 32,
                "max_position_embeddings": 2048,
                "vocab_size": 50272,
            },
            6.66,
        ),
        (
            {
                "model_type": "falcon",
                "hidden_size": 4544,
                "num_attention_heads": 71,
                "num_hidden_layers": 32,
                "max_position_embeddings": 2048,
                "vocab_size": 65024,
                "multi_query": True,
            },
            6.92,
        ),
        (
            {
                "model_type": "gpt_neox",
                "hidden_size": 6144,
                "intermediate_size": 24576,
                "num_attention_heads": 64,
                "num_hidden_layers": 44,
                "max_position_embeddings": 2048,
                "vocab_size": 50432,
                "tie_word_embeddings": False,
            },
            20.55,
        ),
    ],
    ids=["bert-large", "opt-6.7b", "falcon-7b", "gpt-neox-20b"],
)
def test_other_families_have_their_published_size(config, billions):
    assert count_parameters(shape_from_huggingface(config)) / 1e9 == pytest.approx(
        billions, rel=0.01
    )


def test_a_length_may_be_given():
    assert shape_from_huggingface(LLAMA_3_8B, 131072).context_length == 131072


def test_a_missing_size_is_named():
    config = {k: v for k, v in LLAMA_3_8B.items() if k != "hidden_size"}
    with pytest.raises(ConfigError, match="hidden_size, n_embd"):
        shape_from_huggingface(config)


TINY = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "deepseek_v3"}, "model_type='deepseek_v3', which the planner"),
        ({"model_type": "t5"}, "model_type='t5'"),
        ({"model_type": "gpt3"}, 'did you mean "gpt2"'),
        ({"model_type": None}, "add model_type"),
        ({"model_type": "bert", "is_encoder_decoder": True}, "model_type='bert'"),
        ({"hidden_size": [96, 192]}, r"dim=\[96, 192\]"),
        ({"hidden_size": "big"}, "dim='big'"),
        ({"model_type": "vit", "image_size": 30, "patch_size": 16}, "image_size=30"),
    ],
)
def test_what_would_be_counted_as_another_model_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        shape_from_huggingface({**TINY, **changes})


SIZES = {
    "num_hidden_layers": 3, "hidden_size": 256, "num_attention_heads": 8, "vocab_size": 2000,
    "max_position_embeddings": 256, "intermediate_size": 1024, "image_size": 224, "patch_size": 16,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 4, "head_dim": 32}
OTHER_NAMES = {
    "gpt2": {"n_layer": 3, "n_embd": 256, "n_head": 8, "n_positions": 256},
    "gpt_neo": {"num_layers": 3, "attention_types": [[["global"], 3]], "num_heads": 8},
    "opt": {"ffn_dim": 1024, "word_embed_proj_dim": 256},
    "bloom": {"n_layer": 3, "n_head": 8},
    "mpt": {"n_layers": 3, "d_model": 256, "n_heads": 8, "max_seq_len": 256},
    "distilbert": {"n_layers": 3, "dim": 256, "n_heads": 8, "hidden_dim": 1024},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 512},
}
CLASSES = {"vit": "ViTForImageClassification", "deit": "DeiTForImageClassificationWithTeacher"}
OFTEN = ("llama", "gpt2", "bert", "vit")


@pytest.mark.parametrize(
    "kind", [k if k in OFTEN else pytest.param(k, marks=pytest.mark.long) for k in KINDS]
)
def test_every_known_kind_has_the_weights_that_transformers_builds(kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="needs the extra text: transformers")
    sizes = {**SIZES, **(GROUPED if KINDS[kind].is_gated else {}), **OTHER_NAMES.get(kind, {})}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        if kind in CLASSES:
            model = getattr(transformers, CLASSES[kind])(config)
        elif KINDS[kind].is_causal:
            model = transformers.AutoModelForCausalLM.from_config(config)
        else:
            model = transformers.AutoModelForMaskedLM.from_config(config)
    built = sum(weight.numel() for weight in model.parameters())
    shape = shape_from_huggingface(config.to_dict())
    assert count_parameters(shape) == pytest.approx(built, rel=0.03)
    assert shape.num_layers == 3
    assert shape.context_length == {"vit": 197, "deit": 198}.get(kind, 256)


def test_a_table_of_sizes_is_a_shape():
    table = {"num_layers": 2, "dim": 64, "heads": 4, "vocab_size": 100, "context_length": 32}
    assert shape_from_table(table) == TransformerShape("model", 2, 64, 4, 100, 32)
    with pytest.raises(ConfigError, match=r"unknown=\['width'\], missing=\['dim'\]"):
        shape_from_table({k: v for k, v in table.items() if k != "dim"} | {"width": 3})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 5}, "heads=5 does not divide dim=64"),
        ({"kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ({"num_layers": 0}, "num_layers=0"),
    ],
)
def test_impossible_shapes_are_refused(change, words):
    table = {"num_layers": 2, "dim": 64, "heads": 4, "vocab_size": 100, "context_length": 32}
    with pytest.raises(ConfigError, match=words):
        shape_from_table(table | change)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ConfigError, match="model='gpt5' is not among"):
        find_shape("gpt5")
