"""Residual networks, as torchvision, timm, transformers and `pytorch_resnet_cifar10` spell them."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from deepseek.convert.family import Family, Requirement, Shapes
from deepseek.convert.mapping import KINDS, Rule, module_rules, rename
from deepseek.convert.transformers_model import build_transformers
from deepseek.errors import ConfigError
from deepseek.models.imagenet_resnet import EXPANSIONS, STEM_WIDTH
from deepseek.registry import import_extra

_STATISTICS = (*KINDS, "running_mean", "running_var", "num_batches_tracked")


def _convolutions(block: str) -> int:
    return 3 if block == "bottleneck" else 2


def _blocks(args: Mapping[str, Any]) -> Iterator[tuple[int, int, bool]]:
    """Yield stage, number in the stage, and whether there are weights in the shortcut."""
    for stage, depth in enumerate(args["depths"]):
        for index in range(depth):
            widens = index == 0 and (stage > 0 or EXPANSIONS[args["block"]] > 1)
            yield stage, index, widens


def _norms(table: Mapping[str, str]) -> list[Rule]:
    return module_rules(table, kinds=_STATISTICS)


class TorchvisionResNet(Family):
    """torchvision's ResNet, ResNeXt and Wide ResNet; timm's have the same names, which are ours."""

    name = "resnet"
    layout = "torchvision"
    architecture = "imagenet_resnet"
    anchors = ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight", "bn1.running_mean")
    unknown = ()

    def fits(self, shapes: Shapes) -> bool:
        """The stem is one convolution of 7x7."""
        return shapes.all[f"{shapes.prefix}conv1.weight"][2:] == (7, 7)

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return depths, kind of block, groups and number of classes."""
        is_deep = shapes.has("layer1.0.conv3.weight")
        args: dict[str, Any] = {
            "depths": [shapes.count(f"layer{stage}.") for stage in (1, 2, 3, 4)],
            "block": "bottleneck" if is_deep else "basic",
            "channels": shapes.size("conv1.weight", 1),
            "num_classes": shapes.head_size("fc.weight"),
        }
        if is_deep:
            inner, per_group = (shapes.size("layer1.0.conv2.weight", dim) for dim in (0, 1))
            groups = inner // max(per_group, 1)
            args |= {"groups": groups, "group_width": inner // max(groups, 1)}
        return args

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        rules = [rename("conv1.weight", "conv1.weight"), *_norms({"bn1": "bn1"})]
        for stage, index, has_shortcut in _blocks(args):
            block = f"layer{stage + 1}.{index}."
            pairs = [(f"conv{n + 1}", f"bn{n + 1}") for n in range(_convolutions(args["block"]))]
            pairs += [("downsample.0", "downsample.1")] if has_shortcut else []
            for convolution, norm in pairs:
                name = f"{block}{convolution}.weight"
                rules += [rename(name, name), *_norms({block + norm: block + norm})]
        return rules + (module_rules({"fc": "fc"}) if args["num_classes"] is not None else [])

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """Every one."""
        return True

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return torchvision's model."""
        resnet = import_extra("torchvision.models.resnet", "all")
        kind = resnet.Bottleneck if args["block"] == "bottleneck" else resnet.BasicBlock
        module = resnet.ResNet(
            kind, args["depths"], num_classes=args["num_classes"] or 1, groups=args["groups"],
            width_per_group=args["group_width"],
        )  # fmt: skip
        if args["channels"] != 3:
            module.conv1 = nn.Conv2d(args["channels"], STEM_WIDTH, 7, 2, 3, bias=False)
        if args["num_classes"] is None:
            module.fc = nn.Identity()
        return module


class HuggingFaceResNet(Family):
    """transformers' ResNet."""

    name = "resnet"
    layout = "huggingface"
    architecture = "imagenet_resnet"
    prefixes = ("resnet.", "")
    anchors = (
        "embedder.embedder.convolution.weight",
        "encoder.stages.3.layers.0.layer.0.convolution.weight",
    )
    unknown = ()
    requirements = (
        Requirement("hidden_act", ("relu",)),
        Requirement("downsample_in_first_stage", (False,)),
        Requirement("downsample_in_bottleneck", (False,)),
        Requirement("embedding_size", (STEM_WIDTH,)),
    )

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return depths, kind of block and number of classes."""
        is_deep = shapes.has("encoder.stages.0.layers.0.layer.2.convolution.weight")
        return {
            "depths": [shapes.count(f"encoder.stages.{stage}.layers.") for stage in range(4)],
            "block": "bottleneck" if is_deep else "basic",
            "channels": shapes.size("embedder.embedder.convolution.weight", 1),
            "num_classes": shapes.head_size("classifier.1.weight"),
        }

    def args_from_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return depths and kind of block."""
        return {
            "depths": config.get("depths", [3, 4, 6, 3]),
            "block": config.get("layer_type", "bottleneck"),
            "channels": config.get("num_channels", 3),
        }

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        stem = f"{prefix}embedder.embedder."
        rules = [rename("conv1.weight", f"{stem}convolution.weight")]
        rules += _norms({"bn1": f"{stem}normalization"})
        for stage, index, has_shortcut in _blocks(args):
            ours = f"layer{stage + 1}.{index}."
            theirs = f"{prefix}encoder.stages.{stage}.layers.{index}."
            parts = {
                f"layer.{n}": (f"conv{n + 1}", f"bn{n + 1}")
                for n in range(_convolutions(args["block"]))
            }
            parts |= {"shortcut": ("downsample.0", "downsample.1")} if has_shortcut else {}
            for part, (convolution, norm) in parts.items():
                weight = f"{theirs}{part}.convolution.weight"
                rules.append(rename(f"{ours}{convolution}.weight", weight))
                rules += _norms({ours + norm: f"{theirs}{part}.normalization"})
        has_head = args["num_classes"] is not None
        return rules + (module_rules({"fc": "classifier.1"}) if has_head else [])

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """Hugging Face's has neither groups nor wider blocks."""
        return args["groups"] == 1 and args["group_width"] == STEM_WIDTH

    def written_prefix(self, args: Mapping[str, Any]) -> str:
        """Return the prefix; a model without a head has none."""
        return "" if args["num_classes"] is None else self.prefixes[0]

    def config_json(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `config.json`."""
        widths = [STEM_WIDTH * 2**stage * EXPANSIONS[args["block"]] for stage in range(4)]
        has_head = args["num_classes"] is not None
        return {
            "architectures": ["ResNetForImageClassification" if has_head else "ResNetModel"],
            "model_type": self.name,
            "num_channels": args["channels"],
            "embedding_size": STEM_WIDTH,
            "hidden_sizes": widths,
            "depths": args["depths"],
            "layer_type": args["block"],
            "hidden_act": "relu",
            **({"num_labels": args["num_classes"]} if has_head else {}),
        }

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return transformers' model."""
        return build_transformers({**self.config_json(args), **config})

    def run(self, module: nn.Module, inputs: Tensor, args: Mapping[str, Any]) -> Tensor:
        """Return logits, or what is pooled where there is no head."""
        found = module(inputs)
        return found.pooler_output.flatten(1) if args["num_classes"] is None else found.logits


class CifarResNet(Family):
    """The small ResNets of `pytorch_resnet_cifar10`, whose names are ours."""

    name = "resnet_cifar"
    layout = "pytorch_resnet_cifar10"
    architecture = "resnet"
    anchors = ("conv1.weight", "layer3.0.conv1.weight", "linear.weight")
    unknown = ()

    def fits(self, shapes: Shapes) -> bool:
        """There are three stages after a convolution of 3x3, and shortcuts without weights."""
        is_small = shapes.all[f"{shapes.prefix}conv1.weight"][2:] == (3, 3)
        has_more = shapes.has("layer4.0.conv1.weight") or shapes.has("layer2.0.shortcut.0.weight")
        return is_small and not has_more

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return depth, width and number of classes."""
        return {
            "num_layers": 6 * shapes.count("layer1.") + 2,
            "channels": shapes.size("conv1.weight", 1),
            "width": shapes.size("conv1.weight", 0),
            "num_classes": shapes.head_size(f"{shapes.prefix}linear.weight"),
        }

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        rules = [rename("conv1.weight", "conv1.weight"), *_norms({"bn1": "bn1"})]
        for stage in (1, 2, 3):
            for index in range((args["num_layers"] - 2) // 6):
                for number in (1, 2):
                    block = f"layer{stage}.{index}."
                    name = f"{block}conv{number}.weight"
                    norm = f"{block}bn{number}"
                    rules += [rename(name, name), *_norms({norm: norm})]
        has_head = args["num_classes"] is not None
        return rules + (module_rules({"linear": "linear"}) if has_head else [])

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """Every one."""
        return True

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Raise: no package that can be installed has it."""
        raise ConfigError(
            "the models of pytorch_resnet_cifar10 are in no package, so there is nothing to compare"
            " with",
            fix="leave verify out, or compare with the module itself: convert(module)",
        )


TORCHVISION_RESNET = TorchvisionResNet()
HUGGINGFACE_RESNET = HuggingFaceResNet()
CIFAR_RESNET = CifarResNet()
