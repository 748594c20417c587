import json
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from deepseek.datasets import TextDataset, train_tokenizer
from deepseek.errors import ConfigError
from deepseek.finance import GrowingVocabulary, adapt
from deepseek.finance.adaptation import measure_perplexity
from deepseek.models import Encoder, ModelEngine
from deepseek.trainer import Callback, Trainer
from deepseek.trainer.evaluation import evaluate_model, evaluate_samples

DOMAIN = [f"the bank raised its rate by {n} points in the quarter" for n in range(80)]
GENERAL = [f"a cat number {n} sat on the mat and slept" for n in range(80)]
SIZES = {"num_layers": 1, "dim": 32, "heads": 2, "dropout": 0.0}
SETTINGS = {
    "sequence_length": 32, "batch_size": 8, "lr": 5e-3, "loggers": (), "num_workers": 0,
    "device": "cpu",
}  # fmt: skip


def test_a_small_encoder_is_pretrained_from_scratch_and_learns_a_task(tmp_path):
    done = adapt(
        SIZES, DOMAIN, tokenizer="wordpiece", vocab_size=300, masking="spans", epochs=12,
        run_dir=tmp_path / "a", **SETTINGS,
    )  # fmt: skip
    assert done.after.domain < done.before.domain / 2
    assert done.after.general is None
    assert done.engine.config["vocab_size"] == done.tokenizer.vocab_size
    rows = [f"{text},{n % 2}" for n, text in enumerate([*DOMAIN[:20], *GENERAL[:20]])]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows))
    data = TextDataset(
        tmp_path / "t.csv", "sequence_classification", tokenizer=done.tokenizer,
        sequence_length=32, cache="off",
    )  # fmt: skip
    task = done.for_task()
    Trainer(
        task, data, epochs=1, batch_size=8, loggers=(), num_workers=0, run_dir=tmp_path / "t"
    ).fit()
    assert task.predict("the bank").label in ("0", "1")


def test_a_run_from_scratch_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    class Stop(Callback):
        def on_step_end(self, trainer, result):
            if trainer.step == 5:
                raise KeyboardInterrupt

    def pretrain(name, **settings):
        return adapt(
            {**SIZES, "dropout": 0.1}, DOMAIN, tokenizer="wordpiece", vocab_size=300, epochs=3,
            checkpoint_every=2, run_dir=tmp_path / name, **SETTINGS, **settings,
        )  # fmt: skip

    whole = pretrain("whole")
    torch.rand(3)  # elsewhere in the same process
    with pytest.raises(KeyboardInterrupt):
        pretrain("cut", callbacks=[Stop()])
    resumed = pretrain("cut", resume=True)
    assert (resumed.before, resumed.after) == (whole.before, whole.after)
    assert resumed.num_steps == whole.num_steps


def test_replay_holds_against_forgetting(tmp_path):
    start = adapt(
        SIZES, GENERAL, tokenizer=train_tokenizer([*DOMAIN, *GENERAL], "wordpiece", 300),
        epochs=12, run_dir=tmp_path / "general", **SETTINGS,
    ).engine  # fmt: skip
    state = {name: value.clone() for name, value in start.state_dict().items()}
    found = {}
    for share in (0.0, 0.5):
        start.load_state_dict(state)
        found[share] = adapt(
            start, DOMAIN, general=GENERAL, replay=share, epochs=4,
            run_dir=tmp_path / f"{share}", **SETTINGS,
        )  # fmt: skip
    alone, mixed = found[0.0], found[0.5]
    assert alone.before == mixed.before
    assert alone.after.domain < alone.before.domain / 2
    assert alone.after.general > alone.before.general  # forgotten
    assert mixed.after.general < alone.after.general
    assert (alone.num_general, mixed.num_texts - mixed.num_general) == (0, alone.num_texts)
    assert mixed.num_general > 40


def test_decoders_learn_by_the_next_token(tmp_path):
    tokenizer = train_tokenizer(DOMAIN, "bpe", 300)
    gpt = ModelEngine("gpt", num_classes=tokenizer.vocab_size, context_length=32, **SIZES)
    done = adapt(gpt, DOMAIN, tokenizer=tokenizer, epochs=6, run_dir=tmp_path / "a", **SETTINGS)
    assert done.after.domain < done.before.domain / 2


