"""Vision Transformers, as timm, torchvision and transformers spell them; DeiT among them."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from deepseek.convert.family import Family, Requirement, Shapes, read_number, read_size
from deepseek.convert.mapping import Leftover, Rule, module_rules, rename
from deepseek.convert.report import Assumption
from deepseek.convert.transformers_model import build_transformers
from deepseek.errors import CheckpointError, ConfigError
from deepseek.registry import import_extra

# num_layers, dim: Dosovitskiy et al. 2020, table 1; Touvron et al. 2020, table 1.
_HEADS = {(12, 192): 3, (12, 384): 6, (12, 768): 12, (24, 1024): 16, (32, 1280): 16}
_TIMM_BLOCK = {
    name: name for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
}
_TORCHVISION_LAYER = {
    "norm1": "ln_1",
    "attn.proj": "self_attention.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}
_HUGGINGFACE_LAYER = {
    "norm1": "layernorm_before",
    "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
# What transformers 5 calls in a module what is in its files under the names of before.
_IN_MEMORY = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    (".output.dense", ".mlp.fc2"),
)


def image_args(
    num_tokens: int, num_before: int, patch_shape: tuple[int, ...], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return sizes of images and patches.

    Args:
        num_tokens: rows of the table of positions.
        num_before: of these, how many are not patches.
        patch_shape: of the weight that projects patches, (D, C, P, P).
        given: may have an `image_size`, which positions tell of square images only.

    Raises:
        ConfigError: they do not.
        CheckpointError: patches are not square.
    """
    if len(patch_shape) != 4 or patch_shape[2] != patch_shape[3]:
        raise CheckpointError(
            f"the projection of patches has the shape {patch_shape}, not (D, C, P, P)",
            fix="hand over the module itself, to keep it as it is",
        )
    patch_size, num_patches = patch_shape[2], num_tokens - num_before
    args = {"dim": patch_shape[0], "channels": patch_shape[1], "patch_size": patch_size}
    if "image_size" not in given:
        side = math.isqrt(max(num_patches, 0))
        if side == 0 or side**2 != num_patches:
            raise ConfigError(
                f"{num_tokens} positions, {num_before} of them before the patches, are not those of"
                " a square image",
                fix="give image_size=(height, width) in pixels",
            )
        args["image_size"] = side * patch_size
    return args


def _patch_shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    return tuple(shapes.size(name, dim) for dim in range(4))


