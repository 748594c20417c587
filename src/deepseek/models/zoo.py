"""Architectures by name: our own, which know their `ParallelHints`, and every name of timm.

A name of ours wins over timm's; `timm/NAME` always means timm's. timm is imported when a name is
not ours, or when names are listed.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from deepseek.errors import ConfigError
from deepseek.models.center_detector import CenterDetector3D
from deepseek.models.classifier import Classifier
from deepseek.models.encoder import Encoder
from deepseek.models.gpt import GPT
from deepseek.models.hints import ParallelHints
from deepseek.models.imagenet_resnet import ImageNetResNet
from deepseek.models.llama import Llama
from deepseek.models.multi_head import MultiHead
from deepseek.models.presets import Architecture, published_presets
from deepseek.models.resnet import ResNet
from deepseek.models.unet3d import UNet3D
from deepseek.models.vit import VisionTransformer
from deepseek.registry import Registry, did_you_mean, nearest

TIMM_PREFIX = "timm/"
# Arguments of timm's factory that read files, fetch weights or change what a forward returns.
_TIMM_RESERVED = frozenset(
    {
        "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
        "scriptable", "exportable", "no_jit", "features_only", "num_classes",
    }
)  # fmt: skip


class ArgumentProblem(NamedTuple):
    """One argument that an architecture does not take.

    Attributes:
        key: name of the argument.
        message: what is wrong.
        suggestion: how to mend it.
    """

    key: str
    message: str
    suggestion: str


# Models of tables belong to a layer above: they are named here, and imported when asked for.
ARCHITECTURES: Registry[Architecture] = Registry(
    "model",
    {
        "dcn": "deepseek.recsys.crossing:DCN",
        "dcn_v2": "deepseek.recsys.crossing:DCN_V2",
        "deepfm": "deepseek.recsys.crossing:DEEPFM",
        "din": "deepseek.recsys.interest_network:DIN",
        "esmm": "deepseek.recsys.joint_models:ESMM",
        "fm": "deepseek.recsys.first_models:FACTORIZATION_MACHINE",
        "logistic_regression": "deepseek.recsys.first_models:LOGISTIC_REGRESSION",
        "mlp": "deepseek.recsys.first_models:MLP",
        "mmoe": "deepseek.recsys.joint_models:MMOE",
        "ple": "deepseek.recsys.joint_models:PLE",
        "sasrec": "deepseek.recsys.sasrec:SASREC",
        "two_tower": "deepseek.recsys.two_tower:TWO_TOWER",
    },
)
ARCHITECTURES.register("vit")(Architecture(VisionTransformer))
ARCHITECTURES.register("resnet")(Architecture(ResNet))
ARCHITECTURES.register("imagenet_resnet")(Architecture(ImageNetResNet))
ARCHITECTURES.register("gpt")(Architecture(GPT))
ARCHITECTURES.register("llama")(Architecture(Llama))
ARCHITECTURES.register("encoder")(Architecture(Encoder))
ARCHITECTURES.register("multi_head")(Architecture(MultiHead))
ARCHITECTURES.register("unet3d")(Architecture(UNet3D))
ARCHITECTURES.register("center_detector3d")(Architecture(CenterDetector3D))
for _name, _preset in published_presets().items():
    ARCHITECTURES.register(_name)(_preset)


def list_models(*, own_only: bool = False) -> list[str]:
    """Return the names of all architectures, ours first.

    Args:
        own_only: leave timm's out, and timm unimported.
    """
    own = ARCHITECTURES.names()
    if own_only:
        return own
    return own + [name for name in _timm().list_models() if name not in ARCHITECTURES]


def is_own(architecture: str) -> bool:
    """Return whether the name is one of our own architectures."""
    return architecture in ARCHITECTURES


def is_timm(architecture: str) -> bool:
    """Return whether timm has the name, with or without the prefix `timm/`."""
    # is_model, not create_model: the latter also takes addresses and folders.
    return bool(_timm().is_model(architecture.removeprefix(TIMM_PREFIX)))


def timm_head_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that make logits in a model of timm's."""
    classifier: str | tuple[str, ...] | None = _timm_cfg(module).get("classifier")
    if classifier is None:
        return ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def timm_hints(module: nn.Module) -> ParallelHints:
    """Return what is known of the parts of a model of timm's."""
    # A transformer has one convolution, for its patches: it gains nothing from channels-last.
    num_convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    return ParallelHints(head=timm_head_names(module), prefers_channels_last=num_convolutions > 1)


