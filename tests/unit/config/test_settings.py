import pytest

from deepseek.config import (
    OptimizerConfig,
    RunConfig,
    TrainerConfig,
    json_schema,
    resolve,
    validate_settings,
)
from deepseek.config.spelling import distance, meant
from deepseek.errors import ConfigError

RUN = {"data": {"train": "digits"}, "model": {"architecture": "vit"}}


def message(cls, **values):
    with pytest.raises(ConfigError) as caught:
        validate_settings(cls, values)
    return str(caught.value)


def test_good_values_become_settings():
    config = validate_settings(TrainerConfig, {"betas": [0.9, 0.95], "epochs": 3, "warmup": 0.1})
    assert (config.betas, config.epochs, config.warmup) == ((0.9, 0.95), 3, 0.1)
    assert validate_settings(OptimizerConfig, {"algorithm": "adam"}).learning_rate == "auto"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number >= 1 (samples)"),
        ({"batch_size": "32"}, 'batch_size="32": expected a whole number >= 1 (samples)'),
        ({"seed": True}, "seed=true: expected a whole number >= 0"),
        ({"lr": float("nan")}, 'lr=nan: expected a number > 0 or "auto"'),
        ({"lr": "fast"}, 'lr="fast": expected a number > 0 or "auto"'),
        ({"betas": [0.9, 1.0]}, "expected a list of 2, each a number >= 0 and < 1"),
        ({"betas": [0.9]}, "expected a list of 2"),
        ({"warmup": 1.5}, "a whole number >= 0 (optimizer steps), a number >= 0 and < 1"),
        ({"precision": "bf17"}, "did you mean `bf16`?"),
        ({"eval_every": "epcoh"}, "did you mean `epoch`?"),
        ({"epochs": 0}, "(passes over the training data) or null"),
        ({"early_stopping": 0}, "(evaluations)"),
        ({"epcohs": 3}, "unknown setting epcohs=3\n  Fix: did you mean `epochs`?"),
        ({"learning_rate": 1e-3}, "did you mean `lr`?"),
        ({"epochs": None}, "nothing says when the run ends"),
        ({"batch_size": 10, "grad_accum_steps": 3}, "grad_accum_steps=3 does not divide"),
        ({"optimizer": "sgd", "betas": [0.9, 0.99]}, "optimizer=sgd has no betas"),
        ({"loggers": "console"}, "expected a list, each entry a text"),
    ],
)
def test_a_broken_rule_names_the_value_the_rule_and_the_unit(values, says):
    assert says in message(TrainerConfig, **values)


def test_every_problem_is_in_one_error():
    text = message(TrainerConfig, lrr=1, epochs=0, momentum=2, batch_size=10, grad_accum_steps=3)
    assert text.startswith("4 problems in TrainerConfig:")
    for word in ("lrr=1", "epochs=0", "momentum=2", "does not divide"):
        assert word in text


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        TrainerConfig().lr = 1.0


def test_a_seed_in_either_place_is_the_seed_of_both():
    for values in ({"seed": 7}, {"trainer": {"seed": 7}}):
        config = resolve(validate_settings(RunConfig, {**RUN, **values}))
        assert (config.seed, config.trainer.seed) == (7, 7)
    text = message(RunConfig, **RUN, seed=1, trainer={"seed": 2})
    assert "seed=1 and trainer.seed=2 contradict each other" in text


def test_early_stopping_needs_something_to_evaluate_on():
    values = {"data": {"train": "x", "val": None}, "trainer": {"early_stopping": 3}}
    assert "data.val=null" in message(RunConfig, model=RUN["model"], **values)


def test_an_empty_section_has_its_defaults():
    assert validate_settings(RunConfig, {**RUN, "trainer": None}).trainer == TrainerConfig()


def test_every_setting_in_the_schema_says_what_it_is():
    schema = json_schema()
    for definition in (schema, *schema["$defs"].values()):
        for name, field in definition["properties"].items():
            assert field.get("description"), name
    assert schema["$defs"]["TrainerConfig"]["properties"]["batch_size"]["unit"] == "samples"
    assert schema["$defs"]["TrainerConfig"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [("", "ab", 2), ("lr", "rl", 1), ("epcohs", "epochs", 1), ("abc", "abc", 0), ("ab", "b", 1)],
)
def test_distance_counts_edits(left, right, expected):
    assert distance(left, right) == expected
    assert distance(right, left) == expected


def test_a_word_unlike_any_other_suggests_nothing():
    assert meant("zzzzzz", ["epochs", "lr"]) is None


def test_momentum_is_refused_where_the_optimizer_has_none():
    assert "has no momentum" in message(TrainerConfig, momentum=0.9, optimizer="adamw")
    assert TrainerConfig(momentum=0.8, optimizer="sgd").momentum == 0.8
