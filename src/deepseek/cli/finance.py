"""`deepseek finance`: a vocabulary that grows, and models that learn the language of a domain."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek.cli.json_figures import only_json
from deepseek.cli.model_options import AsJson, Device, RunDir, RunPrecision
from deepseek.cli.progress import measurements

if TYPE_CHECKING:
    from deepseek.finance import Adaptation

app = typer.Typer(no_args_is_help=True, help="Text of finance: vocabulary and pretraining.")
Model = Annotated[Path, typer.Argument(metavar="MODEL.bin", help="Model file with a tokenizer.")]
Output = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for what is made.")]
Corpus = Annotated[str, typer.Option(help="Text: a file, a folder or a pattern.")]
Column = Annotated[str, typer.Option(help="Column with the text, of tables.")]
Encoding = Annotated[str, typer.Option(help="Of text files and CSV.")]


@app.command("grow-vocabulary")
def grow_vocabulary(
    model: Model,
    output: Output,
    corpus: Corpus,
    max_terms: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 1000,
    min_count: Annotated[int, typer.Option(min=1, help="How often a term is seen.")] = 5,
    init: Annotated[
        str, typer.Option(help="Of new rows: mean, distribution or auxiliary.")
    ] = "mean",
    vectors: Annotated[
        Path | None, typer.Option(help="Word vectors as GloVe's, for --init auxiliary.")
    ] = None,
    reserve: Annotated[int, typer.Option(min=0, help="Further places, still free.")] = 0,
    compounds: Annotated[
        bool, typer.Option(help="Also $TSLA, 2.5 and beginnings of addresses.")
    ] = True,
    text_column: Column = "text",
    encoding: Encoding = "utf-8",
    as_json: AsJson = False,
) -> None:
    """Make tokens of the terms that a tokenizer cuts to pieces most."""
    from typing import cast

    from deepseek.finance import grow_vocabulary as grow
    from deepseek.finance.vocabulary import Init
    from deepseek.models import ModelEngine

    grown = grow(
        ModelEngine.load(model), None, corpus, max_terms=max_terms, min_count=min_count,
        init=cast(Init, init), vectors=vectors, reserve=reserve, compounds=compounds,
        text_column=text_column, encoding=encoding,
    )  # fmt: skip
    grown.save(output)
    before, after = grown.before, grown.after
    if as_json:
        found = {
            "terms": [each.text for each in grown.terms],
            "vocab_size": grown.tokenizer.vocab_size,
            "tokens_per_text": [before.mean_tokens, after.mean_tokens],
            "tokens_per_word": [before.tokens_per_word, after.tokens_per_word],
        }
        print(json.dumps(found, indent=1))
        return
    print(f"{len(grown.terms)} new tokens, {grown.tokenizer.vocab_size} in all")
    if grown.why_fewer:
        print(f"fewer than {max_terms}: {grown.why_fewer}")
    print(f"tokens per word  {before.tokens_per_word:.3f} -> {after.tokens_per_word:.3f}")
    print(f"tokens per text  {before.mean_tokens:.1f} -> {after.mean_tokens:.1f}")
    print(f"written: {output}/model.bin, tokenizer.json, vocabulary.md")


@app.command("adapt")
def adapt(
    model: Model,
    output: Output,
    corpus: Corpus,
    general: Annotated[str | None, typer.Option(help="General text, likewise.")] = None,
    replay: Annotated[float, typer.Option(min=0, max=0.99, help="Share of it.")] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the corpus.")] = 1,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps at most.")] = None,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate, of AdamW.")] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of an optimizer step.")] = 32,
    sequence_length: Annotated[int, typer.Option(min=8, help="Tokens of a sample.")] = 128,
    masking: Annotated[str, typer.Option(help="tokens, words or spans; of encoders.")] = "words",
    mask_share: Annotated[float, typer.Option(help="Of the tokens; of encoders.")] = 0.15,
    head_steps: Annotated[int, typer.Option(min=0, help="Steps of a new head alone.")] = 0,
    held_out: Annotated[float, typer.Option(help="Share of the texts to measure with.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Of masks, order and what is held out.")] = 0,
    time_budget: Annotated[str | None, typer.Option(help="Time at most: 90s, 20m, 1h30m.")] = None,
    name: Annotated[str, typer.Option(help="Of the run; of one that goes on, too.")] = "adapt",
    run_dir: RunDir = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --run-dir, or the newest run of the name.")
    ] = False,
    device: Device = "auto",
    precision: RunPrecision = "auto",
    text_column: Column = "text",
    encoding: Encoding = "utf-8",
    as_json: AsJson = False,
) -> None:
    """Train a model on unlabelled text of a domain, or of a task."""
    from typing import Any

    from deepseek.finance import adapt as adapt_model
    from deepseek.models import ModelEngine

    given: dict[str, Any] = {"masking": masking, "precision": precision}
    with only_json(as_json), measurements("perplexity") as on_measured:
        done = adapt_model(
            ModelEngine.load(model), corpus, general=general, replay=replay, epochs=epochs,
            max_steps=max_steps, lr=lr, batch_size=batch_size, sequence_length=sequence_length,
            mask_share=mask_share, head_steps=head_steps, held_out=held_out, seed=seed,
            text_column=text_column, encoding=encoding, on_measured=on_measured,
            time_budget=time_budget, name=name, run_dir=run_dir, resume=resume, device=device,
            **given,
        )  # fmt: skip
    done.save(output)
    _print(done, output, as_json=as_json)


def _print(done: "Adaptation", output: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(done.describe(), indent=1))
        return
    print(f"{done.num_steps} steps on {done.num_texts} texts, {done.num_general} of them general")
    print(f"perplexity, domain   {done.before.domain:.2f} -> {done.after.domain:.2f}")
    if done.before.general is not None and done.after.general is not None:
        print(f"perplexity, general  {done.before.general:.2f} -> {done.after.general:.2f}")
    print(f"written: {output}/model.bin, tokenizer.json, adaptation.json")