def test_a_new_head_learns_alone_first_and_the_vocabulary_grows(tmp_path):
    letters = "zabcdefghijklmnopqrstuvwxyz0123456789"
    tokenizer = train_tokenizer([letters, " ".join(letters)], "wordpiece", 100)
    engine = ModelEngine(
        "encoder", vocab_size=200, context_length=32, outputs="hidden", pad_token=0, **SIZES
    )
    with pytest.raises(ConfigError, match="num_classes"):
        adapt(engine, DOMAIN, tokenizer=tokenizer, run_dir=tmp_path / "x", epochs=1, **SETTINGS)
    from deepseek.finance import grow_vocabulary

    grown = grow_vocabulary(
        ModelEngine(
            "encoder", vocab_size=tokenizer.vocab_size, context_length=32, outputs="hidden",
            **SIZES,
        ),
        tokenizer, DOMAIN, max_terms=4, reserve=6,
    )  # fmt: skip
    callback = GrowingVocabulary(lambda epoch: DOMAIN, max_terms=3)
    done = adapt(
        grown.engine, DOMAIN, tokenizer=grown.tokenizer, head_steps=5, epochs=3,
        callbacks=[callback], run_dir=tmp_path / "a", **SETTINGS,
    )  # fmt: skip
    assert len(callback.terms) == 2
    assert done.tokenizer.vocab_size == grown.tokenizer.vocab_size
    assert done.tokenizer.to_json() != grown.tokenizer.to_json()
    assert (tmp_path / "a_head" / "model.bin").is_file()


