import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.config import (
    ConfigFileError,
    RunConfig,
    TrainerConfig,
    dump_config,
    json_schema,
    load_config,
    resolve,
    validate_settings,
)
from deepseek.config.parallel import AXES, ParallelConfig, parse_plan
from deepseek.errors import ConfigError

RUN = {"data": {"train": "digits"}, "model": {"architecture": "vit"}}
FILE = "data: {train: digits}\nmodel: {architecture: vit}\ntrainer:\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(trainer, *overrides):
        (tmp_path / "model_config.yaml").write_text(FILE + trainer)
        return load_config("model_config.yaml", overrides)

    return load


@pytest.fixture
def problems(load):
    def problems(trainer, *overrides):
        with pytest.raises(ConfigFileError) as caught:
            load(trainer, *overrides)
        return caught.value

    return problems


def axes(config):
    return {axis: getattr(config, axis) for axis in AXES if getattr(config, axis) != 1}


# -- texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dp2-tp2-pp2", {"dp_replicate": 2, "tp": 2, "pp": 2}),
        ("pp2-tp2-dp2", {"dp_replicate": 2, "tp": 2, "pp": 2}),
        ("fsdp4-cp2-ep1", {"dp_shard": 4, "cp": 2}),
        ("dp_replicate2-dp_shard3", {"dp_replicate": 2, "dp_shard": 3}),
        ("ddp4", {"dp_replicate": 4}),
        ("fsdp-tp2", {"dp_shard": "auto", "tp": 2}),
        ("fsdp", {"dp_shard": "auto"}),
        ("auto", {"dp_replicate": "auto"}),
        ("none", {}),
        ("", {}),
        (" DP2-TP2 ", {"dp_replicate": 2, "tp": 2}),
    ],
)
def test_a_text_names_axes_and_degrees(text, expected):
    assert axes(ParallelConfig.model_validate(text)) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dp2-xx2", "'xx2'"),
        ("dp2-dp3", "'dp3'"),
        ("tp0", "'tp0'"),
        ("dp00", "'dp00'"),
        ("dp-tp0", "'tp0'"),
        ("2tp", "'2tp'"),
        ("dp2_tp2", "'dp2_tp2'"),
        ("dp2--tp2", "''"),
        ("tp-2", "'2'"),
        ("tp2.0", "'tp2.0'"),
        ("dp2 tp2", "'dp2 tp2'"),
    ],
)
def test_what_a_text_cannot_mean_is_named(text, part):
    with pytest.raises(ConfigError) as caught:
        validate_settings(TrainerConfig, {"parallel": text})
    what = "is there twice" if text == "dp2-dp3" else "is no axis with its degree"
    assert caught.value.message == f'parallel="{text}": {part} {what}'
    assert "dp2-tp2-pp2" in caught.value.fix


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(AXES), st.integers(1, 4096)), st.data())
def test_a_plan_survives_its_description(degrees, data):
    if degrees and data.draw(st.booleans()):
        degrees[data.draw(st.sampled_from(sorted(degrees)))] = "auto"
    config = ParallelConfig(**degrees)
    assert ParallelConfig.model_validate(config.describe()) == config


@settings(deadline=None)
@given(st.text(alphabet="dpfstcexau_-0123456789 ", max_size=12))
def test_any_text_is_a_plan_or_a_config_error(text):
    try:
        config = validate_settings(TrainerConfig, {"parallel": text}).parallel
    except ConfigError:
        return
    assert all(degree == "auto" or degree >= 1 for degree in axes(config).values())


# -- settings --------------------------------------------------------------------------------


def test_a_text_and_its_axes_are_the_same_setting():
    as_text = validate_settings(TrainerConfig, {"parallel": "dp2-tp2"})
    as_axes = validate_settings(TrainerConfig, {"parallel": {"dp_replicate": 2, "tp": 2}})
    as_object = validate_settings(TrainerConfig, {"parallel": ParallelConfig(dp_replicate=2, tp=2)})
    assert as_text == as_axes == as_object


