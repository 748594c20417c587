"""Settings of nodule cubes -> data sets. Imported by commands when they run: it brings torch."""

from dataclasses import replace

import numpy as np

from deepseek.config import NoduleDataConfig
from deepseek.datasets import DataSpec
from deepseek.medical.nodule_cubes import NoduleCubes, holds_scans, read_nodule_cubes
from deepseek.medical.nodule_dataset import SCORE, NoduleDataset


def build_nodules(
    config: NoduleDataConfig, seed: int
) -> tuple[NoduleDataset, NoduleDataset | None]:
    """Return the training data and the validation data, `None` if there is to be none.

    Raises:
        ConfigError: there is no such fold.
    """
    cubes = config.train
    if holds_scans(cubes):
        cubes = NoduleCubes.from_scans(
            cubes, cube_voxels=config.cube_voxels, cache=config.cache,
            negatives_per_scan=config.negatives_per_scan, max_voxels=config.max_voxels,
        )  # fmt: skip
    dataset = NoduleDataset(
        cubes,
        transform=config.transform,
        targets=config.targets,
        negative_share=config.negative_share,
        crops_per_cube=config.crops_per_cube,
        scores=config.scores,
        seed=seed,
        max_voxels=config.max_voxels,
    )
    if config.fold is None:
        return dataset, None
    return dataset.split_fold(config.fold, config.num_folds)


def build_nodule_evaluation(spec: DataSpec, path: str) -> NoduleDataset:
    """Return all cubes at `path`, cut as a detector or a segmenter was trained on such."""
    patch = "x".join(str(size) for size in spec.fields["inputs"].shape[1:])
    targets = "centers" if spec.task == "detection" else "masks"
    scores = [name.removeprefix(SCORE) for name in spec.fields if name.startswith(SCORE)]
    cubes = NoduleCubes.from_scans(path) if holds_scans(path) else read_nodule_cubes(path)
    unknown = dict.fromkeys(scores, np.full(len(cubes), np.nan))
    cubes = replace(cubes, scores={**unknown, **cubes.scores})
    dataset = NoduleDataset(cubes, transform=f"patch_{patch}", targets=targets, scores=scores)
    return dataset.evaluation_view()
