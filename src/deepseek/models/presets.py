"""What names such as `llama3_8b` or `vit_base_patch16_224` stand for: a class and its arguments.

The sizes of transformers are in `deepseek.published`, which the planner reads as well. A name is the
planner's with an underscore: `deepseek plan llama3_8b`, `ModelEngine("llama3_8b")`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deepseek.models.classifier import Classifier
from deepseek.models.encoder import Encoder
from deepseek.models.gpt import GPT
from deepseek.models.llama import Llama
from deepseek.models.resnet import ResNet
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
    return found


def _llama_arguments(sizes: LlamaSizes) -> dict[str, object]:
    arguments = sizes._asdict()
    for name in ("vocab_size", "rope_factor", "window"):
        del arguments[name]
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