def test_by_default_the_data_are_spread_over_all_processes():
    default = TrainerConfig().parallel
    assert {**axes(default), "planned": default.planned} == parse_plan("auto")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"tp": 0}, 'parallel.tp=0: expected a whole number >= 1 (processes) or "auto"'),
        ({"tp": "2"}, 'parallel.tp="2": expected a whole number >= 1 (processes) or "auto"'),
        ({"tp": True}, 'parallel.tp=true: expected a whole number >= 1 (processes) or "auto"'),
        ({"micro_batches": 0}, "parallel.micro_batches=0: expected a whole number >= 1 (micro-"),
        ({"stages_per_rank": 0}, "parallel.stages_per_rank=0: expected a whole number >= 1 (st"),
        ({"bucket_mib": 0}, "parallel.bucket_mib=0: expected a number > 0 (MiB)"),
        ({"timeout_s": -1.0}, "parallel.timeout_s=-1.0: expected a number > 0 (seconds)"),
        ({"schedule": "1f1c"}, 'parallel.schedule="1f1c": expected "gpipe", "1f1b",'),
        ({"compression": "fp8"}, 'parallel.compression="fp8": expected "none", "bf16" or'),
        ({"sequence_parallel": "yes"}, 'parallel.sequence_parallel="yes": expected true or false'),
        ({"tpp": 2}, "unknown setting parallel.tpp=2"),
    ],
)
def test_bad_values_are_named_with_what_was_expected(value, says):
    with pytest.raises(ConfigError) as caught:
        validate_settings(TrainerConfig, {"parallel": value})
    assert caught.value.message.startswith(says)


@pytest.mark.parametrize(
    ("value", "first", "second"),
    [("fsdp-tp", "dp_shard", "tp"), ({"pp": "auto", "cp": "auto"}, "pp", "cp")],
)
def test_only_one_axis_can_take_what_is_left(value, first, second):
    with pytest.raises(ConfigError) as caught:
        validate_settings(TrainerConfig, {"parallel": value})
    assert caught.value.message == (
        f"{first}=auto and {second}=auto: only one axis can take the processes that are left"
    )
    assert caught.value.fix == f"give {first} or {second} a number"


def test_a_number_is_told_that_a_text_would_do():
    with pytest.raises(ConfigError) as caught:
        validate_settings(TrainerConfig, {"parallel": 4})
    assert "dp2-tp2" in str(caught.value)


# -- files -----------------------------------------------------------------------------------


def test_a_file_says_it_in_text_or_axis_by_axis(load):
    as_text = load("  parallel: dp2-tp2\n")
    assert load("  parallel: {dp_replicate: 2, tp: 2}\n") == as_text
    assert load("  parallel:\n    tp: 2\n    dp_replicate: 2\n") == as_text


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("  parallel: dp2-xx2\n", "value", 4, 13),
        ("  parallel: 4\n", "value", 4, 13),
        ("  parallel: {tp: 0}\n", "value", 4, 18),
        ("  parallel:\n    tp: 2\n    schedule: 1f1c\n", "value", 6, 15),
        ("  parallel: {tp: 2, tpp: 3}\n", "unknown-key", 4, 21),
        ("  parallel: {tp: auto, dp_replicate: auto}\n", "contradiction", 4, 38),
        ("  parallel: fsdp-tp\n", "contradiction", 4, 3),
    ],
)
def test_an_error_is_shown_where_it_stands(text, code, line, column, problems):
    [problem] = problems(text).problems
    assert (problem.code, problem.line, problem.column) == (code, line, column)


def test_all_problems_of_the_plan_are_told_at_once(problems):
    error = problems("  parallel: {tp: 0, micro_batches: 0, bucket_mib: 0}\n  lr: -1\n")
    assert [problem.line for problem in error.problems] == [4, 4, 4, 5]


def test_a_degree_of_zero_is_told_as_it_was_written(problems):
    assert "dp00" in str(problems("  parallel: dp00\n")).splitlines()[0]


