"""`deepseek generate`: a decoder and a prompt -> text."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL.bin", help="Model file of a decoder.")],
    prompt: Annotated[
        str, typer.Argument(help="Text that is gone on with; - reads it from stdin.")
    ],
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="At most; by default as many as fit the context.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the most probable token each time.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from this share.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Token that ends the text.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Go on with a text, token by token."""
    from deepseek.models import ModelEngine

    engine = ModelEngine.load(model)
    text = sys.stdin.read() if prompt == "-" else prompt
    shares = {"top_k": top_k, "top_p": top_p}
    options = {name: value for name, value in shares.items() if value is not None}
    parts = engine.stream(
        text, max_new_tokens, stop=stop or (), temperature=temperature, seed=seed, **options
    )
    print(text, end="")
    for part in parts:
        print(part, end="", flush=True)
    print()
