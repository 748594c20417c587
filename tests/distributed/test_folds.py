"""Folds on several ranks: the first one writes, all return the same figures."""

import json
import os
import sys

from safetensors.torch import load_file
from tests.distributed.ranks import make_data, make_model, run_ranks
from torch.utils.data import Subset

from deepseek.trainer import Trainer
from deepseek.trainer.patient_folds import cross_validate_patients


class Patients:
    def split_fold(self, fold, num_folds):
        data = make_data("vit", 30)
        tested = range(fold, 30, num_folds)
        return Subset(data, [n for n in range(30) if n not in tested]), Subset(data, tested)


def cross_validate(folder):
    """Return the metrics, and the names of the files that this rank has put in place."""
    written = []

    def note(event, arguments):
        if event == "os.rename":
            written.append(os.path.basename(arguments[1]))

    sys.addaudithook(note)

    def make_trainer(train, held_back, place):
        return Trainer(
            make_model("vit"), train, held_back, run_dir=place, max_steps=2, batch_size=8,
            loggers=[], num_workers=0, device="cpu", predict_memory=False, precision="fp32",
        )  # fmt: skip

    return cross_validate_patients(make_trainer, Patients(), 2, folder), written


def test_one_rank_writes_and_all_know_the_figures(tmp_path):
    folder = tmp_path / "cv"
    (first, written), (second, others) = run_ranks(
        2, cross_validate, folder, folder=tmp_path / "ranks"
    )
    assert written.count("fold.safetensors") == written.count("fold.json") == 2
    assert others == []
    known = [json.loads((folder / f"fold_{fold}/fold.json").read_text()) for fold in range(2)]
    assert [first[fold] for fold in range(2)] == [second[fold] for fold in range(2)] == known
    assert load_file(folder / "fold_1/fold.safetensors")["index"].tolist() == list(range(15))
    assert json.loads((folder / "folds.json").read_text())["run"] == [0, 1]
