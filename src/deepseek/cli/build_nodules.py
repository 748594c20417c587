"""Settings of nodule cubes -> data sets. Imported by commands when they run: it brings torch."""

from dataclasses import replace

import numpy as np

from deepseek.config import NoduleDataConfig
from deepseek.datasets import DataSpec
from deepseek.medical.nodule_cubes import NoduleCubes
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
    """Return all cubes at `path`, cut as a detector or a segmenter was trained on such."""
    patch = "x".join(str(size) for size in spec.fields["inputs"].shape[1:])
    targets = "centers" if spec.task == "detection" else "masks"
    scores = [name.removeprefix(SCORE) for name in spec.fields if name.startswith(SCORE)]
    cubes = NoduleCubes.open(path)
    unknown = dict.fromkeys(scores, np.full(len(cubes), np.nan))
    cubes = replace(cubes, scores={**unknown, **cubes.scores})
    dataset = NoduleDataset(cubes, transform=f"patch_{patch}", targets=targets, scores=scores)
    return dataset.evaluation_view()
