import json

import pytest
import typer

from deepseek.cli.doctor import doctor
from deepseek.errors import ConfigError

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(doctor)


def run(*arguments):
    """Run the command; return its exit code."""
    with pytest.raises(SystemExit) as left:
        app(args=list(arguments))
    return left.value.code or 0


def test_findings_are_printed_as_json_and_decide_the_exit_code(capsys):
    code = run("--json")
    facts = json.loads(capsys.readouterr().out)
    verdicts = {finding["name"]: finding["verdict"] for finding in facts["findings"]}
    assert verdicts["torch.import"] == "ok"
    assert code == int("problem" in verdicts.values())


def test_table_ends_with_the_number_of_verdicts(capsys):
    run()
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert any(line.startswith("ok") and "python.version" in line for line in lines)
    assert lines[-1].endswith("ok.")


def test_bandwidth_is_measured_printed_and_drawn(capsys, tmp_path):
    plot = tmp_path / "bandwidth.svg"
    code = run("--bandwidth", "--nproc", "2", "--sizes", "1KiB:2KiB", "--plot", str(plot))
    text = capsys.readouterr().out
    assert code == 0
    assert [text.count(f"\n{name}\n") for name in ("all_reduce", "send_recv")] == [1, 1]
    assert text.count("2 KiB") == 5
    assert plot.read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nproc", "2"], "--nproc without --bandwidth"),
        (["--sizes", "1KiB", "--plot", "x.svg"], "--sizes, --plot without --bandwidth"),
        (["--bandwidth", "--nproc", "1"], "nobody to talk to"),
        (["--bandwidth", "--sizes", "big"], "'big' is no size"),
        (["--bandwidth", "--plot", "x.png"], "--plot x.png"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        app(args=arguments, standalone_mode=False)
