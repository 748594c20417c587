"""DICOM segmentations: the classes of the voxels of a series, for viewers and archives.

Written by highdicom (Bridge et al. 2022, doi 10.1007/s10278-022-00683-y). Standard: DICOM PS3.3,
A.51. A segmentation carries patient and study of its series, as it must.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.datasets.volume import Volume
from deepseek.errors import ConfigError, DataError
from deepseek.medical.dicom_series import read_headers
from deepseek.registry import did_you_mean, import_extra
from deepseek.version import __version__
from deepseek.whole_file import replacing

SERIES_NUMBER = 900
MAX_NAME = 64
"""Letters of a label in DICOM."""
ABNORMAL = (
    "nodule",
    "lesion",
    "tumor",
    "tumour",
    "cancer",
    "carcinoma",
    "metastasis",
)
"""Parts of the name of a class by which it is no part of healthy anatomy."""
ABNORMAL_WORDS = ("mass", "masses", "cyst", "cysts")
"""Whole words that say so as well: a masseter and a cystic duct are anatomy."""


def write_dicom_segmentation(
    path: Path,
    labels: Volume,
    series: Path,
    class_names: Sequence[str],
    abnormal: Sequence[str] | None = None,
) -> None:
    """Write the classes but the first of the voxels of a series, and read them back.

    Args:
        path: of the file, which appears in one atomic step.
        labels: (1, D, H, W) on the voxels of the series, as `read_volume` has them.
        series: the folder of its slices.
        class_names: of class 0, 1, ...
        abnormal: names of the classes whose category is "morphologically abnormal structure"; of
            the others it is "anatomical structure". By default those that `ABNORMAL` or
            `ABNORMAL_WORDS` tell.

    Raises:
        ConfigError: `abnormal` names no class.
        DataError: the labels are of another series, its headers lack what a segmentation needs, or
            what is read back is not what was written.
        MissingExtraError: highdicom is not installed.
    """
    highdicom = import_extra("highdicom", "medical")
    abnormal = _find_abnormal(class_names) if abnormal is None else abnormal
    check_abnormal(abnormal, class_names)
    headers = read_headers(series)
    size = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
    if labels.voxels.shape != (1, *size):
        raise DataError(
            f"labels have the shape {labels.voxels.shape}, the series of {series} {(1, *size)}",
            fix="give the labels of this series, on its own voxels",
        )
    found = np.ascontiguousarray(labels.voxels[0])
    with replacing(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote headers
            try:
                _make(highdicom, headers, found, class_names, abnormal).save_as(temporary)
            except (AttributeError, ValueError, TypeError, KeyError) as error:
                # the message may quote a header: its kind alone
                raise DataError(
                    f"the headers of {series} lack what a DICOM segmentation needs"
                    f" ({type(error).__name__})",
                    fix="take the mask in NIfTI, or export the series anew with its study",
                ) from None
        back = read_dicom_segmentation(temporary, series)
        if num_other := int((back != found).sum()):
            raise DataError(
                f"{path}: {num_other:,} voxels are not read back as they were written",
                fix="take the mask in NIfTI, and report this",
            )


def read_dicom_segmentation(path: Path, series: Path) -> np.ndarray:
    """Return the class of each voxel of a series, uint8 or uint16 (D, H, W), 0 where there is none.

    Args:
        path: of the segmentation.
        series: the folder of the slices that it is of.

    Raises:
        DataError: it is no segmentation of this series.
        MissingExtraError: highdicom is not installed.
    """
    highdicom = import_extra("highdicom", "medical")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            segmentation = highdicom.seg.segread(path)
            return segmentation.get_pixels_by_source_instance(
                [header.SOPInstanceUID for header in read_headers(series)],
                combine_segments=True,
                ignore_spatial_locations=True,
                assert_missing_frames_are_empty=True,
            )
        except DataError:
            raise
        except Exception as error:
            kind = type(error).__name__
    raise DataError(
        f"{path} is no DICOM segmentation of the series in {series} ({kind})",
        fix="give the series that it was made of",
    )


def check_abnormal(abnormal: Sequence[str], class_names: Sequence[str]) -> None:
    """Refuse names that are of no class but the first.

    Raises:
        ConfigError: one is.
    """
    for name in abnormal:
        if name not in class_names[1:]:
            raise ConfigError(
                f"abnormal={name!r} is none of the classes",
                fix=did_you_mean(name, class_names[1:]),
            )


def _find_abnormal(class_names: Sequence[str]) -> list[str]:
    return [name for name in class_names[1:] if _is_abnormal(name)]


def _is_abnormal(name: str) -> bool:
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
    return not words.isdisjoint(ABNORMAL_WORDS) or any(part in name.lower() for part in ABNORMAL)


def _make(
    highdicom: Any, headers: Sequence, labels: np.ndarray, names: Sequence[str],
    abnormal: Sequence[str],
) -> Any:  # fmt: skip
    codes = import_extra("pydicom.sr.codedict", "medical").codes
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="deepseek", version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    concept = highdicom.sr.CodedConcept
    categories = {True: codes.SCT.MorphologicallyAbnormalStructure,
                  False: codes.SCT.AnatomicalStructure}  # fmt: skip
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:MAX_NAME],
            segmented_property_category=categories[name in abnormal],
            # what a class is called is the user's choice: no code of a standard says it
            segmented_property_type=concept(f"CLASS{number}", "99DEEPSEEK", name[:MAX_NAME]),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names)
        if number > 0
    ]
    return highdicom.seg.Segmentation(
        source_images=headers, pixel_array=labels, segmentation_type="BINARY",
        segment_descriptions=segments, series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER, sop_instance_uid=highdicom.UID(), instance_number=1,
        manufacturer="deepseek", manufacturer_model_name="deepseek",
        software_versions=__version__, device_serial_number="1",
    )  # fmt: skip