def timm_input_shape(
    module: nn.Module, args: Mapping[str, object]
) -> tuple[int, int | None, int | None]:
    """Return channels, height and width that a model of timm's takes; `None`: any."""
    cfg, given = _timm_cfg(module), _for_timm(args)
    channels, height, width = cfg.get("input_size") or (3, None, None)
    channels = given.get("in_chans", channels)
    if not cfg.get("fixed_input_size") or given.get("dynamic_img_size"):
        return channels, None, None
    size = given.get("img_size", (height, width))
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


def timm_name(architecture: str) -> str:
    """Return what timm calls an architecture that is not ours.

    Raises:
        ConfigError: if timm does not have it either; the message has the nearest names of both.
    """
    name = architecture.removeprefix(TIMM_PREFIX)
    if is_timm(architecture):
        return name
    close = nearest(name, list_models(), count=5)
    raise ConfigError(
        f"unknown architecture {architecture!r}",
        fix=(
            "did you mean " + ", ".join(f'"{entry}"' for entry in close) + "?"
            if close
            else "choose one of deepseek.models.list_models()"
        ),
    )


def build_model(
    architecture: str, num_classes: int | None, args: Mapping[str, object]
) -> nn.Module:
    """Build an architecture with fresh weights.

    Args:
        architecture: a name of `list_models`, or `timm/NAME`.
        num_classes: outputs; `None` builds no head.
        args: arguments of the architecture.

    Raises:
        ConfigError: if the name or an argument is unknown, or a value breaks a rule.
    """
    problems = check_model_args(architecture, args)
    if problems:
        raise ConfigError(
            f"architecture {architecture!r}: " + "; ".join(entry.message for entry in problems),
            fix="; ".join(entry.suggestion for entry in problems),
        )
    if is_own(architecture):
        entry = ARCHITECTURES.get(architecture)
        return entry.build(**{**entry.preset, **args, "num_classes": num_classes})
    try:
        return _timm().create_model(
            timm_name(architecture), num_classes=num_classes or 0, **_for_timm(args)
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"timm cannot build {architecture!r} with {dict(args)}: {error}",
            fix="change or leave out the arguments that the message names",
        ) from error


def check_model_args(architecture: str, args: Mapping[str, object]) -> list[ArgumentProblem]:
    """Return what is wrong with the arguments, without building any weights.

    For timm's architectures only what can be known without building is checked.

    Raises:
        ConfigError: if the architecture is unknown.
    """
    if not is_own(architecture):
        timm_name(architecture)
        return [
            ArgumentProblem(key, f"{key}={args[key]!r} is set elsewhere", f"leave {key} out")
            for key in args
            if key in _TIMM_RESERVED
        ]
    entry = ARCHITECTURES.get(architecture)
    parameters = inspect.signature(entry.build).parameters
    known = [name for name in parameters if name != "num_classes"]
    problems = [
        ArgumentProblem(key, f"unknown argument {key}={value!r}", did_you_mean(key, known))
        for key, value in args.items()
        if key not in known
    ]
    given = {**entry.preset, **args}
    problems += [
        ArgumentProblem(name, f"{name} is missing", f"give {name}")
        for name in known
        if name not in given and parameters[name].default is inspect.Parameter.empty
    ]
    return problems


def name_of(model: Classifier) -> str | None:
    """Return the name under which a model's class is registered without a preset, if it is."""
    for name in ARCHITECTURES.names():
        entry = ARCHITECTURES.get(name)
        if entry.build is type(model) and not entry.preset:
            return name
    return None


def _for_timm(args: Mapping[str, object]) -> dict[str, Any]:
    """Translate our vocabulary where timm has another word for the same thing."""
    words = {"channels": "in_chans", "image_size": "img_size"}
    return {words.get(key, key): value for key, value in args.items()}


def _timm_cfg(module: nn.Module) -> dict[str, Any]:
    return module.pretrained_cfg  # pyright: ignore[reportReturnType]  # set by timm's factory


def _timm():
    return importlib.import_module("timm")  # 2.6 s, so not at import
