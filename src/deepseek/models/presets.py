"""What names such as `llama3_8b` or `vit_base_patch16_224` stand for: a class and its arguments.

The sizes of transformers are in `deepseek.published`, which the planner reads as well. A name is
the planner's with an underscore: `deepseek plan llama3_8b`, `ModelEngine("llama3_8b")`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deepseek.models.classifier import Classifier
from deepseek.models.encoder import Encoder
from deepseek.models.gpt import GPT
from deepseek.models.llama import Llama
from deepseek.models.resnet import ResNet
from deepseek.models.unet3d import UNet3D
from deepseek.models.vit import VisionTransformer
from deepseek.published import (
    BERT_CONTEXT_LENGTH,
    BERT_VOCAB_SIZE,
    BERTS,
    GPTS,
    LLAMAS,
    VITS,
    LlamaSizes,
)

# (image_size, patch_size), in pixels
_VIT_INPUTS = {
    "tiny": ((224, 16), (32, 4)),
    "small": ((224, 16), (32, 4)),
    "base": ((224, 16), (224, 32)),
    "large": ((224, 16),),
    "huge": ((224, 14),),
}
_RESNET_DEPTHS = (20, 32, 44, 56, 110)


# Features and blocks of each level. Tiny and small are for a CPU; base has the levels of nnU-Net's
# default for large volumes, medium those of its residual encoder (Isensee et al. 2024); large is as
# deep and half as wide again, for a GPU of 80 GB.
_UNETS = {
    "tiny": ((8, 16, 32), 1),
    "small": ((16, 32, 64, 128), 1),
    "base": ((32, 64, 128, 256, 320), 2),
    "medium": ((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)),
    "large": ((48, 96, 192, 384, 480, 480), (1, 3, 4, 6, 6, 6)),
}


@dataclass(frozen=True)
class Architecture:
    """An entry of the zoo.

    Attributes:
        build: the class; its signature says which arguments a user may give.
        preset: arguments that the name stands for; a user's own win.
    """

    build: Callable[..., Classifier]
    preset: Mapping[str, object] = field(default_factory=dict)


def published_presets() -> dict[str, Architecture]:
    """Return the architectures of published sizes, by name."""
    found: dict[str, Architecture] = {}
    for name, sizes in GPTS.items():
        preset = sizes._asdict()
        del preset["vocab_size"]  # comes from the data
        found[name.replace("-", "_")] = Architecture(GPT, preset)
    for name, sizes in LLAMAS.items():
        found[name.replace("-", "_")] = Architecture(Llama, _llama_arguments(sizes))
    for name, sizes in BERTS.items():
        text = {"vocab_size": BERT_VOCAB_SIZE, "context_length": BERT_CONTEXT_LENGTH}
        found[f"encoder_{name}"] = Architecture(Encoder, {**text, **sizes._asdict()})
    for name, sizes in VITS.items():
        for image_size, patch_size in _VIT_INPUTS[name]:
            image = {"image_size": image_size, "patch_size": patch_size}
            preset = Architecture(VisionTransformer, {**image, **sizes._asdict()})
            found[f"vit_{name}_patch{patch_size}_{image_size}"] = preset
    for depth in _RESNET_DEPTHS:
        found[f"resnet{depth}"] = Architecture(ResNet, {"num_layers": depth})
    for name, (features, blocks) in _UNETS.items():
        found[f"unet3d_{name}"] = Architecture(UNet3D, {"features": features, "blocks": blocks})
    return found


def _llama_arguments(sizes: LlamaSizes) -> dict[str, object]:
    arguments = sizes._asdict()
    for name in ("vocab_size", "rope_factor", "window"):
        del arguments[name]
    arguments["head_dim"] = sizes.head_dim or None
    if sizes.window:  # attention to all is the same up to here
        arguments["context_length"] = min(sizes.window, sizes.context_length)
    if sizes.rope_factor:
        arguments["rope_scaling"] = {
            "factor": sizes.rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": sizes.context_length,
        }
    return arguments
