"""BERT, RoBERTa and DistilBERT, as transformers spells them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.convert.family import Family, Requirement, Shapes, read_number, read_size
from deepseek.convert.mapping import Leftover, Rule, module_rules, rename
from deepseek.convert.report import Assumption
from deepseek.convert.transformers_model import build_transformers

_BERT_LAYER = {
    "attn.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attn.proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "attn.qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attn.proj": "attention.out_lin",
    "norm1": "sa_layer_norm",
    "fc1": "ffn.lin1",
    "fc2": "ffn.lin2",
    "norm2": "output_layer_norm",
}
_LEFTOVERS = (
    Leftover(r"(.*\.)?embeddings\.(position|token_type)_ids", "counted anew", is_derived=True),
    Leftover(r"(.*\.)?pooler\.dense\.(weight|bias)", "only outputs='sequence' has a pooler"),
    Leftover(r"cls\.seq_relationship\.(weight|bias)", "next-sentence head of pre-training"),
    Leftover(
        r"(pre_classifier|classifier|cls\.predictions|lm_head|vocab_\w+)\..*",
        "a head for other outputs",
    ),
)
_PER_TOKEN = ("ForTokenClassification", "ForQuestionAnswering")
"""Ends of the names of transformers' classes whose outputs are those of tokens."""
# num_layers, dim: Devlin et al. 2018, Turc et al. 2019, Liu et al. 2019, Sanh et al. 2019.
_HEADS = {
    (2, 128): 2, (4, 256): 4, (4, 512): 8, (8, 512): 8, (6, 768): 12, (12, 768): 12,
    (24, 1024): 16,
}  # fmt: skip


# dim: MiniLM (Wang et al. 2020, arXiv 2002.10957), TinyBERT (Jiao et al. 2019, arXiv 1909.10351).
_LIKELY_HEADS = {384: 12, 312: 12}


@dataclass(frozen=True)
class EncoderNames:
    """What one of the families calls the parts of an encoder, and the keys of its configuration.

    Attributes:
        layers: what stands before the number of a layer.
        layer: table of a layer.
        has_types: whether there is a table of types.
        poolers: the pooler of a model without a head, and with one.
        head: the classifier of a sequence; that of tokens is always `classifier`.
        transform: linear and norm before the logits of the vocabulary.
        bias: of the logits of the vocabulary.
        copies: second names of the token embedding, and of the bias.
        keys: argument of ours -> key of `config.json`.
        dropouts: keys of `config.json`.
        classes: class of transformers for each `outputs`.
    """

    layers: str
    layer: Mapping[str, str | tuple[str, ...]]
    has_types: bool
    poolers: tuple[str, str]
    head: str
    transform: tuple[str, str]
    bias: str
    copies: tuple[str, tuple[str, ...]]
    keys: Mapping[str, str]
    dropouts: tuple[str, str]
    classes: Mapping[str, str]


