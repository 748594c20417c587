"""Rates by layer, unfreezing, adapters, averaged weights, class weights, folds."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from deepseek.config import TrainerConfig, validate_settings
from deepseek.datasets import TextDataset
from deepseek.deploy import load_engine
from deepseek.errors import ConfigError
from deepseek.models import Encoder, ModelEngine, VisionTransformer
from deepseek.models.lora import LoraLinear, add_lora, merge_lora
from deepseek.models.model_file import read_model_file
from deepseek.trainer import Callback, Optimizer, Trainer
from deepseek.trainer.averaging import AverageBest, average_models
from deepseek.trainer.callbacks import BestModel
from deepseek.trainer.cross_validation import (
    CrossValidation,
    choose_folds,
    cross_validate,
    describe_folds,
)
from deepseek.trainer.layer_pace import choose_pace, set_rates
from deepseek.trainer.patient_folds import cross_validate_patients

QUICK = {"batch_size": 16, "loggers": (), "device": "cpu", "checkpoint_every": None}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    rows = [f"{'good' if n % 3 else 'bad'} film {n} by {n * 7},{n % 3 > 0:d}" for n in range(90)]
    (folder / "r.csv").write_text("\n".join(["text,label", *rows]))
    return TextDataset(
        folder / "r.csv", "sequence_classification", tokenizer="wordpiece", vocab_size=100,
        sequence_length=16, cache="off",
    )  # fmt: skip


def make_encoder(seed=0):
    torch.manual_seed(seed)
    return Encoder(
        vocab_size=100, context_length=16, num_layers=3, dim=16, heads=2, num_classes=2, dropout=0.0
    )


def settings_of(**given):
    return validate_settings(TrainerConfig, given)


class FiveBatches:
    def count_batches(self, epoch):
        return 5


def rates_by_weight(engine, config, step):
    pace = choose_pace(config, engine, FiveBatches())
    optimizer = Optimizer("adamw", 1.0).bind(engine.module, pace=pace)
    set_rates(optimizer, 1.0, step)
    names = {id(weight): name for name, weight in engine.module.named_parameters()}
    return {
        names[id(weight)]: group["lr"] for group in optimizer.param_groups
        for weight in group["params"]
    }  # fmt: skip


def test_the_rate_falls_from_block_to_block_towards_the_input():
    engine = ModelEngine.wrap(make_encoder())
    rates = rates_by_weight(engine, settings_of(layer_decay=0.5), 0)
    assert len(rates) == len(list(engine.module.parameters()))
    wanted = {"head.weight": 1, "pooler.linear.bias": 1, "blocks.2.fc1.weight": 1 / 2,
              "blocks.1.norm1.bias": 1 / 4, "blocks.0.attn.qkv.weight": 1 / 8,
              "embedding.tok_embed.weight": 1 / 16, "embedding.pos_embed": 1 / 16}  # fmt: skip
    assert {name: rates[name] for name in wanted} == wanted


def test_blocks_begin_to_learn_one_after_another():
    engine = ModelEngine.wrap(make_encoder())
    config = settings_of(unfreeze_every="epoch")
    waiting = [
        sum(rate == 0 for rate in rates_by_weight(engine, config, step).values())
        for step in (0, 4, 5, 10, 15, 20)
    ]
    assert waiting[0] == waiting[1] > waiting[2] > waiting[3] > waiting[4] > waiting[5] == 0


def test_a_vision_transformer_has_layers_too():
    model = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, dim=8, heads=2, channels=1, num_classes=2
    )
    rates = rates_by_weight(ModelEngine.wrap(model), settings_of(layer_decay=0.5), 0)
    assert sorted(set(rates.values())) == [1 / 8, 1 / 4, 1 / 2, 1]


def test_layers_of_a_foreign_model_are_not_known():
    with pytest.raises(ConfigError, match="does not say what its blocks are"):
        choose_pace(settings_of(layer_decay=0.9), ModelEngine.wrap(nn.Linear(2, 2)), FiveBatches())


def test_an_update_in_the_backward_pass_has_one_rate():
    given = {"clip_grad_norm": None, "optimizer_in_backward": True, "layer_decay": 0.9}
    with pytest.raises(ConfigError, match=r"layer_decay=0\.9 updates layers by rates"):
        settings_of(**given)


def test_waiting_weights_stay_to_the_bit(reviews, tmp_path):
    encoder = make_encoder()
    before = {name: weight.clone() for name, weight in encoder.named_parameters()}
    trainer = Trainer(
        encoder, reviews, max_steps=2, lr=1e-2, unfreeze_every=2, run_dir=tmp_path / "r", **QUICK
    )
    trainer.fit()
    moved = {name for name, w in encoder.named_parameters() if not torch.equal(w, before[name])}
    assert moved == {"head.weight", "head.bias", "pooler.linear.weight", "pooler.linear.bias"}


def test_a_run_with_waiting_layers_resumes_to_the_bit(reviews, tmp_path):
    def trainer(place, **given):
        return Trainer(
            make_encoder(), reviews, lr=1e-2, unfreeze_every=2, layer_decay=0.7, run_dir=place,
            schedule="constant", **{**QUICK, "checkpoint_every": 3, **given},
        )  # fmt: skip

    whole = trainer(tmp_path / "whole", max_steps=7)
    whole.fit()
    trainer(tmp_path / "cut", max_steps=3).fit()
    rest = trainer(tmp_path / "cut", max_steps=7, resume=True)
    rest.fit()
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, rest.model.get_parameter(name)), name


# -- adapters ----------------------------------------------------------------------------------


def test_adapters_learn_alone_and_merge_to_the_same_outputs(reviews, tmp_path):
    encoder = make_encoder()
    before = {name: weight.clone() for name, weight in encoder.named_parameters()}
    trainer = Trainer(
        encoder, reviews, max_steps=4, lr=1e-2, lora={"rank": 3}, run_dir=tmp_path / "r", **QUICK
    )
    trainer.fit()
    after = dict(encoder.named_parameters())
    fixed = [name for name in before if name.startswith(("blocks", "embedding"))]
    assert all(torch.equal(after[name], before[name]) for name in fixed)
    assert not torch.equal(after["head.weight"], before["head.weight"])
    adapters = [part for part in encoder.modules() if isinstance(part, LoraLinear)]
    assert len(adapters) == 12
    assert all(part.lora_b.abs().sum() > 0 for part in adapters)
    loaded = ModelEngine.load(tmp_path / "r" / "model.bin").eval()
    assert loaded.changes[0]["rank"] == 3
    served = load_engine(tmp_path / "r" / "model.bin").eval()
    assert served.changes == ()
    assert not any(isinstance(part, LoraLinear) for part in served.modules())
    tokens = torch.randint(5, 60, (4, 9))
    with torch.no_grad():
        torch.testing.assert_close(served(tokens), loaded(tokens))
        torch.testing.assert_close(served(tokens), encoder.eval()(tokens))
    assert sum(p.numel() for p in served.parameters()) == sum(w.numel() for w in before.values())


def test_new_adapters_change_nothing_and_can_be_chosen():
    engine = ModelEngine.wrap(make_encoder()).eval()
    tokens = torch.randint(5, 60, (2, 9))
    before = engine(tokens)
    add_lora(engine, rank=2, targets=["attn.qkv"])
    assert torch.equal(engine(tokens), before)
    assert engine.changes[0]["layers"] == [f"blocks.{n}.attn.qkv" for n in range(3)]
    with pytest.raises(ConfigError, match="adapters already"):
        add_lora(engine)
    with pytest.raises(ConfigError, match="no linears of the names q_proj"):
        add_lora(ModelEngine.wrap(make_encoder()), targets=["q_proj"])
    plain = ModelEngine.wrap(make_encoder())
    assert merge_lora(plain) is plain


# -- weights of classes and of evaluations ------------------------------------------------------


def test_balanced_classes_count_the_same(reviews):
    trainer = Trainer(make_encoder(), reviews, class_weights="balanced", **QUICK)
    assert trainer.task.class_weights.tolist() == pytest.approx([90 / (2 * 30), 90 / (2 * 60)])
    logits, labels = torch.randn(90, 2), torch.tensor(reviews.targets)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    mean = (losses[labels == 0].mean() + losses[labels == 1].mean()) / 2
    loss = trainer.task.loss(logits, {"targets": labels}) / 90
    assert loss.item() == pytest.approx(mean.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, 2.0, 3.0], "3 numbers, the data 2 classes"), ("odd", "class_weights")],
)
def test_weights_of_other_classes_are_refused(reviews, weights, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(make_encoder(), reviews, class_weights=weights, **QUICK)


def test_models_are_averaged_weight_by_weight(tmp_path):
    for seed in range(3):
        ModelEngine.wrap(make_encoder(seed)).save(tmp_path / f"{seed}.bin")
    paths = [tmp_path / f"{seed}.bin" for seed in range(3)]
    average_models(paths, tmp_path / "mean.bin")
    states = [read_model_file(path).state for path in paths]
    found = read_model_file(tmp_path / "mean.bin").state
    for name, weight in found.items():
        want = torch.stack([state[name] for state in states]).double().mean(0).float()
        torch.testing.assert_close(weight, want, rtol=0, atol=0)


def test_the_average_of_the_best_is_the_model_where_it_is_as_good(reviews, tmp_path):
    train, val = reviews.split(0.3)
    trainer = Trainer(
        make_encoder(), train, val, epochs=4, lr=3e-3, average_best=3, run_dir=tmp_path / "r",
        **QUICK,
    )  # fmt: skip
    history = trainer.fit()
    events = [json.loads(line) for line in (tmp_path / "r/events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["kind"] == "average"]
    assert len(event["steps"]) == 3
    assert event["best"] == history.best["val_accuracy"]
    measured = json.loads((tmp_path / "r/evaluation/metrics.json").read_text())["val_accuracy"]
    assert measured == (event["average"] if event["is_used"] else event["best"])
    assert not (tmp_path / "r" / "best").exists()
    with pytest.raises(ConfigError, match="average_best=3 needs validation data"):
        Trainer(make_encoder(), train, average_best=3, **QUICK)


def test_a_draft_left_among_the_best_does_not_end_the_run(reviews, tmp_path):
    class Killed(Callback):
        """Leaves what a run that was killed while it saved leaves."""

        def on_eval_end(self, trainer, metrics):
            (tmp_path / "r/best").mkdir(exist_ok=True)
            (tmp_path / "r/best/.step_1.bin.4711").write_bytes(b"a part")
            (tmp_path / "r/best/step_1.bin").write_bytes(b"of after the checkpoint")

    train, val = reviews.split(0.3)
    trainer = Trainer(
        make_encoder(), train, val, epochs=2, lr=3e-3, average_best=2, run_dir=tmp_path / "r",
        callbacks=[Killed()], **QUICK,
    )  # fmt: skip
    trainer.fit()
    assert json.loads((tmp_path / "r/summary.json").read_text())["status"] == "finished"
    assert "average" in (tmp_path / "r/events.jsonl").read_text()
    assert not (tmp_path / "r/best").exists()


def test_a_finished_run_with_more_epochs_averages_what_is_new(reviews, tmp_path):
    train, val = reviews.split(0.3)
    settings: dict = {"lr": 3e-3, "average_best": 2, "run_dir": tmp_path / "r", **QUICK}
    settings |= {"checkpoint_every": 1}
    Trainer(make_encoder(), train, val, epochs=2, **settings).fit()
    Trainer(make_encoder(), train, val, epochs=5, resume=True, **settings).fit()
    events = [json.loads(line) for line in (tmp_path / "r/events.jsonl").read_text().splitlines()]
    first, second = [event for event in events if event["kind"] == "average"]
    assert min(second["steps"]) > max(first["steps"])
    assert not (tmp_path / "r/best").exists()


def test_a_full_disk_costs_the_average_and_not_the_run(reviews, tmp_path, monkeypatch):
    def is_full(*_):
        raise OSError(28, "No space left on device")

    train, val = reviews.split(0.3)
    settings: dict = {"lr": 3e-3, "average_best": 2, **QUICK}
    monkeypatch.setattr("deepseek.trainer.averaging.average_models", is_full)
    Trainer(make_encoder(), train, val, epochs=2, run_dir=tmp_path / "r", **settings).fit()
    assert "could not be averaged: [Errno 28]" in (tmp_path / "r/events.jsonl").read_text()
    assert (tmp_path / "r/model.bin").is_file()
    monkeypatch.undo()

    class Damages(Callback):
        def on_eval_end(self, trainer, metrics):
            for path in (tmp_path / "d/best").glob("step_*.bin"):
                path.write_bytes(b"a bad sector")

    settings["callbacks"] = [Damages()]
    Trainer(make_encoder(), train, val, epochs=2, run_dir=tmp_path / "d", **settings).fit()
    assert "could not be averaged" in (tmp_path / "d/events.jsonl").read_text()
    settings.pop("callbacks")
    monkeypatch.setattr(AverageBest, "_keep", is_full)
    Trainer(make_encoder(), train, val, epochs=2, run_dir=tmp_path / "s", **settings).fit()
    assert "could not be kept for average_best" in (tmp_path / "s/events.jsonl").read_text()
    assert not (tmp_path / "s/best").exists()


# -- folds -------------------------------------------------------------------------------------


def test_every_sample_is_tested_once_by_a_model_that_has_not_seen_it(reviews, tmp_path):
    seen = {}

    def make_trainer(train, held_back, place):
        seen[place.name] = {train.text(n) for n in range(len(train))}
        seen[place.name] |= {held_back.text(n) for n in range(len(held_back))}
        return Trainer(make_encoder(), train, held_back, max_steps=2, run_dir=place, **QUICK)

    folds = choose_folds(reviews, 3, keeps_together=True)
    assert folds.leaks == []
    result = cross_validate(make_trainer, reviews, folds, tmp_path / "cv", val_share=0.2)
    for fold in range(3):
        tested = {reviews.text(n) for n in np.flatnonzero(folds.fold_of == fold).tolist()}
        assert not tested & seen[f"fold_{fold}"]
    written = json.loads((tmp_path / "cv" / "folds.json").read_text())
    values = [own["accuracy"] for own in result.metrics.values()]
    assert written["mean"]["accuracy"] == pytest.approx(np.mean(values))
    assert written["std"]["accuracy"] == pytest.approx(np.std(values, ddof=1))
    from safetensors.torch import load_file

    found = load_file(tmp_path / "cv" / "predictions.safetensors")
    assert sorted(found["index"].tolist()) == list(range(90))
    assert (found["targets"].numpy() == reviews.targets[found["index"].numpy()]).all()
    assert "20% of the rest held back" in describe_folds(result, reviews)
    seen.clear()
    again = cross_validate(make_trainer, reviews, folds, tmp_path / "cv", val_share=0.2)
    assert not seen  # folds that are finished are not run again
    assert again.metrics == result.metrics
    with pytest.raises(ConfigError, match="fold 7 of 3"):
        cross_validate(make_trainer, reviews, folds, tmp_path / "cv", only=[7])
    assert math.isfinite(result.std("loss"))
    others = choose_folds(reviews, 3, seed=1, keeps_together=True)
    with pytest.raises(ConfigError, match=f"holds results with partition={folds.partition}"):
        cross_validate(make_trainer, reviews, others, tmp_path / "cv", val_share=0.2)


class Patients:
    def __init__(self, count):
        self.numbers = range(count)

    def split_fold(self, fold, num_folds):
        tested = self.numbers[fold::num_folds]
        return [n for n in self.numbers if n not in tested], tested


def test_a_folder_of_another_partition_is_refused(reviews, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    folds, few = choose_folds(reviews, 3), reviews.take(np.arange(90) < 84)
    for _ in range(2):  # the same folds go on
        with pytest.raises(KeyboardInterrupt):
            cross_validate(interrupted, reviews, folds, tmp_path / "a")
        with pytest.raises(KeyboardInterrupt):
            cross_validate_patients(interrupted, Patients(7), 3, tmp_path / "b")
    for data, others in ((reviews, choose_folds(reviews, 3, seed=1)), (few, choose_folds(few, 3))):
        with pytest.raises(ConfigError, match=f"partition={folds.partition}, not"):
            cross_validate(interrupted, data, others, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"num_tested=\[3, 2, 2\], not \[3, 3, 2\]"):
        cross_validate_patients(interrupted, Patients(8), 3, tmp_path / "b")
    metrics = {"accuracy": 0.5}
    found = CrossValidation({0: metrics, 1: metrics}, folds, 0.1, tmp_path).to_json()
    assert found["partition"] == folds.partition


class OtherRank:
    """The second of two ranks, whose first cannot write."""

    is_main = False

    def exchange(self, own):
        return ["[Errno 28] No space left on device", own]


def test_ranks_agree_that_the_folder_of_the_best_cannot_be_made(tmp_path):
    saved, warned = [], []
    trainer = SimpleNamespace(
        world=OtherRank(), step=3, folder=SimpleNamespace(path=tmp_path), warn=warned.append,
        save_model=saved.append,
    )  # fmt: skip
    average = AverageBest(2, BestModel("val_loss", higher_is_better=False))
    average.on_eval_end(trainer, {"val_loss": 1.0})
    assert not saved  # the first rank would not meet the others there
    assert average.kept == []
    assert "could not be kept for average_best: [Errno 28]" in warned[0]
