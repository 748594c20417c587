"""Tiny Hugging Face models with random weights, and what ranks train of them.

Imported on ranks, which have no network and need none.
"""

import numpy as np
import torch
from tests.distributed.ranks import Trajectory
from torch import nn
from torch.utils.data import TensorDataset
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from deepseek.datasets import TokenDataset
from deepseek.errors import ConfigError
from deepseek.trainer import Trainer

VOCABULARY = 66
PAD = 5
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 16, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None, "use_cache": False, "initializer_range": 0.2,
}  # fmt: skip
CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "llama_classifier": (LlamaConfig, LlamaForSequenceClassification),
}


class LanguageModel(nn.Module):
    """What a user writes around a Hugging Face model.

    Args:
        hf: gives an object that holds logits.
        pad: token that no other one attends to; `None` without.
    """

    def __init__(self, hf, pad=None):
        super().__init__()
        self.hf = hf
        self.pad = pad

    def forward(self, tokens):
        mask = None if self.pad is None else tokens != self.pad
        return self.hf(tokens, attention_mask=mask).logits


def make_pretrained(kind, seed=1, **changes):
    """Return a model of transformers with random weights."""
    config, cls = CLASSES[kind]
    torch.manual_seed(seed)
    return cls(config(**{**SIZES, **changes}))


def make_data(kind, num_samples=70, length=8):
    """Return tokens, for what comes next or (a classifier) with labels."""
    if kind == "llama_classifier":
        generator = torch.Generator().manual_seed(3)
        tokens = torch.randint(6, VOCABULARY, (num_samples, length), generator=generator)
        labels = torch.randint(0, 5, (num_samples,), generator=generator)
        ends = torch.randint(2, length, (num_samples, 1), generator=generator)
        return TensorDataset(tokens.where(torch.arange(length) < ends, PAD), labels)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, num_samples * length + 1)
    return TokenDataset(tokens, length, [chr(40 + i) for i in range(VOCABULARY)])


def train_pretrained(kind, run_dir, changes=None, pad=None, **settings):
    """Train, and return (losses, norms, record of the last epoch).

    Args:
        kind: of model and data.
        run_dir: run folder.
        changes: to the model's config.
        pad: token that is masked.
        settings: of `Trainer`; and `val_size`.
    """
    trajectory = Trajectory()
    chosen = {
        "batch_size": 16, "max_steps": 10, "lr": 1e-3, "grad_accum_steps": 2, "precision": "fp32",
        "clip_grad_norm": 0.5, "loggers": ["jsonl"], "num_workers": 0, "device": "cpu",
        "predict_memory": False, **settings,
    }  # fmt: skip
    model = LanguageModel(make_pretrained(kind, **(changes or {})), pad)
    val_size = chosen.pop("val_size", None)
    val_data = None if val_size is None else make_data(kind, val_size)
    trainer = Trainer(
        model, make_data(kind), val_data, run_dir=run_dir, callbacks=[trajectory], **chosen
    )
    records = trainer.fit().records
    return trajectory.losses, trajectory.norms, records[-1]


class SharesByHand(LanguageModel):
    """A module that takes the weight of the embedding for its logits, past the plan."""

    def forward(self, tokens):
        hidden = self.hf.model(tokens).last_hidden_state
        return nn.functional.linear(hidden, self.hf.model.embed_tokens.weight)


def train_by_hand(run_dir, layout):
    """Return the error of a training run that no plan covers."""
    model = SharesByHand(make_pretrained("llama", tie_word_embeddings=True))
    trainer = Trainer(
        model, make_data("llama"), run_dir=run_dir, parallel=layout, batch_size=16, max_steps=1,
        precision="fp32", num_workers=0, device="cpu", loggers=["jsonl"],
    )  # fmt: skip
    try:
        trainer.fit()
    except ConfigError as error:
        return str(error)
    return ""
