"""Llama, Mistral, Qwen2 and Qwen3, as transformers spells them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.convert.family import Family, Requirement, Shapes, read_number, read_size
from deepseek.convert.mapping import Leftover, Rule, module_rules, rename
from deepseek.convert.report import Assumption
from deepseek.convert.transformers_model import build_transformers, causal_logits
from deepseek.errors import CheckpointError
from deepseek.models.rotary import Rotary

_QKV = {"attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj"}
_NORMS = {"attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"}
_LAYER = {
    "norm1": "input_layernorm",
    "attn.proj": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_HEAD = "lm_head.weight"
_GEMMA_VOCABULARIES = (256_000, 256_128)
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


class LlamaFamily(Family):
    """A family of decoders with rotary positions.

    Args:
        name: `model_type` of transformers.
        norm_eps: as published models have it.
        qkv_bias: whether queries, keys and values have biases.
        qk_norm: whether queries and keys are normalised.
    """

    layout = "huggingface"
    architecture = "llama"
    prefixes = ("model.", "")
    anchors = (
        "embed_tokens.weight",
        "layers.0.self_attn.q_proj.weight",
        "layers.0.mlp.gate_proj.weight",
        "layers.0.input_layernorm.weight",
    )
    unknown = ("heads", "norm_eps")
    head_dim = 128
    leftovers = (Leftover(r".*rotary_emb\.inv_freq", "computed anew", is_derived=True),)

    def __init__(self, name: str, norm_eps: float, qkv_bias: bool, qk_norm: bool = False) -> None:
        self.name = name
        self.norm_eps = norm_eps
        self.qkv_bias = qkv_bias
        self.qk_norm = qk_norm
        self.requirements = (
            Requirement("hidden_act", ("silu",)),
            Requirement("attention_bias", (False,)),
            Requirement("mlp_bias", (False,)),
        )

    def fits(self, shapes: Shapes) -> bool:
        """Qwen2 has biases and Qwen3 norms where Llama and Mistral, spelled alike, have none.

        So is Gemma, which computes something else: its vocabulary tells.
        """
        if shapes.size("embed_tokens.weight", 0) in _GEMMA_VOCABULARIES:
            return False
        has_norms = shapes.has("layers.0.self_attn.q_norm.weight")
        has_biases = shapes.has("layers.0.self_attn.q_proj.bias")
        return (has_biases, has_norms) == (self.qkv_bias, self.qk_norm)

    def args_from_shapes(self, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes; with the number of heads, those of keys and values."""
        args = {
            "num_classes": shapes.size("embed_tokens.weight", 0),
            "dim": shapes.size("embed_tokens.weight", 1),
            "num_layers": shapes.count("layers."),
            "hidden_dim": shapes.size("layers.0.mlp.gate_proj.weight", 0),
            "qkv_bias": self.qkv_bias,
            "qk_norm": self.qk_norm,
        }
        heads = given.get("heads")
        if isinstance(heads, int) and heads > 0:
            rows = [shapes.size(f"layers.0.self_attn.{part}_proj.weight", 0) for part in "qk"]
            head_dim = rows[0] // heads
            if head_dim * heads != rows[0] or head_dim == 0 or rows[1] % head_dim:
                raise CheckpointError(
                    f"{shapes.source}: heads={heads} does not divide the {rows[0]} rows of queries"
                    f" and the {rows[1]} of keys",
                    fix="change heads",
                )
            args |= {"head_dim": head_dim, "kv_heads": rows[1] // head_dim}
        return args

    def args_from_values(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
        """Return whether the head is the token embedding."""
        head, embedding = state.get(_HEAD), state[f"{prefix}embed_tokens.weight"]
        if head is None:
            return {"tied": True}
        return {"tied": head.shape == embedding.shape and torch.equal(head, embedding)}

    def args_from_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return sizes and what weights do not tell."""
        heads, dim = read_size(config, "num_attention_heads"), read_size(config, "hidden_size")
        theta, scaling = _read_rotary(config)
        return {
            "num_classes": read_size(config, "vocab_size"),
            "context_length": self._context_length(config),
            "num_layers": read_size(config, "num_hidden_layers"),
            "dim": dim,
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or (128 if self.qk_norm else dim // heads),
            "hidden_dim": read_size(config, "intermediate_size"),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "norm_eps": read_number(config, "rms_norm_eps", 1e-6),
        }

    def _context_length(self, config: Mapping[str, Any]) -> int:
        length = read_size(config, "max_position_embeddings", 2048)
        window = self._window(config)
        return length if window is None else min(length, window)

    def _window(self, config: Mapping[str, Any]) -> int | None:
        if self.name == "llama" or config.get("use_sliding_window") is False:
            return None
        return config.get("sliding_window")

    def notes(self, config: Mapping[str, Any], shapes: Shapes) -> list[str]:
        """Return where the context is shorter than the original's, or the head is not theirs."""
        notes = []
        window, length = self._window(config), config.get("max_position_embeddings", 2048)
        if window is not None and window < length:
            notes = [
                f"context_length={window} of {length}: beyond, tokens see a window of that many"
            ]
        if _HEAD not in shapes.all and not config.get("tie_word_embeddings", False):
            notes.append("the weights have no lm_head: the token embedding stands for it")
        return notes

    def asked(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return what only a configuration tells."""
        is_qwen = self.qkv_bias or self.qk_norm
        is_llama3 = args["num_classes"] >= 128_000 and not is_qwen
        theta = 1e6 if is_qwen else 5e5 if is_llama3 else 1e4
        return {"rope_theta": theta, "context_length": 8192 if is_llama3 else 4096}

    def defaults(self, args: Mapping[str, Any]) -> list[Assumption]:
        """Return the epsilon."""
        return [Assumption("norm_eps", self.norm_eps, f"as published models of {self.name}")]

    def rules(self, args: Mapping[str, Any], prefix: str) -> list[Rule]:
        """Return the table of names."""
        rows = args["num_classes"]
        copies = (_HEAD,) if args["tied"] else ()
        embedding = f"{prefix}embed_tokens.weight"
        rules = [rename("tok_embed.weight", embedding, num_rows=rows, copies=copies)]
        if not args["tied"]:
            rules.append(rename("head.weight", _HEAD, num_rows=rows))
        rules += module_rules({"norm": f"{prefix}norm"}, kinds=("weight",))
        kinds = ("weight", "bias") if args["qkv_bias"] else ("weight",)
        for index in range(args["num_layers"]):
            ours, theirs = f"blocks.{index}.", f"{prefix}layers.{index}."
            rules += module_rules(_LAYER, ours=ours, theirs=theirs, kinds=("weight",))
            rules += module_rules(_QKV, ours=ours, theirs=theirs, kinds=kinds)
            if args["qk_norm"]:
                rules += module_rules(_NORMS, ours=ours, theirs=theirs, kinds=("weight",))
        return rules

    def can_write(self, args: Mapping[str, Any]) -> bool:
        """Biases tell Qwen2, norms Qwen3; all have a vocabulary."""
        kind = (args["qkv_bias"], args["qk_norm"])
        return kind == (self.qkv_bias, self.qk_norm) and args["num_classes"] is not None

    def config_json(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `config.json`."""
        scaling = args["rope_scaling"]
        rotary = {"rope_type": "default"} if scaling is None else {"rope_type": "llama3", **scaling}
        return {
            "architectures": [_CLASSES[self.name]],
            "model_type": self.name,
            "vocab_size": args["num_classes"],
            "max_position_embeddings": args["context_length"],
            "num_hidden_layers": args["num_layers"],
            "hidden_size": args["dim"],
            "num_attention_heads": args["heads"],
            "num_key_value_heads": args["kv_heads"],
            "head_dim": args["head_dim"],
            "intermediate_size": args["hidden_dim"],
            "rms_norm_eps": args["norm_eps"],
            "rope_parameters": {"rope_theta": args["rope_theta"], **rotary},
            "rope_theta": args["rope_theta"],  # transformers 4 reads these two
            **({} if scaling is None else {"rope_scaling": rotary}),
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": args["tied"],
            "bos_token_id": None,
            "eos_token_id": None,
            **({} if self.name == "llama" else {"sliding_window": None}),
        }

    def reference(self, args: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
        """Return transformers' model."""
        values = {**self.config_json(args), **config}
        for key in ("rope_theta", "rope_scaling"):
            values.pop(key, None)
        return build_transformers(values)

    def exact_buffers(self, module: nn.Module, args: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the rotary frequencies, which `module.half()` rounds; ours are never rounded."""
        exact = Rotary(args["head_dim"], args["rope_theta"], args["rope_scaling"]).frequencies()
        return {
            name: exact
            for name, buffer in module.named_buffers()
            if name.endswith("inv_freq")
            and buffer.dtype in (torch.float16, torch.bfloat16)
            and buffer.shape == exact.shape
            and torch.allclose(buffer.cpu().float(), exact, rtol=0.01, atol=1e-6)
        }

    def run(self, module: nn.Module, inputs: Tensor, args: Mapping[str, Any]) -> Tensor:
        """Return the logits."""
        return causal_logits(module, inputs, "embed_tokens")


def _read_rotary(config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Return base and stretching of the wavelengths, from where transformers 5 or 4 has them."""
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rotary, Mapping):
        raise CheckpointError(f"config.json has rope_parameters={rotary!r}", fix="mend the value")
    theta = rotary.get("rope_theta", config.get("rope_theta", 10_000.0))
    if isinstance(theta, bool) or not isinstance(theta, int | float):
        raise CheckpointError(f"config.json has rope_theta={theta!r}", fix="mend the value")
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind not in ("default", "llama3") or rotary.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(
            f"config.json has rotary positions of kind {kind!r}, and our llama computes 'default'"
            " and 'llama3'",
            fix="load the module with its own library and hand it over, to keep it as it is",
        )
    if kind == "default":
        return float(theta), None
    rest = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
    return float(theta), {key: value for key, value in rotary.items() if key not in rest}


LLAMA = LlamaFamily("llama", norm_eps=1e-5, qkv_bias=False)
MISTRAL = LlamaFamily("mistral", norm_eps=1e-5, qkv_bias=False)
QWEN2 = LlamaFamily("qwen2", norm_eps=1e-6, qkv_bias=True)
QWEN3 = LlamaFamily("qwen3", norm_eps=1e-6, qkv_bias=False, qk_norm=True)
