"""Settings of nodule cubes -> data sets. Imported by commands when they run: it brings torch."""

from dataclasses import replace

import numpy as np

from deepseek.config import NoduleDataConfig
from deepseek.datasets import DataSpec
from deepseek.datasets.volume_transforms import VolumeTransform, parse_volume_transform
from deepseek.errors import DataError
from deepseek.medical.nodule_crops import CUBE_VOXELS, SPACING_MM
from deepseek.medical.nodule_cubes import NoduleCubes, holds_scans
from deepseek.medical.nodule_dataset import SCORE, NoduleDataset


def build_nodules(
    config: NoduleDataConfig, seed: int
) -> tuple[NoduleDataset, NoduleDataset | None]:
    """Return the training data and the validation data, `None` if there is to be none.

    Raises:
        ConfigError: there is no such fold.
    """
    dataset = NoduleDataset(
        NoduleCubes.open(
            config.train,
            cube_voxels=config.cube_voxels,
            negatives_per_scan=config.negatives_per_scan,
            cache=config.cache,
            max_voxels=config.max_voxels,
        ),
        transform=config.transform,
        targets=config.targets,
        negative_share=config.negative_share,
        crops_per_cube=config.crops_per_cube,
        scores=config.scores,
        seed=seed,
    )
    if config.fold is None:
        return dataset, None
    return dataset.split_fold(config.fold, config.num_folds)


def build_nodule_evaluation(spec: DataSpec, path: str) -> NoduleDataset:
    """Return all cubes at `path`, cut as a detector or a segmenter was trained on such.

    Raises:
        DataError: the model learnt from something else than these cubes, or than any.
    """
    sizes = spec.fields["inputs"].shape[1:]
    cubes = _open_cubes(path, parse_volume_transform(spec.transform or ""), max(sizes))
    patch = "x".join(str(size) for size in sizes)
    targets = "centers" if spec.task == "detection" else "masks"
    scores = [name.removeprefix(SCORE) for name in spec.fields if name.startswith(SCORE)]
    unknown = dict.fromkeys(scores, np.full(len(cubes), np.nan))
    cubes = replace(cubes, scores={**unknown, **cubes.scores})
    dataset = NoduleDataset(cubes, transform=f"patch_{patch}", targets=targets, scores=scores)
    return dataset.evaluation_view()


def _open_cubes(path: str, learnt: VolumeTransform, patch_voxels: int) -> NoduleCubes:
    """Return cubes with the window that a model learnt, not smaller than its patch."""
    of_cubes = (SPACING_MM, SPACING_MM, SPACING_MM)
    if learnt.window is None or learnt.is_zscored or learnt.spacing_mm not in (None, of_cubes):
        raise DataError(
            f"{path}: cubes of nodules have {SPACING_MM:g} mm and a window of HU, and the model"
            f" learnt {learnt.text or 'voxels as they are'}",
            fix="evaluate it on whole volumes with labels",
        )
    if holds_scans(path):
        cube_voxels = max(CUBE_VOXELS, patch_voxels)
        return NoduleCubes.from_scans(path, cube_voxels=cube_voxels, window_hu=learnt.window)
    cubes = NoduleCubes.open(path)
    if not np.allclose(cubes.window_hu, learnt.window):  # the text has six digits
        low, high = cubes.window_hu
        raise DataError(
            f"{path} has cubes with window_hu {low:g} to {high:g}, and the model learnt"
            f" {learnt.window[0]:g} to {learnt.window[1]:g}",
            fix="give the scans, which are cut anew, or cubes with the window of the model",
        )
    return cubes
