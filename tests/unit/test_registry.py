import logging
import pickle
import sys
from importlib.metadata import EntryPoint

import pytest

from deepseek import registry
from deepseek.errors import ConfigError, DataError, MissingExtraError
from deepseek.registry import PLUGIN_GROUP, Registry, did_you_mean, import_extra


def test_builtin_entry_is_imported_on_first_use():
    registry = Registry("thing", {"path": "pathlib:Path"})
    import pathlib

    assert registry.get("path") is pathlib.Path


def test_unknown_name_is_answered_with_the_nearest():
    registry = Registry("optimizer", {"adamw": "x:y", "sgd": "x:y"})
    with pytest.raises(ConfigError, match="unknown optimizer 'adamv'") as caught:
        registry.get("adamv")
    assert '"adamw"' in str(caught.value)


def test_second_registration_raises():
    registry = Registry("thing")
    registry.register("a")(1)
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("a")(2)
    assert registry.get("a") == 1


def test_missing_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"deepseek-framework\[medical\]"):
        import_extra("no_such_module_here", "medical")


def test_what_an_extra_says_while_it_is_imported_is_not_shown(tmp_path, monkeypatch, caplog):
    lines = ["import logging, warnings", "logging.warning('old')", "warnings.warn('older')"]
    (tmp_path / "talking_extra.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert import_extra("talking_extra", "deploy").__name__ == "talking_extra"
    assert caplog.records == []
    logging.warning("new")
    assert [each.message for each in caplog.records] == ["new"]


def test_did_you_mean_lists_names_where_none_is_near():
    assert did_you_mean("zzzzzz", ["adam", "sgd"]) == "choose one of: adam, sgd"


def test_errors_survive_the_way_from_a_worker_process():
    error = DataError("photo.jpg is truncated", fix="delete it")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.exit_code == 3


def test_a_package_that_is_kept_from_being_imported_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "kept_away", None)
    with pytest.raises(MissingExtraError, match="kept_away is not installed"):
        import_extra("kept_away", "deploy")


def test_a_plug_in_that_fails_is_named_each_time(monkeypatch):
    ran = []
    points = [
        EntryPoint("good", "builtins:list", PLUGIN_GROUP),
        EntryPoint("bad", "no_such_module_here:register", PLUGIN_GROUP),
    ]

    def entry_points(group):
        ran.append(group)
        return points

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    monkeypatch.setattr(registry, "_broken_plugin", "")
    known = Registry("thing", {"path": "pathlib:Path"})
    for look_up in (known.names, lambda: known.get("path"), lambda: "path" in known):
        with pytest.raises(ConfigError, match=r"'bad' \(no_such_module_here:register\) fails: Mod"):
            look_up()
    assert ran == [PLUGIN_GROUP]
