"""Several tasks on several ranks learn what one process learns."""

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.joint_runs import train_each
from tests.distributed.ranks import RankFailed, run_ranks

from deepseek.trainer import WEIGHTINGS

NAMES = [name for name in WEIGHTINGS.names() if name not in ("fixed", "constraint")]


def compare(expected, found, folder, names):
    for name in names:
        losses, norms, parts, val_loss = expected[name]
        assert found[0][name][0] == pytest.approx(losses, rel=1e-4), name
        assert found[0][name][1] == pytest.approx(norms, rel=1e-3), name
        for a, b in zip(parts, found[0][name][2], strict=True):
            assert b == pytest.approx(a, rel=1e-3), name
        assert found[0][name][3] == pytest.approx(val_loss, rel=1e-4), name
        assert all(other[name] == found[0][name] for other in found)
        one, many = (load_file(folder / run / name / "model.bin") for run in ("one", "run"))
        for tensor in one:
            torch.testing.assert_close(many[tensor], one[tensor], rtol=0, atol=2e-4)


@pytest.mark.parametrize("is_mixture", [False, pytest.param(True, marks=pytest.mark.long)])
def test_copies_learn_what_one_process_learns(is_mixture, tmp_path):
    expected = train_each(NAMES, tmp_path / "one", is_mixture)
    found = run_ranks(
        2, train_each, NAMES, tmp_path / "run", is_mixture, parallel="dp2",
        folder=tmp_path / "ranks",
    )  # fmt: skip
    compare(expected, found, tmp_path, NAMES)


def test_divided_weights_do_as_well_where_tasks_are_not_looked_at_apart(tmp_path):
    names = ["equal", "uncertainty", "dwa"]
    expected = train_each(names, tmp_path / "one", is_text=True)
    found = run_ranks(
        2, train_each, names, tmp_path / "run", is_text=True, parallel="fsdp2",
        folder=tmp_path / "ranks",
    )  # fmt: skip
    compare(expected, found, tmp_path, names)
    with pytest.raises(RankFailed, match="PCGrad, which looks at the tasks apart"):
        run_ranks(
            2, train_each, ["pcgrad"], tmp_path / "no", is_text=True, parallel="fsdp2",
            folder=tmp_path / "refused",
        )  # fmt: skip
