"""The configuration that `deepseek init volumes` writes: chosen by data and machine.

Imported by the command when it runs, never at start-up: it brings torch.
"""

import json
import re
from collections.abc import Mapping
from math import ceil
from pathlib import Path

from deepseek.medical.configuration import Means, VolumeSettings, configure
from deepseek.medical.detector_configuration import NoduleSettings

STEPS_PER_EPOCH = 50
VAL_SHARE = 0.2


def fill_volumes(text: str, data: Path, memory: str | None) -> tuple[str, VolumeSettings]:
    """Return a template with what was chosen for the volumes at `data`, and the choice.

    Args:
        text: of the template.
        data: a folder or an index of volumes with labels.
        memory: to keep to, such as `8GiB`; `None`: what this machine has.

    Raises:
        DataError: a volume cannot be used.
        ConfigError: nothing fits into memory.
    """
    chosen = configure(data, means=Means.here(memory=memory))
    found = chosen.fingerprint
    trained = max(1, round((1 - VAL_SHARE) * found.num_volumes))
    words = {
        "FINGERPRINT": "\n".join(f"#   {line}" for line in found.describe().splitlines()),
        "CLASS_NAMES": json.dumps(list(found.class_names), ensure_ascii=False),
        "TRANSFORM": chosen.transform,
        "PATCHES_PER_VOLUME": str(ceil(STEPS_PER_EPOCH * chosen.batch_size / trained)),
        "MODEL_ARGS": json.dumps(chosen.model_args),
    }
    return filled_in(text, words, chosen), chosen


def filled_in(text: str, words: Mapping[str, str], chosen: VolumeSettings | NoduleSettings) -> str:
    """Return a template with words of its own, and with batch, cost and reasons of a choice."""
    reasons = {f"{name.upper()}_REASON": why for name, why in chosen.reasons.items()}
    cost = f"{chosen.describe_cost()}, {chosen.reasons['cost']}"
    words = {**words, "BATCH_SIZE": str(chosen.batch_size), "COST": cost, **reasons}
    # in one pass: a word may be in the name of a class, COST in COSTAL_CARTILAGE
    return re.sub("|".join(words), lambda match: words[match[0]], text)