def make_encoder():
    tokenizer = train_tokenizer(DOMAIN, "wordpiece", 200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ModelEngine(
            "encoder", vocab_size=tokenizer.vocab_size, context_length=32, outputs="hidden",
            **SIZES,
        )  # fmt: skip
    return encoder, tokenizer


def adapt_with_head(run_dir, **settings):
    encoder, tokenizer = make_encoder()
    chosen = {"head_steps": 6, "checkpoint_every": 2, "max_steps": 4, **SETTINGS, **settings}
    return adapt(encoder, DOMAIN, tokenizer=tokenizer, run_dir=run_dir, **chosen)


def stop_after(num_passes):
    """Interrupt the training of a head in the forward pass after so many."""
    passes = []

    def stop(module, inputs):
        passes.extend([module] if isinstance(module, Encoder) else [])
        if len(passes) > num_passes:
            raise KeyboardInterrupt

    return register_module_forward_pre_hook(stop)


@pytest.mark.parametrize(("num_passes", "has_saved"), [(5, True), (1, False)])
def test_a_head_that_was_stopped_goes_on_with_what_it_saved(num_passes, has_saved, tmp_path):
    whole = adapt_with_head(tmp_path / "whole")
    hook = stop_after(num_passes)
    with pytest.raises(KeyboardInterrupt):
        adapt_with_head(tmp_path / "cut")
    hook.remove()
    resumed = adapt_with_head(tmp_path / "cut", resume=True)
    assert (resumed.before, resumed.after) == (whole.before, whole.after)
    events = (tmp_path / "cut_head" / "events.jsonl").read_text()
    assert ('"kind": "resume"' in events) == has_saved


def test_a_run_that_was_stopped_between_head_and_body_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # numbered runs

    def stop(what, done, total):
        raise KeyboardInterrupt

    whole = adapt_with_head(None)
    with pytest.raises(KeyboardInterrupt):
        adapt_with_head(None, on_measured=stop)
    began = Path("runs/adapt-head-2/environment.json")  # a run has its beginning to the second
    content = json.loads(began.read_text())
    began.write_text(json.dumps({**content, "started": f"9{content['started'][1:]}"}))
    resumed = adapt_with_head(None, resume=True)
    assert (resumed.before, resumed.after) == (whole.before, whole.after)
    assert resumed.folder.name == "adapt-2"


def test_a_head_has_a_warm_up_of_its_own(tmp_path):
    adapt_with_head(tmp_path / "a", warmup=7, max_steps=8)
    lines = (tmp_path / "a_head" / "config.yaml").read_text()
    assert json.loads(lines)["trainer"]["warmup"] == "auto"


def test_a_run_of_other_texts_is_not_gone_on_with(tmp_path):
    encoder, tokenizer = make_encoder()
    settings = {"tokenizer": tokenizer, "run_dir": tmp_path / "a", "max_steps": 2, **SETTINGS}
    adapt(encoder, DOMAIN, **settings)
    with pytest.raises(ConfigError, match="learns from 76 texts, which are not these 76"):
        adapt(encoder, [text.replace("bank", "cat") for text in DOMAIN], resume=True, **settings)
    assert adapt(encoder, DOMAIN, resume=True, **settings).num_steps == 2


@pytest.mark.parametrize("kind", ["gpt", "encoder"])
def test_perplexities_are_measured_where_the_run_computes(kind, tmp_path, monkeypatch):
    encoder, tokenizer = make_encoder()
    places = []

    def evaluate(engine, data, *arguments, device, **options):
        places.append(device)
        return evaluate_samples(engine, data, *arguments, device=device, **options)

    def resolve(name):
        places.append(name)
        return torch.device(name)

    monkeypatch.setattr("deepseek.finance.adaptation.evaluate_samples", evaluate)
    monkeypatch.setattr("deepseek.finance.adaptation.resolve_device", resolve)
    if kind == "gpt":
        encoder = ModelEngine("gpt", num_classes=tokenizer.vocab_size, context_length=32, **SIZES)
    adapt(encoder, DOMAIN, tokenizer=tokenizer, run_dir=tmp_path / "a", max_steps=1, **SETTINGS)
    assert places == ["cpu", "cpu"]


def test_an_encoder_adapts_by_adapters_after_its_head_and_is_saved(tmp_path):
    tokenizer = train_tokenizer(DOMAIN, "wordpiece", 200)
    encoder = ModelEngine(
        "encoder", vocab_size=tokenizer.vocab_size, context_length=32, outputs="hidden", **SIZES
    )
    done = adapt(
        encoder, DOMAIN, tokenizer=tokenizer, lora={"rank": 2}, head_steps=2, max_steps=3,
        run_dir=tmp_path / "a", **SETTINGS,
    )  # fmt: skip
    assert done.num_steps == 3
    done.save(tmp_path / "out")
    assert ModelEngine.load(tmp_path / "out" / "task.bin").changes == ()
    saved = ModelEngine.load(tmp_path / "out" / "model.bin")
    assert saved.changes == ()
    tokens = torch.randint(5, 60, (2, 9))
    adapted = ModelEngine.load(tmp_path / "a" / "model.bin")
    assert adapted.changes[0]["kind"] == "lora"
    with torch.no_grad():
        torch.testing.assert_close(saved(tokens), adapted(tokens))


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"replay=0.3 with general=None"):
        adapt(SIZES, DOMAIN, tokenizer="wordpiece", replay=0.3)
    with pytest.raises(ConfigError, match="a model from scratch needs a tokenizer"):
        adapt(SIZES, DOMAIN)
    gpt = ModelEngine("gpt", num_classes=300, context_length=32, **SIZES)
    with pytest.raises(ConfigError, match="tokenizer='bpe' would be a new one"):
        adapt(gpt, DOMAIN, tokenizer="bpe")
    tokenizer = train_tokenizer(DOMAIN, "bpe", 300)
    with pytest.raises(ConfigError, match="objective='masked' does not fit the 'gpt'"):
        adapt(gpt, DOMAIN, tokenizer=tokenizer, objective="masked")
    with pytest.raises(ConfigError, match="the head of a 'gpt' is not new"):
        adapt(gpt, DOMAIN, tokenizer=tokenizer, head_steps=3, sequence_length=16)


def test_the_perplexity_is_that_of_the_evaluation():
    tokenizer = train_tokenizer(DOMAIN, "wordpiece", 200)
    engine = ModelEngine(
        "encoder", vocab_size=tokenizer.vocab_size, context_length=32, outputs="vocabulary",
        **SIZES,
    )  # fmt: skip
    data = TextDataset(
        DOMAIN, "masked_language_modelling", tokenizer=tokenizer, sequence_length=32, cache="off"
    )
    engine.bind(data.spec)
    expected = evaluate_model(engine, data, precision="fp32")["perplexity"]
    assert measure_perplexity(engine, data) == pytest.approx(expected, rel=1e-5)
