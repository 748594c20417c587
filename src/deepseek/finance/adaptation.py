"""A model learns the language of a domain from text without labels.

Paper: Gururangan et al. 2020, arXiv 2004.10964: domain-adaptive pretraining on a corpus of the
field, task-adaptive pretraining on the task's own texts; both are one call here, with another
corpus. General text mixed in (replay) holds against forgetting.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.datasets import TextDataset, Tokenizer, train_tokenizer
from deepseek.errors import ConfigError
from deepseek.finance.corpus import Corpus, hold_out, read_corpus, take_share
from deepseek.finance.new_head import HeadRun
from deepseek.finance.same_texts import SameTexts
from deepseek.finance.vocabulary import own_tokenizer
from deepseek.models import ModelEngine
from deepseek.models.decoder import Decoder
from deepseek.models.device import resolve_device
from deepseek.models.encoder import Encoder
from deepseek.models.encoder_outputs import with_outputs
from deepseek.models.eval_mode import evaluating
from deepseek.models.lora import merge_lora
from deepseek.trainer import Callback, Trainer
from deepseek.trainer.evaluation import evaluate_samples
from deepseek.trainer.run_folder import RUNS
from deepseek.trainer.task import IGNORE_INDEX

Objective = Literal["masked", "causal"]
MEASURED_AT_ONCE = 16
MAX_MEASURED_LETTERS = 400_000
Watch = Callable[[str, int, int], None]
"""Is told what is measured, how many samples are done, and of how many; at first 0."""
TASKS = {"masked": "masked_language_modelling", "causal": "language_modelling"}


@dataclass(frozen=True)
class Perplexity:
    """exp of the loss on texts held out; of masked tokens, or of every next one.

    Attributes:
        domain: on the corpus.
        general: on general text; `None` without it.
    """

    domain: float
    general: float | None


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` returns.

    Attributes:
        engine: the model with a head over its vocabulary, as training left it; adapters are added
            to its weights.
        tokenizer: of the model.
        before, after: perplexities; comparable where the vocabulary did not grow in between.
        num_texts: that were trained on, general ones too.
        num_general: of these.
        num_steps: optimizer steps, those of the head alone left out.
        folder: of the run.
    """

    engine: ModelEngine = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    before: Perplexity
    after: Perplexity
    num_texts: int
    num_general: int
    num_steps: int
    folder: Path

    def save(self, folder: str | Path) -> None:
        """Write `model.bin`, `tokenizer.json`, `adaptation.json`; of an encoder also `task.bin`.

        `task.bin` is `for_task()`: what a classifier starts from (`model.weights` of a
        configuration).
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        self.engine.save(place / "model.bin")
        self.tokenizer.save(place)
        if isinstance(self.engine.module, Encoder):
            self.for_task().save(place / "task.bin")
        content = json.dumps(self.describe(), indent=1)
        (place / "adaptation.json").write_text(content + "\n", encoding="utf-8")

    def describe(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        return {
            "perplexity": {"before": asdict(self.before), "after": asdict(self.after)},
            "num_texts": self.num_texts,
            "num_general": self.num_general,
            "num_steps": self.num_steps,
            "run": str(self.folder),
        }

    def for_task(self, outputs: str = "sequence", num_classes: int | None = None) -> ModelEngine:
        """Return the adapted encoder with a new head for a task.

        Args:
            outputs: "sequence", "tokens" or "hidden", as for `Encoder`.
            num_classes: `None` leaves them to the data.
        """
        return with_outputs(self.engine, outputs, num_classes)


@dataclass(frozen=True)
class _Texts:
    """Training texts and what is held out."""

    train: list[str]
    domain: list[str]
    general: list[str] | None
    num_general: int


def adapt(
    model: nn.Module | Mapping[str, Any],
    corpus: Corpus,
    *,
    tokenizer: Tokenizer | Literal["wordpiece", "bpe"] | None = None,
    objective: Objective | Literal["auto"] = "auto",
    masking: Literal["tokens", "words", "spans"] = "words",
    mask_share: float = 0.15,
    packed: bool = True,
    sequence_length: int = 128,
    general: Corpus | None = None,
    replay: float = 0.0,
    held_out: float = 0.05,
    head_steps: int = 0,
    vocab_size: int = 8192,
    text_column: str | int = "text",
    document_per: Literal["file", "paragraph", "line"] = "line",
    encoding: str = "utf-8",
    callbacks: Sequence[Callback] = (),
    on_measured: Watch = lambda what, done, total: None,
    run_dir: str | Path | None = None,
    resume: bool | str | Path | None = None,
    name: str = "adapt",
    **trainer: Any,
) -> Adaptation:
    """Train a model on unlabelled text of a domain, or of a task.

    Args:
        model: an encoder (its head over the vocabulary is made where it has another), a GPT or a
            Llama; or the arguments of an `Encoder` ("num_layers", "dim", "heads", ...), which is
            built by the `seed` and pretrained from scratch.
        corpus: a path as `TextDataset` takes it, or texts.
        tokenizer: of the model; `None`: the one that it carries. From scratch: "wordpiece" or
            "bpe", trained on the corpus.
        objective: "masked" for encoders, "causal" for decoders; "auto" follows from the model.
        masking: as for `TextDataset`; of "masked".
        mask_share: likewise.
        packed: likewise, of what is trained on; texts held out are measured one by one.
            "causal" always is.
        sequence_length: tokens of a sample.
        general: general text, for replay and to measure what is forgotten.
        replay: share of `general` in the text that is trained on, in [0, 1).
        held_out: share of the texts of either to measure with, in (0, 1); of many, some.
        head_steps: optimizer steps of a new head alone before all weights learn: otherwise the
            gradients of a head that knows nothing would damage the model. `before` is measured
            after them. The head has a run, and a warm-up, of its own.
        vocab_size: tokens of a tokenizer that is trained.
        text_column: of tables.
        document_per: what a text is in a `.txt` file.
        encoding: of `.txt`, `.csv` and `.tsv` files.
        callbacks: observers, such as `GrowingVocabulary`.
        on_measured: told how far measuring the perplexities is: what ("before, domain", ...), the
            samples done, and of how many; at first 0.
        run_dir: as for `Trainer`.
        resume: as for `Trainer`; `before` is then of the model as it is given. `True` where the
            newest run is that of the head alone: it goes on, and all weights learn after it.
        name: as for `Trainer`.
        **trainer: settings of `Trainer`, such as `epochs`, `lr`, `batch_size`.

    Raises:
        ConfigError: arguments contradict each other or the model.
        DataError: there is too little text.
    """
    if not 0 <= replay < 1 or (replay > 0 and general is None):
        raise ConfigError(
            f"replay={replay} with general={'a corpus' if general is not None else None}",
            fix="give a share in [0, 1), and general text for it",
        )
    how = {"text_column": text_column, "document_per": document_per, "encoding": encoding}
    seed = int(trainer.get("seed", 0))
    texts = _gather(read_corpus(corpus, **how), general, how, replay, held_out, seed)
    engine, used = _open(model, tokenizer, texts.train, vocab_size, sequence_length, seed)
    task = _objective(engine, objective)
    if task == "masked" and engine.config.get("outputs") != "vocabulary":
        engine = with_outputs(engine, "vocabulary", seed=seed)

    def data(chosen: list[str], tokens: Tokenizer, *, fills: bool = False) -> TextDataset:
        options: dict[str, Any] = {}
        if task == "masked":
            options = {"masking": masking, "mask_share": mask_share, "packed": fills}
        return TextDataset(
            chosen, TASKS[task], tokenizer=tokens, sequence_length=sequence_length, seed=seed,
            cache="off", **options,
        )  # fmt: skip

    def measure(when: str, tokens: Tokenizer) -> Perplexity:
        found: dict[str, float | None] = {"general": None}
        for name, chosen in (("domain", texts.domain), ("general", texts.general)):
            if chosen is not None:
                watch, device = partial(on_measured, f"{when}, {name}"), str(run.device)
                found[name] = measure_perplexity(engine, data(chosen, tokens), watch, device)
        return Perplexity(found["domain"] or 0.0, found["general"])

    train_data = data(texts.train, used, fills=packed)
    engine.bind(train_data.spec)
    place = None if run_dir is None else Path(run_dir)
    head = HeadRun(name, place, Path(trainer.get("output", RUNS)))
    begins = bool(head_steps) and (not resume or (resume is True and head.was_last()))
    same_texts = SameTexts(texts.train)
    # before the head learns: a setting that is wrong is said at once; the mark of the texts is the
    # last callback, for a checkpoint has them in order, and earlier ones lack it
    run = Trainer(
        engine, train_data, callbacks=[*callbacks, same_texts], run_dir=run_dir,
        resume=None if begins else resume, name=name, **trainer,
    )  # fmt: skip
    if begins:
        head.train(engine, train_data, same_texts, head_steps, trainer, goes_on=bool(resume))
    before = measure("before", used)
    run.fit()
    engine = merge_lora(ModelEngine.load(run.folder.model))
    grown = own_tokenizer(engine)
    return Adaptation(
        engine, grown, before, measure("after", grown), len(texts.train), texts.num_general,
        run.step, run.folder.path,
    )  # fmt: skip


def measure_perplexity(
    engine: ModelEngine,
    data: TextDataset,
    on_measured: Callable[[int, int], None] = lambda done, total: None,
    device: str = "auto",
) -> float:
    """Return exp of the mean loss over the targets of a language model's data.

    Of an encoder the logits of masked tokens alone are computed: over all tokens they would be
    most of the work. `on_measured` is told the samples done, and of how many. The model stays on
    the device.
    """
    view, total, count = data.evaluation_view(), 0.0, 0
    on_measured(0, len(view))

    def note(num_batches: int) -> None:
        on_measured(min(num_batches * MEASURED_AT_ONCE, len(view)), len(view))

    if not isinstance(engine.module, Encoder):
        return evaluate_samples(
            engine, data, MEASURED_AT_ONCE, device=device, keeps_samples=False, on_batch=note
        ).metrics["perplexity"]
    engine.place(resolve_device(device))
    order = range(len(view))
    if view.lengths is not None:
        order = np.argsort(view.lengths, kind="stable").tolist()
    with evaluating(engine), torch.inference_mode():
        for start in range(0, len(view), MEASURED_AT_ONCE):
            batch, _ = view.get_batch(list(order[start : start + MEASURED_AT_ONCE]), 0)
            targets = batch["targets"].flatten()
            places = torch.nonzero(targets != IGNORE_INDEX).flatten()
            with engine.module.logits_at(places.to(engine.device)):
                logits = engine(batch["inputs"].to(engine.device))[0].float()
            wanted = targets[places].to(engine.device)
            total += float(F.cross_entropy(logits, wanted, reduction="sum"))
            count += len(places)
            note(start // MEASURED_AT_ONCE + 1)
    return math.exp(total / max(count, 1))


def _gather(
    domain: list[str],
    general: Corpus | None,
    how: Mapping[str, Any],
    replay: float,
    held_out: float,
    seed: int,
) -> _Texts:
    train, domain_out = hold_out(domain, held_out, seed)
    domain_out = take_share(domain_out, MAX_MEASURED_LETTERS, seed)
    if general is None:
        return _Texts(train, domain_out, None, 0)
    general_train, general_out = hold_out(read_corpus(general, **how), held_out, seed)
    general_out = take_share(general_out, MAX_MEASURED_LETTERS, seed)
    num_letters = round(sum(map(len, train)) * replay / (1 - replay))
    replayed = take_share(general_train, num_letters, seed) if num_letters else []
    return _Texts([*train, *replayed], domain_out, general_out, len(replayed))


def _open(
    model: nn.Module | Mapping[str, Any],
    tokenizer: Tokenizer | str | None,
    texts: list[str],
    vocab_size: int,
    sequence_length: int,
    seed: int,
) -> tuple[ModelEngine, Tokenizer]:
    """Return the model and its tokenizer; both are made where there are none yet, by the seed."""
    if isinstance(model, nn.Module):
        engine = ModelEngine.wrap(model)
        if isinstance(tokenizer, str):
            raise ConfigError(
                f"tokenizer={tokenizer!r} would be a new one, and the model knows the tokens of"
                " its own",
                fix="leave tokenizer out, or let grow_vocabulary add tokens",
            )
        return engine, own_tokenizer(engine) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ConfigError(
            "a model from scratch needs a tokenizer", fix='give one, or "wordpiece" or "bpe"'
        )
    if isinstance(tokenizer, str):
        tokenizer = train_tokenizer(texts, tokenizer, vocab_size)
    arguments = {
        "context_length": sequence_length,
        "pad_token": tokenizer.require("pad", "fills sequences up"),
        **model,
        "vocab_size": tokenizer.vocab_size,
        "outputs": "vocabulary",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModelEngine("encoder", **arguments), tokenizer


def _objective(engine: ModelEngine, objective: str) -> Objective:
    fitting: Objective | None = None
    if isinstance(engine.module, Encoder):
        fitting = "masked"
    elif isinstance(engine.module, Decoder):
        fitting = "causal"
    if fitting is None or objective not in ("auto", fitting):
        known = ", ".join(get_args(Objective))
        raise ConfigError(
            f"objective={objective!r} does not fit the {engine.architecture!r}",
            fix=f"leave it out; encoders and decoders learn by one of: {known}",
        )
    return fitting
