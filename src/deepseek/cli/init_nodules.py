"""The configuration that `deepseek init nodules` writes: chosen by data and machine.

Imported by the command when it runs, never at start-up: it brings torch.
"""

import json
from math import ceil
from pathlib import Path

from deepseek.cli.init_volumes import STEPS_PER_EPOCH, VAL_SHARE, filled_in
from deepseek.medical.configuration import Means
from deepseek.medical.detector_configuration import NoduleSettings, configure_detector


def fill_nodules(text: str, data: Path, memory: str | None) -> tuple[str, NoduleSettings]:
    """Return a template with what was chosen for the nodules at `data`, and the choice.

    Args:
        text: of the template.
        data: cubes, or scans.
        memory: to keep to, such as `8GiB`; `None`: what this machine has.

    Raises:
        DataError: the data cannot be used.
        ConfigError: nothing fits into memory.
    """
    chosen = configure_detector(data, means=Means.here(memory=memory))
    trained = max(1, round((1 - VAL_SHARE) * chosen.num_nodules))
    words = {
        "FOUND": chosen.found,
        "PATCH_VOXELS": "x".join([str(chosen.patch)] * 3),
        "CROPS_PER_CUBE": str(ceil(STEPS_PER_EPOCH * chosen.batch_size / trained)),
        "MODEL_ARGS": json.dumps(chosen.model_args),
    }
    return filled_in(text, words, chosen), chosen
