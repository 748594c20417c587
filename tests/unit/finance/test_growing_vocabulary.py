import pytest
import torch

from deepseek.datasets import TextDataset, train_tokenizer
from deepseek.datasets.tokenizer_growth import grow_tokenizer
from deepseek.errors import ConfigError, DivergedError
from deepseek.finance import GrowingVocabulary
from deepseek.models import ModelEngine
from deepseek.trainer import Callback, Trainer

LETTERS = "zabcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ["shares", "profit", "bank", "rate", "quarter", "fell", "rose", "nvda", "tsla", "2.5%"]
TEXTS = [" ".join(WORDS[(n * k + k) % 10] for k in range(1, 9)) for n in range(48)]
NEW = [["$NVDA said it rose 2.5%"] * 6, ["tsla fell 2.5%, tsla"] * 6, ["quarter"] * 9]
PLAIN = train_tokenizer([LETTERS, " ".join(LETTERS), "$ % # . , "], "wordpiece", 100)
TOKENIZER = grow_tokenizer(PLAIN, [], reserve=5).tokenizer


def build(folder, callbacks=(), tokenizer=TOKENIZER, epochs=4, **settings):
    torch.manual_seed(0)
    options = {"tokenizer": tokenizer, "sequence_length": 24, "cache": "off", "packed": True}
    train = TextDataset(TEXTS, "masked_language_modelling", **options)
    val = TextDataset(TEXTS[:9], "masked_language_modelling", **options).evaluation_view()
    engine = ModelEngine(
        "encoder", vocab_size=tokenizer.vocab_size, outputs="vocabulary", context_length=24,
        num_layers=1, dim=16, heads=2,
    )  # fmt: skip
    return Trainer(
        engine, train, val, callbacks=callbacks, run_dir=folder, epochs=epochs, batch_size=8,
        lr=1e-2, loggers=(), num_workers=0, device="cpu", **settings,
    )  # fmt: skip


def growing(**options):
    return GrowingVocabulary(lambda epoch: NEW[min(epoch, 2)], max_terms=3, **options)


def rows_of(trainer):
    return trainer.model.module.embedding.tok_embed.weight.detach().clone()


class Look(Callback):
    """What is there right after the vocabulary grew."""

    def __init__(self):
        self.found = []

    def on_epoch_end(self, trainer, record):
        weight = trainer.model.module.embedding.tok_embed.weight
        step = trainer.assembly.step
        self.found.append(
            (
                trainer.train_loader.dataset.tokenizer.vocabulary,
                weight.detach().clone(),
                step.optimizer.state[weight]["exp_avg"].clone(),
            )
        )


def test_terms_of_a_stream_enter_at_the_next_boundary_and_optimizer_and_file_follow(tmp_path):
    callback, look = growing(), Look()
    trainer = build(tmp_path / "run", [callback, look], ema_decay=0.5)
    trainer.fit()
    first, second = (terms for _, terms in callback.terms[:2])
    assert "$nvda" in first
    assert "tsla" in second
    assert len(first) + len(second) == 5  # the places that were laid in
    names, weight, moment = look.found[0]
    row = names.index("$nvda")
    parts = [TOKENIZER.vocabulary.index(text) for text in ("$", "n", "##v", "##d", "##a")]
    torch.testing.assert_close(weight[row], weight[parts].mean(0))
    assert moment[row].abs().sum() == 0
    assert moment[parts].abs().sum() > 0
    # learnt since, saved with the model
    assert not torch.equal(rows_of(trainer)[row], weight[row])
    trainer.save_model()
    loaded = ModelEngine.load(trainer.folder.model)
    averaged = trainer.trained.engine.module.embedding.tok_embed.weight
    assert torch.equal(loaded.module.embedding.tok_embed.weight, averaged)
    events = (trainer.folder.path / "events.jsonl").read_text()
    assert "the vocabulary is full" in events
    assert "new tokens: " in events
    assert loaded.spec.class_names == trainer.spec.class_names
    texts = trainer.train_loader.dataset
    assert len(texts) < len(TextDataset(
        TEXTS, "masked_language_modelling", tokenizer=TOKENIZER, sequence_length=24, cache="off",
        packed=True,
    ))  # fmt: skip


def test_a_run_of_one_epoch_grows_after_steps_and_what_is_left_holds_the_new_tokens(tmp_path):
    class Seen(Callback):
        def __init__(self):
            self.known = []

        def on_step_end(self, trainer, result):
            texts = trainer.train_loader.dataset
            self.known.append(texts.tokenizer.vocabulary.count("$nvda"))

    callback, seen = growing(every_steps=2), Seen()
    trainer = build(tmp_path / "run", [callback, seen], epochs=1)
    trainer.fit()
    assert trainer.step >= 5
    assert [step for step, _ in callback.terms] == [2, 4]
    assert seen.known[:3] == [0, 1, 1]
    for loader in (trainer.train_loader, trainer.val_loader):
        assert {"$nvda", "tsla"} <= set(loader.dataset.tokenizer.vocabulary)
    assert "$nvda" in ModelEngine.load(trainer.folder.model).spec.class_names


@pytest.mark.parametrize(
    ("epochs", "options", "share"),
    [(4, {}, 0.3), (4, {}, 0.9), (1, {"every_steps": 2}, 0.3), (1, {"every_steps": 2}, 0.9)],
)
def test_a_run_that_was_stopped_grows_on_bit_by_bit(epochs, options, share, tmp_path):
    whole = build(tmp_path / "whole", [growing(**options)], epochs=epochs)
    whole.fit()
    stops_at = round(share * whole.step)

    class Stop(Callback):
        def on_step_end(self, trainer, result):
            if trainer.step == stops_at:
                trainer.save()
                raise DivergedError("stopped", fix="")

    halves = growing(**options)
    with pytest.raises(DivergedError):
        build(tmp_path / "cut", [halves, Stop()], epochs=epochs).fit()
    again = growing(**options)
    resumed = build(tmp_path / "cut", [again], epochs=epochs, resume=True)
    resumed.fit()
    assert resumed.step == whole.step
    assert torch.equal(rows_of(resumed), rows_of(whole))
    assert again.state_dict() == whole.callbacks[-1].state_dict()
    assert resumed.spec == whole.spec


def test_runs_that_cannot_grow_are_refused_at_the_beginning(tmp_path):
    with pytest.raises(ConfigError, match="rows of its state share a scale"):
        build(tmp_path / "a", [growing()], optimizer="adamw8bit").fit()
    with pytest.raises(ConfigError, match="max_terms=0 is not >= 1"):
        GrowingVocabulary(lambda epoch: [], max_terms=0)
    with pytest.raises(ConfigError, match="every_steps=0 is not >= 1"):
        GrowingVocabulary(lambda epoch: [], every_steps=0)
    with pytest.raises(ConfigError, match="every_epochs=2 beside every_steps=50"):
        GrowingVocabulary(lambda epoch: [], every_epochs=2, every_steps=50)
    for name, part in (("train_loader", 0), ("val_loader", 1)):
        trainer = build(tmp_path / name, [growing()])
        loader = getattr(trainer, name)
        loader.bind(loader.dataset.split(0.5)[part])
        with pytest.raises(ConfigError, match="a part of a split cannot change its tokenizer"):
            trainer.fit()
        assert trainer.step == 0
