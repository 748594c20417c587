import pickle
import time

import pytest

from deepseek.config import ConfigFileError, RunConfig, dump_config, load_config, read_config
from deepseek.errors import ConfigError

GOOD = """\
data: {train: digits}
model:
  architecture: vit
  args: {dim: 64, on: yes, size: 0x10, share: 1e-3, octal: 0o17, none: ~, flag: true}
trainer:
  lr: 1e-3
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "model_config.yaml").write_bytes(data)
        return "model_config.yaml"

    return write


def problems(path, *args, **kwargs):
    with pytest.raises(ConfigFileError) as caught:
        load_config(path, *args, **kwargs)
    assert caught.value.exit_code == 2
    return caught.value


def test_yaml_is_version_1_2(write):
    config = load_config(write(GOOD))
    assert config.trainer.lr == 1e-3
    assert config.model.args == {
        "dim": 64,
        "on": "yes",
        "size": 16,
        "share": 1e-3,
        "octal": 15,
        "none": None,
        "flag": True,
    }


def test_all_problems_are_shown_at_once_in_reading_order(write):
    text = "data:\n  train: digits\n  val: 3\nmodel: {}\ntrainer:\n  epcohs: 3\n  lr: 1e-3x\n"
    error = problems(write(text), ["trainer.epochs=0"])
    found = [(p.code, p.line, p.column) for p in error.problems]
    assert found == [
        ("value", 3, 8),
        ("missing", 4, 1),
        ("unknown-key", 6, 3),
        ("type", 7, 7),
        ("value", 1, 16),
    ]
    assert str(error).startswith(
        "model_config.yaml:3:8  error[value]  data.val = 3  expected a number > 0 and < 1"
    )
    assert (
        "model_config.yaml:6:3  error[unknown-key]  trainer.epcohs\n"
        "    6 |   epcohs: 3\n"
        "          ^^^^^^ did you mean `epochs`?   (allowed here: batch_size, "
    ) in str(error)
    assert "command line: trainer.epochs=0\n                             ^ error" in str(error)
    assert "\n5 problems, nothing was started.\n" in str(error)


def test_rules_between_settings_are_checked_beside_other_problems(write):
    text = GOOD + "  epochs: null\n  epcohs: 3\n  batch_size: 10\n"
    error = problems(write(text))
    assert [p.code for p in error.problems] == ["contradiction", "unknown-key"]
    assert "nothing says when the run ends" in str(error)


def test_every_duplicate_key_is_found_with_its_place(write):
    error = problems(write(GOOD + "  epochs: 3\n  epochs: 4\n  lr: 2\n"))
    assert [(p.code, p.line, p.column) for p in error.problems] == [
        ("duplicate", 8, 3),
        ("duplicate", 9, 3),
    ]
    assert "trainer.epochs is given twice, first in line 7" in str(error)


@pytest.mark.parametrize(
    ("text", "says", "place"),
    [
        (b"", "the file is empty", (1, 1)),
        (b"# a comment\n", "the file is empty", (1, 1)),
        (b"- a\n- b\n", "the top is a list", (1, 1)),
        (b"hello\n", 'the top is "hello"', (1, 1)),
        (b"a:\n\t- b\n", "a tab stands where YAML wants spaces", (2, 1)),
        (b"a: 1\nb: \xff\n", "byte 0xff is not UTF-8", (2, 4)),
        (b"a: [1,\n", "expected the node content", (2, 1)),
        (b"a: b: c\n", "a `key: value` cannot begin here", (1, 5)),
        (b"a: *b\n", "undefined alias", (1, 4)),
        (b"a: 1\n---\nb: 2\n", "a second document", (2, 1)),
        (b"a: !!python/object/apply:os.system [x]\n", "the tag", (1, 4)),
        (b"a: &a [*a]\n", "nested deeper than 16 levels", (1, 4)),
        (b"[" * 60_000, "nested deeper than 16 levels", (1, 18)),
        (b"- " * 30_000, "nested deeper than 16 levels", (1, 35)),
        (b"<<: {a: 1}\n", "merge keys", (1, 1)),
        (b"a\x00b: 1\n", "special characters", (1, 1)),
        (b"a: 0x" + b"f" * 200, "a number of", (1, 1)),
    ],
)
def test_text_that_is_no_configuration_says_why_and_where(write, text, says, place):
    start = time.monotonic()
    error = problems(write(text))
    assert time.monotonic() - start < 5
    assert says in str(error)
    assert (error.problems[0].line, error.problems[0].column) == place


def test_aliases_that_expand_without_end_are_refused(write):
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    rows += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in ("ab", "bc", "cd", "de", "ef")]
    assert "more than 10000 values" in str(problems(write("\n".join(rows))))


def test_a_large_file_is_refused_before_it_is_parsed(write):
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        load_config(write("a: " + "x" * 70_000))


def test_a_missing_file_names_the_nearest(write, tmp_path):
    write(GOOD)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "model_confg.yaml")
    assert "does not exist" in str(caught.value)
    assert "model_config.yaml?" in str(caught.value)


def test_overrides_are_yaml_and_reported_as_changes(write):
    overrides = ["trainer.epochs=5", "model.args.blocks=[2,2]", "data.val=null", "trainer.lr=1e-3"]
    loaded = read_config(write(GOOD), overrides)
    assert loaded.config.trainer.epochs == 5
    assert loaded.config.model.args["blocks"] == [2, 2]
    assert loaded.config.data.val is None
    assert [str(change) for change in loaded.changes] == [
        "trainer.epochs: 10 -> 5",
        "model.args.blocks: null -> [2, 2]",
        'data.val: "auto" -> null',
    ]


def test_a_change_of_what_the_file_does_not_say_names_the_default(write):
    text = "data: {format: table, train: a.csv}\nmodel: {architecture: fm}\n"
    loaded = read_config(write(text), ["data.ignore=[user]"])
    assert [str(change) for change in loaded.changes] == ["data.ignore: [] -> ['user']"]


@pytest.mark.parametrize(
    ("overrides", "seed", "num_workers"),
    [
        (["seed=1"], 1, 2),
        (["trainer.seed=1"], 1, 2),
        (["trainer.num_workers=0"], 7, 0),
        (["data.num_workers=0", "trainer.seed=1", "seed=1"], 1, 0),
        (["trainer={seed: 3, num_workers: auto}"], 3, "auto"),
    ],
)
def test_an_override_of_a_shared_setting_goes_for_both_places(write, overrides, seed, num_workers):
    written = dump_config(load_config(write(GOOD), ["seed=7", "trainer.num_workers=2"]))
    assert written.count("seed: 7") == 2
    config = load_config(write(written), overrides)
    assert (config.seed, config.trainer.seed) == (seed, seed)
    assert (config.data.num_workers, config.trainer.num_workers) == (num_workers, num_workers)


def test_two_overrides_of_a_shared_setting_contradict_each_other(write):
    error = problems(write(GOOD + "  seed: 7\n"), ["seed=1", "trainer.seed=2"])
    assert "seed=1 and trainer.seed=2 contradict each other" in str(error)


@pytest.mark.parametrize(
    ("override", "code", "column", "says"),
    [
        ("trainer.epcohs=5", "unknown-key", 9, "did you mean `epochs`?"),
        ("trianer.epochs=5", "unknown-key", 1, "did you mean `trainer`?"),
        ("lr=1e-3", "unknown-key", 1, "did you mean `trainer.lr`?"),
        ("trainer.epochs=", "override", 15, "write trainer.epochs=null"),
        ("epochs", "override", 1, "section.key=value"),
        ("trainer.epochs=[1", "syntax", 18, "expected"),
        ("trainer.precision=bf17", "value", 19, "did you mean `bf16`?"),
    ],
)
def test_an_override_is_reported_with_its_place(write, override, code, column, says):
    error = problems(write(GOOD), [override])
    assert [(p.code, p.column) for p in error.problems] == [(code, column)]
    assert says in str(error)
    assert f"command line: {override}\n" in str(error)


def test_model_arguments_are_checked_with_everything_else(write):
    def check_args(architecture, args):
        assert (architecture, args["dim"]) == ("vit", 64)
        return [
            ("dim", "must be divisible by heads=3", "did you mean 63?"),
            ("depth", "needed", None),
        ]

    error = problems(write(GOOD + "  epcohs: 1\n"), check_args=check_args)
    assert [(p.code, p.line, p.column) for p in error.problems] == [
        ("argument", 4, 3),
        ("argument", 4, 10),
        ("unknown-key", 7, 3),
    ]
    assert "model.args.dim: must be divisible by heads=3" in str(error)


def test_what_is_dumped_loads_as_the_same(write):
    text = (
        GOOD + "  betas: [0.9, 0.95]\n  warmup: 0.1\n  loggers: [console]\n  weight_decay: 1e-5\n"
    )
    config = load_config(write(text), ["name=on-1", "model.args.text='1e-3'"])
    again = load_config(write(dump_config(config)))
    assert again == config
    assert isinstance(again, RunConfig)


def test_the_error_survives_a_process_boundary(write):
    error = problems(write("lr: 3"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(("head", "value"), [("%YAML 1.1\n---\n", "yes"), ("", "!!bool yes")])
def test_a_truth_of_yaml_1_1_is_no_false(write, head, value):
    text = GOOD.replace("on: yes, ", "")
    error = problems(write(f"{head}{text}  deterministic: {value}\n"))
    assert "yes is YAML 1.1; write true or false" in str(error)