class EncoderFamily(Family):
    """A family of encoders.

    Args:
        name: `model_type` of transformers.
        prefixes: before the backbone.
        names: of its parts.
        fixed: arguments of ours that make an `Encoder` this family's, with their values.
        assumed: arguments that weights do not tell, with what transformers takes.
        activation: key of `config.json`.
        aliases: other values of `model_type`.
    """

    layout = "huggingface"
    architecture = "encoder"
    published_heads = _HEADS
    likely_heads = _LIKELY_HEADS
    fresh_parts = ("pooler.", "transform.", "head.")
    leftovers = _LEFTOVERS
    old_spellings = (
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("LayerNorm.beta", "LayerNorm.bias"),
        ("qa_outputs.", "classifier."),  # start and end of an answer are two classes of a token
    )

    def __init__(
        self,
        name: str,
        prefixes: tuple[str, ...],
        names: EncoderNames,
        fixed: Mapping[str, Any],
        assumed: Mapping[str, Any],
        activation: str,
        aliases: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.aliases = aliases
        self.prefixes = prefixes
        self.names = names
        self.fixed = fixed
        self.assumed = assumed
        attention = next(part for part in names.layer["attn.qkv"])
        self.anchors = ("embeddings.word_embeddings.weight", f"{names.layers}0.{attention}.weight")
        self.requirements = (
            Requirement(activation, ("gelu",)),
            Requirement("position_embedding_type", ("absolute",)),
            Requirement("is_decoder", (False,)),
            Requirement("add_cross_attention", (False,)),
            Requirement("chunk_size_feed_forward", (0,)),
            Requirement("tie_word_embeddings", (True,)),
        )

    def fits(self, shapes: Shapes) -> bool:
        """RoBERTa has one type and BERT two, where no prefix says which it is."""
        if shapes.prefix.endswith(("bert.", "roberta.")):
            return shapes.prefix.endswith(self.prefixes[0])
        types = "embeddings.token_type_embeddings.weight"
        one_type = shapes.has(types) and shapes.size(types, 0) == 1
        return one_type == self.fixed["skips_padding_positions"]

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes, outputs and number of classes."""
        names = self.names
        rows = shapes.size("embeddings.position_embeddings.weight", 0)
        outputs = given.get("outputs") or self._find_outputs(shapes)
        num_classes = shapes.head_size("classifier.weight", f"{names.head}.weight")
        args = {
            **self.fixed,
            "vocab_size": shapes.size("embeddings.word_embeddings.weight", 0),
            "context_length": rows - self._num_skipped({**self.assumed, **given}),
            "num_layers": shapes.count(names.layers),
            "dim": shapes.size("embeddings.word_embeddings.weight", 1),
            "hidden_dim": shapes.size(f"{names.layers}0.{names.layer['fc1']}.weight", 0),
            "outputs": outputs,
            "num_classes": num_classes if outputs in ("sequence", "tokens") else None,
        }
        if names.has_types:
            args["num_types"] = shapes.size("embeddings.token_type_embeddings.weight", 0)
        if outputs == "vocabulary":
            args["num_classes"] = args["vocab_size"]
        return args

    def _find_outputs(self, shapes: Shapes) -> str:
        names = self.names
        has = shapes.all.__contains__
        if has(f"{names.transform[0]}.weight"):
            return "vocabulary"
        if has(f"{names.poolers[1]}.weight") or shapes.has(f"{names.poolers[0]}.weight"):
            return "sequence"
        return "tokens" if has("classifier.weight") else "hidden"

    def _num_skipped(self, args: Mapping[str, Any]) -> int:
        return args["pad_token"] + 1 if self.fixed["skips_padding_positions"] else 0

    def args_from_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes and what weights do not tell."""
        args = {ours: read_size(config, theirs) for ours, theirs in self.names.keys.items()}
        pad_token = config.get("pad_token_id", self.assumed["pad_token"])
        args |= {
            "pad_token": pad_token,
            "dropout": read_number(config, self.names.dropouts[0], 0.1),
        }
        classes = config.get("architectures")
        if isinstance(classes, list) and classes and str(classes[0]).endswith(_PER_TOKEN):
            args["outputs"] = "tokens"  # its file may have a pooler all the same
        if self.name != "distilbert":
            args["norm_eps"] = read_number(config, "layer_norm_eps", 1e-12)
        args["context_length"] = read_size(
            config, "max_position_embeddings", 512
        ) - self._num_skipped(args)
        return args

    def notes(self, config: Mapping[str, Any], shapes: Shapes) -> list[str]:
        """Return which dropouts are made one."""
        del shapes
        hidden, attention = (config.get(key, 0.1) for key in self.names.dropouts)
        if hidden == attention:
            return []
        return [f"dropout={hidden} in training also where config.json has {attention} (attention)"]

    def defaults(self, args: Mapping[str, Any]) -> list[Assumption]:
        """Return padding and epsilon."""
        reason = f"as published models of {self.name} have it"
        return [Assumption(name, value, reason) for name, value in self.assumed.items()]

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        names, outputs = self.names, args["outputs"]
        embeddings = {"tok_embed.weight": "word_embeddings.weight"}
        embeddings["pos_embed"] = "position_embeddings.weight"
        if names.has_types:
            embeddings["type_embed"] = "token_type_embeddings.weight"
        copies, bias_copies = names.copies
        rules = [
            rename(
                f"embedding.{ours}",
                f"{prefix}embeddings.{theirs}",
                copies=(copies,) if outputs == "vocabulary" and ours.startswith("tok") else (),
            )
            for ours, theirs in embeddings.items()
        ]
        rules += module_rules({"embedding.norm": f"{prefix}embeddings.LayerNorm"})
        for index in range(args["num_layers"]):
            rules += module_rules(
                names.layer, ours=f"blocks.{index}.", theirs=f"{prefix}{names.layers}{index}."
            )
        if outputs == "sequence":
            has_head = args["num_classes"] is not None
            pooler = names.poolers[1] if has_head else prefix + names.poolers[0]
            if pooler == "pooler.dense":
                pooler = prefix + pooler
            rules += module_rules({"pooler.linear": pooler})
        if outputs == "vocabulary":
            linear, norm = names.transform
            rules += module_rules({"transform.linear": linear, "transform.norm": norm})
            rules.append(rename("head.bias", names.bias, copies=bias_copies))
        elif args["num_classes"] is not None:
            rules += module_rules({"head": names.head if outputs == "sequence" else "classifier"})
        return rules

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """An encoder is this family's if the arguments that tell them apart are."""
        unlike = {name for name, value in self.fixed.items() if args[name] != value}
        if args["outputs"] != "sequence":
            unlike -= {"pooler"}  # which only a class of the sequence needs
        return not unlike and self.names.has_types == (args["num_types"] > 0)

    def written_prefix(self, args: Mapping[str, Any]) -> str:
        """Return the prefix; a model without a head has none."""
        is_bare = args["outputs"] == "hidden" or args["num_classes"] is None
        return "" if is_bare else self.prefixes[0]

    def config_json(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `config.json`."""
        names = self.names
        is_bare = args["outputs"] == "sequence" and args["num_classes"] is None
        config = {
            "architectures": [names.classes["hidden" if is_bare else args["outputs"]]],
            "model_type": self.name,
            **{theirs: args[ours] for ours, theirs in names.keys.items()},
            "max_position_embeddings": args["context_length"] + self._num_skipped(args),
            "pad_token_id": args["pad_token"],
            **dict.fromkeys(names.dropouts, args["dropout"]),
            "tie_word_embeddings": True,
        }
        if self.name != "distilbert":
            config |= {"layer_norm_eps": args["norm_eps"], "hidden_act": "gelu"}
        else:
            config |= {"activation": "gelu", "seq_classif_dropout": args["dropout"]}
        if args["outputs"] in ("sequence", "tokens") and args["num_classes"]:
            config["num_labels"] = args["num_classes"]
        return config

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return transformers' model."""
        is_bare = args["outputs"] == "hidden" and self.name != "distilbert"
        options = {"add_pooling_layer": False} if is_bare else {}
        return build_transformers({**self.config_json(args), **config}, **options)

    def run(self, module: nn.Module, inputs: Tensor, args: Mapping[str, Any]) -> Tensor:
        """Return logits, last hidden states, or what the pooler gives where there is no head."""
        pad_token = args["pad_token"]
        mask = None if pad_token is None else (inputs != pad_token).long()
        found = module(inputs, attention_mask=mask)
        if isinstance(found, Tensor):  # a class of the user's own around the backbone
            return found
        if args["outputs"] == "hidden":
            return found.last_hidden_state
        if "start_logits" in found:  # of an answer in a text
            return torch.stack([found.start_logits, found.end_logits], -1)
        if "prediction_logits" in found:  # BertForPreTraining has two outputs
            return found.prediction_logits
        return found.pooler_output if args["num_classes"] is None else found.logits


_BERT_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "dim": "hidden_size",
    "heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "num_types": "type_vocab_size",
}
_BERT_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def _classes(name: str) -> dict[str, str]:
    ends = {"sequence": "ForSequenceClassification", "tokens": "ForTokenClassification",
            "vocabulary": "ForMaskedLM", "hidden": "Model"}  # fmt: skip
    return {outputs: name + end for outputs, end in ends.items()}


BERT = EncoderFamily(
    "bert",
    ("bert.", ""),
    EncoderNames(
        layers="encoder.layer.",
        layer=_BERT_LAYER,
        has_types=True,
        poolers=("pooler.dense", "pooler.dense"),
        head="classifier",
        transform=("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
        bias="cls.predictions.bias",
        copies=("cls.predictions.decoder.weight", ("cls.predictions.decoder.bias",)),
        keys=_BERT_KEYS,
        dropouts=_BERT_DROPOUTS,
        classes=_classes("Bert"),
    ),
    fixed={"pooler": "tanh", "skips_padding_positions": False},
    assumed={"pad_token": 0, "norm_eps": 1e-12},
    activation="hidden_act",
)
ROBERTA = EncoderFamily(
    "roberta",
    ("roberta.", ""),
    EncoderNames(
        layers="encoder.layer.",
        layer=_BERT_LAYER,
        has_types=True,
        poolers=("pooler.dense", "classifier.dense"),
        head="classifier.out_proj",
        transform=("lm_head.dense", "lm_head.layer_norm"),
        bias="lm_head.bias",
        copies=("lm_head.decoder.weight", ("lm_head.decoder.bias",)),
        keys=_BERT_KEYS,
        dropouts=_BERT_DROPOUTS,
        classes=_classes("Roberta"),
    ),
    fixed={"pooler": "tanh", "skips_padding_positions": True},
    assumed={"pad_token": 1, "norm_eps": 1e-5},
    activation="hidden_act",
    aliases=("xlm-roberta", "camembert"),
)
DISTILBERT = EncoderFamily(
    "distilbert",
    ("distilbert.", ""),
    EncoderNames(
        layers="transformer.layer.",
        layer=_DISTILBERT_LAYER,
        has_types=False,
        poolers=("pre_classifier", "pre_classifier"),
        head="classifier",
        transform=("vocab_transform", "vocab_layer_norm"),
        bias="vocab_projector.bias",
        copies=("vocab_projector.weight", ()),
        keys={
            "vocab_size": "vocab_size",
            "num_layers": "n_layers",
            "dim": "dim",
            "heads": "n_heads",
            "hidden_dim": "hidden_dim",
        },
        dropouts=("dropout", "attention_dropout"),
        classes=_classes("DistilBert"),
    ),
    # the epsilon is in transformers' code, where no configuration changes it
    fixed={"pooler": "relu", "num_types": 0, "norm_eps": 1e-12, "skips_padding_positions": False},
    assumed={"pad_token": 0},
    activation="activation",
)
