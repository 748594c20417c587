"""GPT-2, as transformers spells it.

Its linears are "Conv1D": weights are stored with rows and columns exchanged.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from deepseek.convert.family import Family, Requirement, Shapes, read_number, read_size
from deepseek.convert.mapping import Leftover, Rule, module_rules, rename
from deepseek.convert.report import Assumption
from deepseek.convert.transformers_model import build_transformers, causal_logits

_LINEARS = {
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}
_NORMS = {"norm1": "ln_1", "norm2": "ln_2"}
# num_layers, dim: Radford et al. 2019, table 2; Sanh et al. 2019 for DistilGPT-2.
_HEADS = {(6, 768): 12, (12, 768): 12, (24, 1024): 16, (36, 1280): 20, (48, 1600): 25}
_DROPOUTS = ("resid_pdrop", "attn_pdrop", "embd_pdrop")


class GPT2(Family):
    """GPT-2 and those built like it (DistilGPT-2, DialoGPT, ...)."""

    name = "gpt2"
    layout = "huggingface"
    architecture = "gpt"
    prefixes = ("transformer.", "")
    anchors = ("wte.weight", "h.0.attn.c_attn.weight")
    published_heads = _HEADS
    unknown = ("heads",)
    requirements = (
        Requirement("activation_function", ("gelu_new", "gelu_pytorch_tanh", "gelu")),
        Requirement("layer_norm_epsilon", (1e-5,)),
        Requirement("scale_attn_weights", (True,)),
        Requirement("scale_attn_by_inverse_layer_idx", (False,)),
        Requirement("add_cross_attention", (False,)),
        Requirement("tie_word_embeddings", (True,)),
    )
    leftovers = (
        Leftover(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", "a mask", is_derived=True),
    )

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes."""
        return {
            "num_classes": shapes.size("wte.weight", 0),
            "context_length": shapes.size("wpe.weight", 0),
            "dim": shapes.size("wte.weight", 1),
            "num_layers": shapes.count("h."),
            "hidden_dim": shapes.size("h.0.mlp.c_fc.weight", 1),
            "bias": True,
        }

    def args_from_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes and what weights do not tell."""
        dim = read_size(config, "n_embd", 768)
        is_exact = config.get("activation_function") == "gelu"
        return {
            "num_classes": read_size(config, "vocab_size", 50_257),
            "context_length": read_size(config, "n_positions", 1024),
            "dim": dim,
            "num_layers": read_size(config, "n_layer", 12),
            "heads": read_size(config, "n_head", 12),
            "hidden_dim": read_size({"n_inner": config.get("n_inner") or 4 * dim}, "n_inner"),
            "activation": "gelu" if is_exact else "gelu_tanh",
            "dropout": read_number(config, "resid_pdrop", 0.1),
        }

    def notes(self, config: Mapping[str, Any], shapes: Shapes) -> list[str]:
        """Return which dropouts are made one."""
        del shapes
        values = [config.get(key, 0.1) for key in _DROPOUTS]
        if len(set(values)) == 1:
            return []
        return [f"dropout={values[0]} in training where config.json has {values} ({_DROPOUTS})"]

    def defaults(self, args: Mapping[str, Any]) -> list[Assumption]:
        """Return the activation."""
        return [Assumption("activation", "gelu_tanh", "GPT-2's")]

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        rules = [
            rename(
                "tok_embed.weight",
                f"{prefix}wte.weight",
                num_rows=args["num_classes"],
                copies=("lm_head.weight",),
            ),
            rename("pos_embed", f"{prefix}wpe.weight"),
            *module_rules({"norm": f"{prefix}ln_f"}),
        ]
        kinds = ("weight", "bias") if args["bias"] else ("weight",)
        for index in range(args["num_layers"]):
            ours, theirs = f"blocks.{index}.", f"{prefix}h.{index}."
            rules += module_rules(_LINEARS, ours=ours, theirs=theirs, kinds=kinds, transpose=True)
            rules += module_rules(_NORMS, ours=ours, theirs=theirs)
        return rules

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """GPT-2 has a vocabulary, and tells no documents apart."""
        return args["num_classes"] is not None and args["document_token"] is None

    def add_constants(self, state: dict[str, Tensor], args: Mapping[str, Any]) -> None:
        """Add the biases that GPT-2 has, of zeros, where ours has none."""
        if args["bias"]:
            return
        for name, weight in list(state.items()):
            linear, _, kind = name.rpartition(".")
            if kind == "weight" and linear.endswith(tuple(_LINEARS.values())):
                state[f"{linear}.bias"] = weight.new_zeros(weight.shape[1])

    def config_json(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `config.json`."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": self.name,
            "vocab_size": args["num_classes"],
            "n_positions": args["context_length"],
            "n_embd": args["dim"],
            "n_layer": args["num_layers"],
            "n_head": args["heads"],
            "n_inner": args["hidden_dim"],
            "activation_function": "gelu" if args["activation"] == "gelu" else "gelu_new",
            "layer_norm_epsilon": 1e-5,
            **dict.fromkeys(_DROPOUTS, args["dropout"]),
            "bos_token_id": None,
            "eos_token_id": None,
            "tie_word_embeddings": True,
        }

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return transformers' model."""
        return build_transformers({**self.config_json(args), **config})

    def run(self, module: nn.Module, inputs: Tensor, args: Mapping[str, Any]) -> Tensor:
        """Return the logits."""
        return causal_logits(module, inputs, "wte")


GPT2_FAMILY = GPT2()
