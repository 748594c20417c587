"""`deepseek features`, `train` and `evaluate` on tables, and the examples."""

import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deepseek.cli.build_run import build_evaluation_data
from deepseek.cli.main import run
from deepseek.config import TableDataConfig, load_config
from deepseek.datasets import read_features
from deepseek.models import ModelEngine
from deepseek.recsys import Scorer

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "recsys").glob("*.yaml"))
CLICKS = """\
name: clicks
data: {format: table, train: clicks.csv, val: 0.25, features: features.yaml, time_column: time}
model: {architecture: fm, args: {embedding_dim: 4}}
trainer: {epochs: 6, batch_size: 32, lr: 5e-2, loggers: [jsonl]}
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def clicks():
    rng = np.random.default_rng(0)
    lines = ["user,item,time,click"]
    for n in range(400):
        user, item = rng.integers(0, 5), rng.integers(0, 4)
        lines.append(f"u{user},i{item},{n},{int((user + item) % 2)}")
    Path("clicks.csv").write_text("\n".join(lines))
    Path("a.yaml").write_text(CLICKS)


def test_examples_are_configurations():
    kinds = set()
    for path in EXAMPLES:
        if path.stem.endswith("_features"):
            assert read_features(path).label
            kinds.add("features")
        else:
            assert load_config(path).data.format == "table"
            kinds.add("run")
    assert kinds == {"features", "run"}


def test_a_table_from_a_file_to_its_evaluation(clicks, capsys):
    told = ["features", "clicks.csv", "--label", "click", "--cross", "user*item"]
    assert run([*told, "--output", "features.yaml"]) == 0
    assert "3 features, labels click" in capsys.readouterr().out
    assert list(read_features("features.yaml").sparse) == ["user", "item"]
    assert run([*told, "--fit"]) == 0
    assert "vocabulary: [" in capsys.readouterr().out
    assert run(["train", "a.yaml"]) == 0
    best = json.loads(Path("runs/clicks-1/summary.json").read_text())["best"]
    assert best["val_auc"] > 0.95
    capsys.readouterr()
    assert run(["evaluate", "runs/clicks-1/model.bin", "--data", "clicks.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["auc"] > 0.95


def test_samples_are_evaluated_in_the_order_of_time(clicks, capsys):
    Path("features.yaml").write_text("sparse: {user: {}, item: {}}\nlabel: {click: {}}\n")
    assert run(["train", "a.yaml", "trainer.epochs=1"]) == 0
    told = ["evaluate", "runs/clicks-1/model.bin", "--data", "new.csv"]
    Path("new.csv").write_text("user,item,time,click\nu1,i1,9,1\nu1,i1,8,0\nu1,i1,7,0\n")
    for settings, wanted in (([], [1, 0, 0]), (["time_column=time"], [0, 0, 1])):
        data = build_evaluation_data(ModelEngine.load(told[1]), told[3], settings)
        assert [int(data[n]["targets"]) for n in range(3)] == wanted
        assert run([*told, *settings]) == 0
    for name in ("", "when"):
        assert run([*told, f"time_column={name}"]) == 3
        assert f"{name!r} is missing" in capsys.readouterr().err


def test_settings_that_the_model_knows_are_refused(clicks, capsys):
    Path("features.yaml").write_text("sparse: {user: {}, item: {}}\nlabel: {click: {}}\n")
    assert run(["train", "a.yaml", "trainer.epochs=1"]) == 0
    told = ["evaluate", "runs/clicks-1/model.bin", "--data", "clicks.csv"]
    assert run([*told, "labels=[item]"]) == 2
    assert "no setting of how a table is read" in capsys.readouterr().err
    Path("other.csv").write_text("user,click\nu1,1\n")
    assert run([*told[:3], "other.csv"]) == 3
    assert "'item' is missing" in capsys.readouterr().err


def test_mistakes_in_the_configuration_are_named(clicks, capsys):
    assert run(["train", "a.yaml", "data.layout=critoe"]) == 2
    assert "criteo" in capsys.readouterr().err
    assert run(["train", "a.yaml", "data.feature=x"]) == 2
    assert "did you mean `features`" in capsys.readouterr().err
    Path("features.yaml").write_text("sparze: {user: {}}\n")
    assert run(["train", "a.yaml"]) == 2
    assert "sparse" in capsys.readouterr().err


def test_rows_are_predicted_printed_and_written(clicks, capsys):
    Path("features.yaml").write_text("sparse: {user: {}, item: {}}\nlabel: {click: {}}\n")
    assert run(["train", "a.yaml", "trainer.epochs=1"]) == 0
    model = "runs/clicks-1/model.bin"
    Path("new.csv").write_text("item,user\ni1,u0\ni2,u0\n")
    capsys.readouterr()
    assert run(["predict", model, "new.csv", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    wanted = Scorer(ModelEngine.load(model))([{"user": "u0", "item": f"i{n}"} for n in (1, 2)])
    assert [row["index"] for row in rows] == [0, 1]
    assert [row["click_prob"] for row in rows] == pytest.approx(wanted["click"].tolist())
    assert run(["predict", model, "new.csv"]) == 0
    assert capsys.readouterr().out.startswith("0         click_prob 0.")
    for name in ("out.parquet", "out.csv"):
        assert run(["predict", model, "new.csv", "new.csv", "--output", name]) == 0
    assert pq.read_table("out.parquet").column("click_prob").to_pylist() == pytest.approx(
        [row["click_prob"] for row in rows] * 2
    )
    assert run(["predict", model, "clicks.csv", "--text", "x"]) == 2
    Path("lacks.csv").write_text("item\ni1\n")
    assert run(["predict", model, "lacks.csv"]) == 3
    assert "'user' is missing" in capsys.readouterr().err


def test_a_row_that_cannot_be_read_has_an_error_and_the_others_are_scored(capsys):
    lines = [f"{n % 7},{n % 2}" for n in range(100)]
    Path("clicks.csv").write_text("\n".join(["price,click", *lines]))
    Path("a.yaml").write_text(CLICKS.replace("time_column: time", "").replace("0.25", "null"))
    Path("features.yaml").write_text("dense: {price: {}}\nlabel: {click: {}}\n")
    assert run(["train", "a.yaml", "trainer.epochs=1"]) == 0
    Path("new.csv").write_text("price\n1\ndear\n3\n")
    capsys.readouterr()
    told = ["predict", "runs/clicks-1/model.bin", "new.csv"]
    assert run([*told, "--json"]) == 3
    rows = json.loads(capsys.readouterr().out)
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "price='dear'" in rows[1]["error"]
    assert run([*told, "--strict"]) == 3
    assert "price='dear'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "told", "wanted"),
    [
        (("0", "1"), [], {"positive": None, "kind": "binary"}),
        (("no", "no", "yes"), [], {"positive": ("yes",), "negative": ("no",)}),
        (("1.5", "2.5", "4"), [], {"kind": "number"}),
    ],
)
def test_settings_are_made_from_a_table_and_train(values, told, wanted, capsys):
    times = [f"2024-05-01 {n // 60:02}:{n % 60:02}:00" for n in range(80)]
    lines = [f"u{n % 5},{time},{values[n % len(values)]}" for n, time in enumerate(times)]
    Path("own.csv").write_text("\n".join(["user,time,bought", *lines]))
    assert run(["init", "table", "--data", "own.csv"]) == 2
    assert "--label NAME" in capsys.readouterr().err
    told = ["init", "table", "--data", "own.csv", "--label", "bought"]
    assert run(told) == 0
    label = read_features("model_config_features.yaml").label["bought"]
    assert {name: getattr(label, name) for name in wanted} == wanted
    config = load_config("model_config.yaml")
    assert (config.data.format, config.data.time_column) == ("table", "time")
    assert run(["train", "model_config.yaml", "trainer.epochs=1"]) == 0
    assert Path("runs/table-1/model.bin").is_file()
    assert run(told) == 2
    assert "is there already" in capsys.readouterr().err
    assert run([*told, "--force"]) == 0


def test_settings_of_two_labels_train():
    lines = [f"u{n % 5},{n % 7},{n % 2},{n % 3}" for n in range(80)]
    Path("own.csv").write_text("\n".join(["user,price,click,stars", *lines]))
    told = ["init", "table", "--data", "own.csv", "--label", "click", "--label", "stars"]
    assert run(told) == 0
    assert run(["train", "model_config.yaml", "trainer.epochs=1"]) == 0
    assert list(ModelEngine.load("runs/table-1/model.bin").spec.tasks) == ["click", "stars"]


@pytest.mark.parametrize(
    ("row", "reading", "wanted"),
    [
        ("a{n};{label}", ["column_names=user,label", "delimiter=;"], ["user", "label"]),
        ("{label}" + "\t{n}" * 13 + "\tab" * 26, ["layout=criteo"], None),
    ],
)
def test_a_file_without_a_header_goes_from_settings_to_scores(row, reading, wanted, capsys):
    lines = [row.format(n=n % 5, label=n % 2) for n in range(80)]
    Path("own.csv").write_text("\n".join(lines) + "\n")
    told = ["init", "table", "--data", "own.csv"]
    assert run(told) != 0
    assert "layout=criteo" in capsys.readouterr().err or wanted is None
    assert run([*told, *reading]) == 0
    config = load_config("model_config.yaml").data
    assert isinstance(config, TableDataConfig)
    assert list(config.column_names or ()) == (wanted or [])
    assert run(["train", "model_config.yaml", "trainer.epochs=1"]) == 0
    model = "runs/table-1/model.bin"  # it knows how the table was read
    capsys.readouterr()
    assert run(["predict", model, "own.csv", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 80
    assert run(["evaluate", model, "--data", "own.csv", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["metrics"]["auc"] <= 1
    for told in (["predict", model, "own.csv"], ["evaluate", model, "--data", "own.csv"]):
        assert run([*told, "layout=auto"]) == 3  # the first row is taken for a header


def test_the_commands_in_a_new_configuration_work_as_they_stand(capsys):
    lines = [f"{n % 7}|{n % 3}|{n % 2}" for n in range(80)]
    Path("own.csv").write_text("\n".join(lines) + "\n")
    reading = ["column_names=price,shop_id,bought", "delimiter=|"]
    assert run(["init", "table", *reading, "--data", "own.csv", "--label", "bought"]) == 0
    text = Path("model_config.yaml").read_text()
    told = [
        shlex.split(line.strip("# ").split("  ")[0])
        for line in text.splitlines()
        if "#   deepseek" in line
    ]
    assert [words[1] for words in told] == ["train", "evaluate", "predict", "serve", "config"]
    for words in told:
        if words[1] != "serve":
            assert run(words[1:]) == 0, words


def test_rows_that_are_read_otherwise_than_in_training_are_predicted(capsys):
    names = ["user", "item", "click"]
    lines = [f"u{n % 5},i{n % 4},{n % 2}" for n in range(80)]
    Path("a.csv").write_text("\n".join(lines) + "\n")
    Path("a.yaml").write_text(
        CLICKS.replace("clicks.csv", "a.csv")
        .replace(", features: features.yaml, time_column: time", f", column_names: {names},"
                 " labels: [click]")
    )  # fmt: skip
    assert run(["train", "a.yaml", "trainer.epochs=1"]) == 0
    Path("header.csv").write_text(",".join(names) + "\n" + "\n".join(lines[:3]) + "\n")
    Path("new.csv").write_text("i1,u0\ni2,u0\n")
    Path("rows.jsonl").write_text('{"user": "u0", "item": "i1"}\n{"user": "u0", "item": "i2"}\n')
    told = ["predict", "runs/clicks-1/model.bin", "--json"]
    found = []
    capsys.readouterr()
    Path("other.csv").write_text("item,user,click\ni1,u0,0\ni2,u0,0\n")
    ways = (["new.csv", "column_names=item, user"], ["rows.jsonl"], ["other.csv"])
    for more in (["header.csv"], *ways):
        assert run([*told, *more]) == 0
        found.append([row["click_prob"] for row in json.loads(capsys.readouterr().out)])
    assert len(found[0]) == 3
    assert found[1] == found[2] == found[3]
    assert run([*told, "new.csv"]) == 3
    assert "say column_names=NAME,NAME" in capsys.readouterr().err
    assert run([*told, "new.csv", "column_name=a,b"]) == 3
    assert "column_name=a,b does not exist" in capsys.readouterr().err


def test_how_a_table_is_read_is_refused_where_there_is_none(capsys):
    assert run(["init", "text", "layout=criteo", "--data", "."]) == 2
    assert "layout=criteo would be ignored" in capsys.readouterr().err


def test_a_label_in_other_words_than_the_specs_is_named(clicks, capsys):
    Path("features.yaml").write_text(
        "sparse: {user: {}, item: {}}\nlabel: {click: {positive: ['yes']}}\n"
    )
    assert run(["train", "a.yaml"]) == 3
    said = capsys.readouterr().err
    assert "no row has one of the values that mean yes in the label click (yes)" in said
    assert "it has '0', '1'" in said
    Path("features.yaml").write_text(
        "sparse: {user: {}, item: {}}\nlabel: {click: {positive: ['1']}}\n"
    )
    assert run(["train", "a.yaml", "trainer.epochs=1"]) == 0
    words = (
        (Path("clicks.csv").read_text() + "\n").replace(",1\n", ",yes\n").replace(",0\n", ",no\n")
    )
    Path("words.csv").write_text(words)
    told = ["evaluate", "runs/clicks-1/model.bin", "--data", "words.csv"]
    for _ in range(2):  # features that were kept say so, too
        with pytest.warns(UserWarning, match="it has 'no', 'yes': all of them count as a no"):
            assert run(told) == 0
    Path("only_no.csv").write_text("user,item,click\nu1,i1,0\n")
    assert run([*told[:3], "only_no.csv"]) == 0  # a day without a click


def test_a_label_that_is_not_learnt_is_refused(capsys):
    Path("own.csv").write_text("user,label\n" + "\n".join(f"u{n % 3},v{n % 3}" for n in range(9)))
    assert run(["init", "table", "--data", "own.csv"]) == 2
    assert "the label label has 3 values, such as v0, v1, v2" in capsys.readouterr().err
    assert not Path("model_config_features.yaml").exists()
    assert run(["init", "images", "--data", ".", "--label", "x"]) == 2
    assert "--label=x would be ignored" in capsys.readouterr().err
