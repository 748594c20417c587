"""What the command line says when a command is left."""

import pytest
import typer

from deepseek.cli.main import find_interrupt


@pytest.mark.parametrize("saved", ["step 7 is saved in runs/a", ""])
def test_an_interrupt_is_found_behind_the_exit_that_typer_makes_of_it(saved):
    app = typer.Typer()

    @app.command()
    def train() -> None:
        raise KeyboardInterrupt(saved)

    with pytest.raises(SystemExit) as caught:
        app(args=[])
    assert caught.value.code == 130
    interrupt = find_interrupt(caught.value)
    assert interrupt is not None
    assert str(interrupt) == saved


def test_an_exit_of_its_own_has_no_interrupt_behind_it():
    assert find_interrupt(SystemExit(2)) is None