def _sides(args: Mapping[str, Any]) -> tuple[int, int]:
    size = args["image_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class TimmViT(Family):
    """timm's `VisionTransformer`, whose names are ours, and its distilled DeiT."""

    name = "vit"
    layout = "timm"
    architecture = "vit"
    anchors = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed")
    published_heads = _HEADS

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes, pooling, distillation and number of classes."""
        has_class, has_dist = shapes.has("cls_token"), shapes.has("dist_token")
        return {
            **image_args(
                shapes.size("pos_embed", 1),
                has_class + has_dist,
                _patch_shape(shapes, "patch_embed.proj.weight"),
                given,
            ),
            "num_layers": shapes.count("blocks."),
            "hidden_dim": shapes.size("blocks.0.mlp.fc1.weight", 0),
            "pool": "cls" if has_class else "mean",
            "distillation": "heads" if has_dist else "none",
            "num_classes": shapes.head_size("head.weight"),
        }

    def defaults(self, args: Mapping[str, Any]) -> list[Assumption]:
        """Return the epsilon."""
        return [Assumption("norm_eps", 1e-6, "timm's")]

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        tables = ["pos_embed"]
        tables += ["cls_token"] if args["pool"] == "cls" else []
        tables += ["dist_token"] if args["distillation"] != "none" else []
        rules = [rename(name, name) for name in tables]
        parts = ["patch_embed.proj", "norm"]
        if args["num_classes"] is not None:
            parts += ["head", "head_dist"] if args["distillation"] == "heads" else ["head"]
        rules += module_rules({name: name for name in parts})
        for index in range(args["num_layers"]):
            rules += module_rules(_TIMM_BLOCK, ours=f"blocks.{index}.", theirs=f"blocks.{index}.")
        return rules

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """A token for distillation has a head in timm."""
        return args["distillation"] != "token"

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return timm's model."""
        name = (
            "VisionTransformer" if args["distillation"] == "none" else "VisionTransformerDistilled"
        )
        made_by = getattr(import_extra("timm.models.deit", "all"), name)
        has_class = args["pool"] == "cls"
        return made_by(
            img_size=_sides(args), patch_size=args["patch_size"], in_chans=args["channels"],
            num_classes=args["num_classes"] or 0, embed_dim=args["dim"], depth=args["num_layers"],
            num_heads=args["heads"], mlp_ratio=args["hidden_dim"] / args["dim"],
            class_token=has_class, global_pool="token" if has_class else "avg",
            **({} if has_class else {"fc_norm": False}),
            norm_layer=partial(nn.LayerNorm, eps=args["norm_eps"]),
        )  # fmt: skip


class TorchvisionViT(Family):
    """torchvision's `VisionTransformer`."""

    name = "vit"
    layout = "torchvision"
    architecture = "vit"
    anchors = ("conv_proj.weight", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight")
    published_heads = _HEADS
    # torchvision 0.11 and before
    old_spellings = ((".mlp.linear_1.", ".mlp.0."), (".mlp.linear_2.", ".mlp.3."))

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes and number of classes."""
        layer = "encoder.layers.encoder_layer_"
        return {
            **image_args(
                shapes.size("encoder.pos_embedding", 1),
                1,
                _patch_shape(shapes, "conv_proj.weight"),
                given,
            ),
            "num_layers": shapes.count(layer),
            "hidden_dim": shapes.size(f"{layer}0.mlp.0.weight", 0),
            "num_classes": shapes.head_size("heads.head.weight"),
        }

    def defaults(self, args: Mapping[str, Any]) -> list[Assumption]:
        """Return the epsilon."""
        return [Assumption("norm_eps", 1e-6, "torchvision's")]

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        rules = [rename("cls_token", "class_token"), rename("pos_embed", "encoder.pos_embedding")]
        rules += module_rules({"patch_embed.proj": "conv_proj", "norm": "encoder.ln"})
        for index in range(args["num_layers"]):
            ours, theirs = f"blocks.{index}.", f"encoder.layers.encoder_layer_{index}."
            rules += module_rules(_TORCHVISION_LAYER, ours=ours, theirs=theirs)
            rules += [
                rename(f"{ours}attn.qkv.{kind}", f"{theirs}self_attention.in_proj_{kind}")
                for kind in ("weight", "bias")
            ]
        if args["num_classes"] is not None:
            rules += module_rules({"head": "heads.head"})
        return rules

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """In torchvision there is neither distillation nor a mean, and images are square."""
        is_plain = args["pool"] == "cls" and args["distillation"] == "none"
        return is_plain and isinstance(args["image_size"], int)

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return torchvision's model."""
        module = import_extra("torchvision.models", "all").VisionTransformer(
            args["image_size"], args["patch_size"], args["num_layers"], args["heads"], args["dim"],
            args["hidden_dim"], num_classes=args["num_classes"] or 1,
            norm_layer=partial(nn.LayerNorm, eps=args["norm_eps"]),
        )  # fmt: skip
        if args["num_classes"] is None:
            module.heads = nn.Identity()
        return module


class HuggingFaceViT(Family):
    """transformers' ViT and DeiT.

    Args:
        name: `model_type`.
        has_dist: whether there is a token for distillation.
    """

    layout = "huggingface"
    architecture = "vit"
    published_heads = _HEADS
    in_memory = _IN_MEMORY
    requirements = (
        Requirement("hidden_act", ("gelu",)),
        Requirement("qkv_bias", (True,)),
    )
    leftovers = (
        Leftover(r"(.*\.)?pooler\.dense\.(weight|bias)", "the head sees the class token itself"),
        Leftover(r"(.*\.)?embeddings\.mask_token", "for pictures with hidden patches"),
    )

    def __init__(self, name: str, has_dist: bool) -> None:
        self.name = name
        self.has_dist = has_dist
        self.prefixes = (f"{name}.", "")
        self.anchors = (
            "embeddings.patch_embeddings.projection.weight",
            "encoder.layer.0.attention.attention.query.weight",
            "embeddings.distillation_token" if has_dist else "embeddings.cls_token",
        )

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes, distillation and number of classes."""
        has_two_heads = "distillation_classifier.weight" in shapes.all
        distillation = "heads" if has_two_heads else "token"
        return {
            **image_args(
                shapes.size("embeddings.position_embeddings", 1),
                1 + self.has_dist,
                _patch_shape(shapes, "embeddings.patch_embeddings.projection.weight"),
                given,
            ),
            "num_layers": shapes.count("encoder.layer."),
            "hidden_dim": shapes.size("encoder.layer.0.intermediate.dense.weight", 0),
            "distillation": distillation if self.has_dist else "none",
            "num_classes": shapes.head_size("classifier.weight", "cls_classifier.weight"),
        }

    def args_from_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes and what weights do not tell."""
        size = config.get("image_size", 224)
        if not isinstance(size, int):
            size = read_size({"image_size": size[0]}, "image_size"), size[1]
        return {
            "image_size": size,
            "patch_size": read_size(config, "patch_size", 16),
            "channels": read_size(config, "num_channels", 3),
            "dim": read_size(config, "hidden_size", 768),
            "num_layers": read_size(config, "num_hidden_layers", 12),
            "heads": read_size(config, "num_attention_heads", 12),
            "hidden_dim": read_size(config, "intermediate_size", 3072),
            "norm_eps": read_number(config, "layer_norm_eps", 1e-12),
            "dropout": read_number(config, "hidden_dropout_prob", 0.0),
        }

    def defaults(self, args: Mapping[str, Any]) -> list[Assumption]:
        """Return the epsilon."""
        return [Assumption("norm_eps", 1e-12, f"as published models of {self.name} have it")]

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        before = f"{prefix}embeddings."
        rules = [
            rename("cls_token", f"{before}cls_token"),
            rename("pos_embed", f"{before}position_embeddings"),
        ]
        if self.has_dist:
            rules.append(rename("dist_token", f"{before}distillation_token"))
        rules += module_rules(
            {
                "patch_embed.proj": f"{before}patch_embeddings.projection",
                "norm": f"{prefix}layernorm",
            }
        )
        for index in range(args["num_layers"]):
            rules += module_rules(
                _HUGGINGFACE_LAYER,
                ours=f"blocks.{index}.",
                theirs=f"{prefix}encoder.layer.{index}.",
            )
        if args["num_classes"] is None:
            return rules
        if args["distillation"] != "heads":
            return rules + module_rules({"head": "classifier"})
        return rules + module_rules(
            {"head": "cls_classifier", "head_dist": "distillation_classifier"}
        )

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """Pooling is by the class token."""
        return args["pool"] == "cls" and self.has_dist == (args["distillation"] != "none")

    def written_prefix(self, args: Mapping[str, Any]) -> str:
        """Return the prefix; a model without a head has none."""
        return "" if args["num_classes"] is None else self.prefixes[0]

    def config_json(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `config.json`."""
        start = "DeiT" if self.has_dist else "ViT"
        end = "Model" if args["num_classes"] is None else "ForImageClassification"
        if args["distillation"] == "heads" and args["num_classes"] is not None:
            end += "WithTeacher"
        return {
            "architectures": [start + end],
            "model_type": self.name,
            "image_size": args["image_size"],
            "patch_size": args["patch_size"],
            "num_channels": args["channels"],
            "hidden_size": args["dim"],
            "num_hidden_layers": args["num_layers"],
            "num_attention_heads": args["heads"],
            "intermediate_size": args["hidden_dim"],
            "layer_norm_eps": args["norm_eps"],
            "hidden_dropout_prob": args["dropout"],
            "attention_probs_dropout_prob": args["dropout"],
            "hidden_act": "gelu",
            "qkv_bias": True,
            **({"num_labels": args["num_classes"]} if args["num_classes"] else {}),
        }

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return transformers' model."""
        values = {**self.config_json(args), **config}
        is_bare = values["architectures"][0].endswith("Model")
        return build_transformers(values, **({"add_pooling_layer": False} if is_bare else {}))

    def run(self, module: nn.Module, inputs: Tensor, args: Mapping[str, Any]) -> Tensor:
        """Return logits, or the class token where there is no head."""
        found = module(inputs)
        return found.last_hidden_state[:, 0] if args["num_classes"] is None else found.logits


TIMM_VIT = TimmViT()
TORCHVISION_VIT = TorchvisionViT()
HUGGINGFACE_VIT = HuggingFaceViT("vit", has_dist=False)
HUGGINGFACE_DEIT = HuggingFaceViT("deit", has_dist=True)