@pytest.mark.parametrize(
    "given",
    [
        "none", "auto", "fsdp-tp2", "dp2-tp2-pp2",
        {"tp": 2, "sequence_parallel": False, "vocab_parallel": True},
        {"pp": 2, "schedule": "zbv_zero_bubble", "micro_batches": 8, "stages_per_rank": 2},
        {"dp_replicate": 2, "compression": "bf16", "bucket_mib": 0.5, "algorithm": "tree"},
    ],
)  # fmt: skip
def test_what_is_dumped_loads_as_the_same(given, tmp_path):
    config = RunConfig.model_validate({**RUN, "trainer": {"parallel": given}})
    path = tmp_path / "model_config.yaml"
    path.write_text(dump_config(config))
    loaded = load_config(path)
    assert loaded == resolve(config)
    assert loaded.trainer.parallel == config.trainer.parallel


# -- overrides -------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "  parallel: fsdp2\n", "  parallel: {pp: 2, tp: 2}\n"])
def test_a_text_on_the_command_line_replaces_the_whole_plan(inside, load):
    config = load(inside, "trainer.parallel=dp2-tp2")
    assert config == load("  parallel: dp2-tp2\n")


def test_an_axis_on_the_command_line_is_one_of_the_plan_in_the_file(load):
    assert load("", "trainer.parallel.tp=2").trainer.parallel == ParallelConfig(tp=2)
    config = load("  parallel: {dp_replicate: 2, schedule: gpipe}\n", "trainer.parallel.tp=2")
    assert config.trainer.parallel == ParallelConfig(dp_replicate=2, tp=2, schedule="gpipe")
    changed = load("  parallel: {tp: 2}\n", "trainer.parallel.tp=4")
    assert axes(changed.trainer.parallel) == {"tp": 4}


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        ("dp2", "tp=2", {"dp_replicate": 2, "tp": 2}),
        ("pp2", "micro_batches=4", {"pp": 2, "micro_batches": 4}),
        ("pp2", "schedule=gpipe", {"pp": 2, "schedule": "gpipe"}),
        ("dp2-tp2", "tp=4", {"dp_replicate": 2, "tp": 4}),
    ],
)
def test_an_axis_on_the_command_line_is_added_to_a_text(text, override, expected, load):
    config = load(f"  parallel: {text}\n", f"trainer.parallel.{override}")
    assert config.trainer.parallel == ParallelConfig(**expected)


@pytest.mark.parametrize(
    ("override", "code", "column"),
    [
        ("trainer.parallel=dp2-xx", "value", 18),
        ("trainer.parallel.tp=x", "type", 21),
        ("trainer.parallel.tpp=2", "unknown-key", 18),
    ],
)
def test_an_override_that_is_wrong_is_shown_on_the_command_line(override, code, column, problems):
    error = problems("", override)
    assert [(p.code, p.column) for p in error.problems] == [(code, column)]
    assert f"command line: {override}\n" in str(error)


# -- schema ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema():
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("given", ["auto", "dp2-tp2", {"tp": 2}, {"tp": "auto"}, {}])
def test_the_schema_takes_what_the_settings_take(given, schema):
    document = {**RUN, "trainer": {"parallel": given}}
    assert not list(schema.iter_errors(document))
    RunConfig.model_validate(document)


@pytest.mark.parametrize(
    "given", [4, ["dp2"], {"tp": 0}, {"tp": "2"}, {"dp": 2}, {"bucket_mib": 0}]
)
def test_the_schema_refuses_what_the_settings_refuse(given, schema):
    document = {**RUN, "trainer": {"parallel": given}}
    assert list(schema.iter_errors(document))
    with pytest.raises(ValueError, match="parallel"):
        RunConfig.model_validate(document)


def test_the_schema_gives_every_degree_its_unit():
    properties = json_schema()["$defs"]["ParallelConfig"]["properties"]
    assert {properties[axis]["unit"] for axis in AXES} == {"processes"}
    assert all(properties[name]["description"] for name in properties)
