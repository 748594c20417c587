import pytest

from deepseek.config import ConfigFileError, TrainerConfig, json_schema, load_config
from deepseek.config import validate_settings as validate
from deepseek.config.schedule import SCHEDULES
from deepseek.errors import ConfigError
from deepseek.trainer import Schedule

OWN = ["constant", "cosine", "linear", "one_cycle", "polynomial", "wsd"]


@pytest.fixture
def stairs(monkeypatch):
    """A schedule of somebody else's, as a plug-in registers it."""
    monkeypatch.setattr(SCHEDULES, "_entries", dict(SCHEDULES._entries))

    @SCHEDULES.register("stairs")
    def fall_in_two_steps(progress, end):
        return 1.0 if progress < 0.5 else end


def test_an_unknown_name_is_told_with_all_that_there_are_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        validate(TrainerConfig, {"schedule": "cosin"})
    assert str(caught.value).startswith(f'schedule="cosin": expected one of {", ".join(OWN)}\n')
    assert caught.value.fix == "did you mean `cosine`?"
    with pytest.raises(ConfigError, match="or install its plug-in"):
        validate(TrainerConfig, {"schedule": "x"})


def test_it_is_told_with_its_place_before_anything_starts(tmp_path):
    file = tmp_path / "model_config.yaml"
    file.write_text("data: {train: digits}\nmodel: {architecture: vit}\ntrainer:\n  schedule: x\n")
    with pytest.raises(ConfigFileError) as caught:
        load_config(file)
    assert [(p.code, p.line, p.column) for p in caught.value.problems] == [("value", 4, 13)]


def test_a_registered_name_is_a_setting_and_gives_the_rates(stairs):
    name = validate(TrainerConfig, {"schedule": "stairs"}).schedule
    schedule = Schedule(name, peak_lr=1.0, max_steps=10, warmup_steps=0, min_lr_share=0.1)
    assert [schedule.lr(step) for step in (0, 4, 5, 9)] == [1.0, 1.0, 0.1, 0.1]


def test_editors_are_offered_the_names_and_take_others():
    setting = json_schema()["$defs"]["TrainerConfig"]["properties"]["schedule"]
    assert sorted(setting["examples"]) == OWN
    assert "enum" not in setting
