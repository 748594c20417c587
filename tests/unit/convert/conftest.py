"""Small models of other libraries with random weights, one of each family and kind of head."""

import pytest
import timm
import torch
import torchvision
from torch import nn

transformers = pytest.importorskip("transformers")

_ENCODER = {
    "vocab_size": 40, "max_position_embeddings": 26, "num_hidden_layers": 2, "hidden_size": 24,
    "num_attention_heads": 3, "intermediate_size": 56,
}  # fmt: skip
_DISTIL = {
    "vocab_size": 40, "max_position_embeddings": 26, "n_layers": 2, "dim": 24, "n_heads": 3,
    "hidden_dim": 56,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 40, "n_positions": 16, "n_layer": 2, "n_embd": 24, "n_head": 3,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_LLAMA = {
    "vocab_size": 40, "max_position_embeddings": 32, "num_hidden_layers": 2, "hidden_size": 24,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 56,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_LLAMA3_ROTARY = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_VIT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 56,
    "image_size": 16, "patch_size": 8, "num_labels": 5,
}  # fmt: skip
_TIMM_VIT = {"depth": 2, "img_size": 32, "embed_dim": 24, "num_heads": 3}
_DEPTHS = {"depths": [1, 2, 1, 1], "num_labels": 5}


def _huggingface(name, config, **args):
    made_by = getattr(transformers, name)
    if name.endswith("Model") and not name.startswith(("Distil", "GPT2", "ResNet")):
        return lambda: made_by(config(**args), add_pooling_layer=False)
    return lambda: made_by(config(**args))


def _timm(name, **args):
    return lambda: timm.create_model(name, **args)


def _resnet(block, **args):
    kind = getattr(torchvision.models.resnet, block)
    return lambda: torchvision.models.ResNet(kind, [1, 2, 1, 1], num_classes=5, **args)


ORIGINALS = {
    **{
        f"{start.lower()}_{end.lower()}": _huggingface(start + end, config, **args)
        for start, config, args in (
            ("Bert", transformers.BertConfig, _ENCODER),
            ("Roberta", transformers.RobertaConfig, {**_ENCODER, "type_vocab_size": 1}),
            ("DistilBert", transformers.DistilBertConfig, _DISTIL),
        )
        for end in ("Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")
    },
    "bert_pooled": lambda: transformers.BertModel(transformers.BertConfig(**_ENCODER)),
    "gpt2": _huggingface("GPT2LMHeadModel", transformers.GPT2Config, **_GPT2),
    "gpt2_exact_gelu": _huggingface(
        "GPT2LMHeadModel", transformers.GPT2Config, **_GPT2, activation_function="gelu"
    ),
    "llama": _huggingface("LlamaForCausalLM", transformers.LlamaConfig, **_LLAMA),
    "llama3": _huggingface(
        "LlamaForCausalLM", transformers.LlamaConfig, **_LLAMA, rope_parameters=_LLAMA3_ROTARY,
        head_dim=8,
    ),
    "llama_tied": _huggingface(
        "LlamaForCausalLM", transformers.LlamaConfig, **_LLAMA, tie_word_embeddings=True
    ),
    "mistral": _huggingface(
        "MistralForCausalLM", transformers.MistralConfig, **_LLAMA, sliding_window=24
    ),
    "qwen2": _huggingface("Qwen2ForCausalLM", transformers.Qwen2Config, **_LLAMA),
    "qwen3": _huggingface("Qwen3ForCausalLM", transformers.Qwen3Config, **_LLAMA, head_dim=8),
    "vit_huggingface": _huggingface("ViTForImageClassification", transformers.ViTConfig, **_VIT),
    "vit_features": _huggingface("ViTModel", transformers.ViTConfig, **_VIT),
    "deit_huggingface": _huggingface("DeiTForImageClassification", transformers.DeiTConfig, **_VIT),
    "deit_two_heads": _huggingface(
        "DeiTForImageClassificationWithTeacher", transformers.DeiTConfig, **_VIT
    ),
    "vit_timm": _timm("vit_tiny_patch16_224", num_classes=5, **_TIMM_VIT),
    "vit_timm_mean": _timm(
        "vit_tiny_patch16_224", num_classes=5, class_token=False, global_pool="avg", fc_norm=False,
        **_TIMM_VIT,
    ),
    "vit_timm_features": _timm("vit_tiny_patch16_224", num_classes=0, **_TIMM_VIT),
    "deit_timm": _timm("deit_tiny_patch16_224", num_classes=5, **_TIMM_VIT),
    "deit_timm_distilled": _timm(
        "deit_tiny_distilled_patch16_224", num_classes=5, **_TIMM_VIT
    ),
    "vit_torchvision": lambda: torchvision.models.VisionTransformer(
        16, 8, 2, 3, 24, 56, num_classes=5
    ),
    "resnet_torchvision": _resnet("BasicBlock"),
    "resnet_bottleneck": _resnet("Bottleneck"),
    "resnext": _resnet("Bottleneck", groups=32, width_per_group=4),
    "resnet_wide": _resnet("Bottleneck", width_per_group=128),
    "resnet_timm": _timm("resnet18", num_classes=5),
    "resnet_timm_features": _timm("resnet18", num_classes=0),
    "resnet_huggingface": _huggingface(
        "ResNetForImageClassification", transformers.ResNetConfig, **_DEPTHS
    ),
    "resnet_huggingface_basic": _huggingface(
        "ResNetForImageClassification", transformers.ResNetConfig, **_DEPTHS, layer_type="basic",
        hidden_sizes=[64, 128, 256, 512],
    ),
    "resnet_huggingface_features": _huggingface(
        "ResNetModel", transformers.ResNetConfig, **_DEPTHS
    ),
}  # fmt: skip


def make_original(name):
    """Build a model whose every weight matters: libraries begin with zeros and ones."""
    torch.manual_seed(0)
    model = ORIGINALS[name]()
    for key, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and key.endswith("weight")
        nn.init.normal_(parameter, mean=float(is_scale), std=0.15)
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)
        elif key.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
    return model.eval()


@pytest.fixture(params=ORIGINALS)
def name(request):
    return request.param


@pytest.fixture
def original(name):
    return make_original(name)


@pytest.fixture
def make():
    return make_original
