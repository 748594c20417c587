"""Whose volumes are whose, so that no patient is on both sides of a split."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from deepseek.datasets.volume_file import stem_of
from deepseek.datasets.volume_source import VolumePair, VolumeSource
from deepseek.errors import ConfigError, DataError
from deepseek.registry import Registry

SplitBy = Literal["auto", "patient", "volume"]
PATIENT_KEYS: Registry[Callable[[Path], str | None]] = Registry(
    "patient key", {"dicom": "deepseek.medical.scans:patient_key_of"}
)
"""From the folder of a series to what tells its patient from others, `None` where it is not said"""
_SUBJECT = re.compile(r"sub-[^_]+")
_NUMBERED = re.compile(r"([^_]*\d)_.")
MAX_VOLUMES = 10
"""Of a patient, on average; names with more in common tell centres or sequences apart."""


def group_volumes(source: VolumeSource, split_by: SplitBy = "auto") -> list[str]:
    """Return of each volume what the volumes of its patient have in common.

    Patients are, whichever is there first: those of the column `patient` of an index file; of DICOM
    those of PatientID, unless it is missing or the same for all; and of the names of the files
    `sub-NAME_...` (BIDS), or what is before the first `_` where that ends in a digit in all names
    (`patient001_frame01`, but not `hippocampus_001`, whose volumes are each on its own).

    Args:
        source: the volumes.
        split_by: "patient": patients must be known; "volume": each volume is on its own.

    Raises:
        ConfigError: `split_by` is another word.
        DataError: patients must be known and are not.
        MissingExtraError: there is DICOM, and pydicom is not installed.
    """
    if split_by not in ("auto", "patient", "volume"):
        raise ConfigError(f"split_by={split_by!r}", fix="give auto, patient or volume")
    alone = [f"volume {number}" for number in range(len(source.pairs))]
    if split_by == "volume":
        return alone
    found = _listed(source.pairs) or _of_headers(source.pairs) or _of_names(source.pairs)
    if found is None and split_by == "patient":
        raise DataError(
            f"{source.path}: neither a column, DICOM headers nor names say whose volumes these are",
            fix="list the volumes in a CSV file with the columns image, label and patient",
        )
    return found or alone


def _listed(pairs: Sequence[VolumePair]) -> list[str] | None:
    return None if pairs[0].patient is None else [str(pair.patient) for pair in pairs]


def _of_headers(pairs: Sequence[VolumePair]) -> list[str] | None:
    if not any(pair.image.is_dir() for pair in pairs):
        return None
    read = PATIENT_KEYS.get("dicom")
    keys = [read(pair.image) if pair.image.is_dir() else None for pair in pairs]
    if len(set(keys)) == 1:
        return None
    return [key or str(pair.image) for key, pair in zip(keys, pairs, strict=True)]


def _of_names(pairs: Sequence[VolumePair]) -> list[str] | None:
    names = [stem_of(pair.image) for pair in pairs]
    for pattern, group in ((_SUBJECT, 0), (_NUMBERED, 1)):
        found = [match[group] for name in names if (match := pattern.match(name))]
        num_patients = len(set(found))
        if len(found) == len(names) <= MAX_VOLUMES * num_patients and num_patients > 1:
            return found
    return None
