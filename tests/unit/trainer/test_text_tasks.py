"""Whole runs over text: with a small module where no model of ours has the head yet."""

import pytest
import torch
from torch import nn

from deepseek.datasets import TextDataset, train_tokenizer
from deepseek.models import GPT, Encoder
from deepseek.trainer import Callback, Trainer

TEXTS = [f"the number {number} is {'even' if number % 2 == 0 else 'odd'}" for number in range(48)]
TOKENIZER = train_tokenizer(TEXTS, "wordpiece", 60)


class TokenModel(nn.Module):
    """Logits for every token."""

    def __init__(self, num_classes):
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        self.mix = nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, num_classes)

    def forward(self, inputs):
        return self.head(self.mix(self.embed(inputs))[0])


def fit(tmp_path, model, data, **settings):
    train, val = data.split(0.25)
    trainer = Trainer(
        model, train, val, batch_size=8, lr=2e-2, loggers=["jsonl"],
        run_dir=tmp_path / "run", **{"epochs": 4, **settings},
    )  # fmt: skip
    return trainer.fit()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("masking", ["tokens", "words", "spans"])
def test_masked_language_modelling_learns(masking, packed, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    data = TextDataset(
        tmp_path / "a.txt", "masked_language_modelling", tokenizer=TOKENIZER, sequence_length=16,
        masking=masking, packed=packed, cache="off",
    )  # fmt: skip
    history = fit(tmp_path, TokenModel(60), data)
    losses = history.series("val_loss")
    assert losses[-1] < losses[0]
    assert history.series("val_perplexity")[-1] < history.series("val_perplexity")[0]


class Steps(Callback):
    """Loss and gradient norm of every step, and how many logits there were."""

    def __init__(self):
        self.losses, self.norms, self.num_logits = [], [], []

    def on_fit_begin(self, trainer):
        trainer.model.module.head.register_forward_hook(
            lambda module, args, output: self.num_logits.append(output[..., 0].numel())
        )

    def on_step_end(self, trainer, result):
        self.losses.append(float(result.loss_sum) / result.num_items)
        self.norms.append(float(result.grad_norm))


@pytest.mark.parametrize("settings", [{}, {"grad_accum_steps": 2, "memory": "full"}])
def test_logits_are_taken_of_hidden_tokens_alone(settings, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    data = TextDataset(
        tmp_path / "a.txt", "masked_language_modelling", tokenizer=TOKENIZER, sequence_length=16,
        cache="off",
    )  # fmt: skip

    def run(name):
        torch.manual_seed(0)
        model = Encoder(60, 16, 1, 16, heads=2, dropout=0.0, outputs="vocabulary")
        steps = Steps()
        Trainer(
            model, data, batch_size=8, max_steps=4, lr=1e-2, loggers=["jsonl"], precision="fp32",
            run_dir=tmp_path / name, callbacks=[steps], **settings,
        ).fit()  # fmt: skip
        return steps

    few = run("few")
    monkeypatch.setattr("deepseek.trainer.assembly.counts_labels_alone", lambda *args: False)
    every = run("every")
    assert sum(few.num_logits) < sum(every.num_logits) / 3
    torch.testing.assert_close(few.losses, every.losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few.norms, every.norms, atol=1e-5, rtol=1e-5)


def test_token_classification_learns(tmp_path):
    lines = [f"the O\nnumber B-N\n{n} I-N\nis O\n" for n in range(48)]
    (tmp_path / "a.conll").write_text("\n".join(lines))
    data = TextDataset(
        tmp_path / "a.conll", "token_classification", tokenizer=TOKENIZER, sequence_length=16,
        cache="off",
    )  # fmt: skip
    history = fit(tmp_path, TokenModel(3), data)
    assert history.best["val_entity_f1"] > 0.9


class StopAfter(Callback):
    def on_step_end(self, trainer, result):
        if trainer.step == 7:
            trainer.request_stop("enough")


@pytest.mark.parametrize("task", ["language_modelling", "masked_language_modelling"])
def test_a_run_over_text_resumes_exactly(task, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    options = {"attend_across_documents": False} if task == "language_modelling" else {}
    data = TextDataset(
        tmp_path / "a.txt",
        task,
        tokenizer=TOKENIZER,
        sequence_length=16,
        document_per="line",
        cache="off",
        **options,
    )
    train, val = data.split(0.25)

    def run(name, callbacks=(), resume=None):
        torch.manual_seed(0)
        is_causal = task == "language_modelling"
        model = GPT(16, num_layers=1, dim=16, heads=2) if is_causal else TokenModel(60)
        trainer = Trainer(
            model,
            train,
            val,
            batch_size=8,
            epochs=3,
            lr=2e-2,
            loggers=["jsonl"],
            callbacks=callbacks,
            run_dir=None if resume else tmp_path / name,
            resume=resume,
        )
        return trainer.fit(), trainer.model.state_dict()

    whole, weights = run("whole")
    run("part", [StopAfter()])
    resumed, same = run("part", resume=tmp_path / "part")
    assert resumed.series("val_loss")[-1] == whole.series("val_loss")[-1]
    assert all(torch.equal(weights[name], same[name]) for name in weights)
