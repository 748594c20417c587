import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from deepseek.deploy.report import write_report
from deepseek.errors import DataError

SECTIONS = (
    "summary",
    "curves",
    "optimization",
    "confusion",
    "classes",
    "calibration",
    "samples",
    "performance",
    "events",
    "config",
    "environment",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def section(page: str, name: str) -> str:
    return page[page.index(f'<section id="{name}"') :].split("</section>")[0]


def test_a_full_run_leaves_no_section_out(run_dir):
    page = write_report(run_dir).read_text()
    for name in SECTIONS:
        assert "Left out" not in section(page, name), name
    assert not list(run_dir.glob(".report*"))


def test_hostile_names_stay_text(run_dir):
    page = write_report(run_dir).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert page.count("<script>") == 1


def test_nothing_is_loaded_from_elsewhere(run_dir):
    page = write_report(run_dir).read_text()
    assert not re.search(r'(?:src|href)=(?!"data:|"#)', page)
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    assert "@import" not in page


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "environment.json",
        "summary.json",
        "metrics.jsonl",
        "events.jsonl",
        "evaluation",
        "model.bin",
    ],
)
@pytest.mark.parametrize("damage", ["remove", "garble", "empty"])
def test_what_is_missing_or_damaged_leaves_only_its_section_out(run_dir, name, damage):
    path = run_dir / name
    targets = list(path.glob("*.*")) if path.is_dir() else [path]
    for target in targets:
        if damage == "remove":
            target.unlink()
        else:
            target.write_bytes(b"" if damage == "empty" else b"\xff\x00{[<")
    page = write_report(run_dir).read_text()
    assert all(f'<section id="{name}"' in page for name in SECTIONS)
    if name == "evaluation":
        assert "Left out" in section(page, "confusion")
        assert "Left out" in section(page, "samples")
    if name == "metrics.jsonl":
        assert "Left out" in section(page, "curves")


def test_a_run_that_has_only_begun_gives_a_report(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind":"train","step":1,"loss":2.5}\n{"ki')
    page = write_report(tmp_path).read_text()
    assert "unfinished" in page
    assert "1 unreadable (line 2)" in page
    assert "Left out" in section(page, "optimization")


def test_evaluations_within_an_epoch_and_at_its_end_are_one_line(tmp_path):
    rows = [
        {"kind": "eval", "step": 40, "val_loss": 3.0},
        {"kind": "epoch", "step": 60, "epoch": 1, "loss": 2.5, "val_loss": 2.0},
        {"kind": "eval", "step": 80, "val_loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = section(write_report(tmp_path).read_text(), "curves")
    line = re.search(r'"name":"validation".*?"x":(\[.*?\]),"y":(\[.*?\])', page)
    assert line is not None
    assert [json.loads(values) for values in line.groups()] == [["40", "60", "80"], ["3", "2", "1"]]


def test_unknown_kinds_and_extreme_values_are_drawn_or_left_out(tmp_path):
    rows = [
        {"kind": "probe", "step": 10 ** (at * 60), "dice": at, "odd<name": -1e308 * at}
        for at in range(6)
    ]
    rows += [{"kind": "epoch", "epoch": 1, "val_f1": 0.5}, {"kind": "train", "loss": float("inf")}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(tmp_path).read_text()
    assert "Dice" in section(page, "curves")
    assert "F1" in section(page, "curves")
    assert "odd<name" not in page


def test_many_classes_give_pairs_instead_of_a_matrix(run_dir):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(1500) * 0.01, 300).astype(np.float32)
    targets = rng.integers(-1, 1500, 300)
    path = run_dir / "evaluation/predictions.safetensors"
    save_file({"targets": targets, "probs": np.minimum(probs, 1)}, path)
    page = write_report(run_dir).read_text()
    assert '<table class="heat' not in page
    assert "most confused pairs stand for the matrix" in page
    assert "lowest F1 of 1,500" in page


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"targets": np.zeros(3)}, "not a classifier"),
        ({"targets": np.zeros(3), "probs": np.zeros((3, 2))}, "one label per sample"),
        ({"targets": np.array([-100]), "probs": np.ones((1, 2))}, "no validation sample"),
        ({"targets": np.array([0]), "probs": np.full((1, 2), np.nan)}, "the model diverged"),
    ],
)
def test_predictions_that_are_none_say_why(run_dir, tensors, reason):
    save_file(tensors, run_dir / "evaluation/predictions.safetensors")
    assert reason in section(write_report(run_dir).read_text(), "calibration")


def test_pictures_outside_the_evaluation_folder_are_not_embedded(run_dir):
    Image.new("RGB", (8, 8)).save(run_dir / "secret.png")
    rows = [
        {"file": name, "index": 1, "target": "a", "predicted": "b", "prob": None, "loss": "x"}
        for name in ("../secret.png", str(run_dir / "secret.png"), "\0", "", "samples")
    ]
    (run_dir / "evaluation/samples.json").write_text(json.dumps({"worst": rows, "best": 3}))
    page = write_report(run_dir).read_text()
    assert "data:image" not in page
    assert page.count('class="no-picture"') == 5


def test_a_folder_without_a_run_is_an_error_with_a_fix(tmp_path):
    with pytest.raises(DataError, match=r"holds none of config\.yaml") as caught:
        write_report(tmp_path)
    assert caught.value.fix
    with pytest.raises(DataError, match="is not a folder"):
        write_report(tmp_path / "absent")


def test_a_long_run_gives_a_small_page(tmp_path):
    line = '{"kind":"train","step":%d,"loss":%f,"lr":0.001,"grad_norm":%f,"samples_per_s":2400.5}\n'
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(line % (step, 1 / step, step % 97) for step in range(1, 200_001))
    assert write_report(tmp_path).stat().st_size < 500_000


def test_the_report_does_not_import_torch():
    code = "import sys, deepseek.deploy.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def browse(page, profile, *arguments: str) -> str:
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
    )
    command = [str(CHROMIUM), *flags, *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    return done.stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path")
def test_a_browser_draws_every_section_without_errors(run_dir, tmp_path):
    page = write_report(run_dir)
    dom = browse(page, tmp_path / "profile", "--dump-dom")
    assert 'data-report="ready"' in dom
    for name in SECTIONS:
        assert f'<section id="{name}"' in dom
    assert dom.count("<svg") >= 9
    assert base64.b64encode(b"\x89PNG\r\n").decode()[:6] in dom
    shot = tmp_path / "shot.png"
    browse(page, tmp_path / "profile", "--window-size=1200,1600", f"--screenshot={shot}")
    with Image.open(shot) as picture:
        colors = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colors) > 50
