"""DICOM slices of a phantom, written on the spot."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SPACING_MM = (2.5, 0.8, 0.7)
SECRET = "Doe^Jane"
PADDING = -2000
"""Stored where a scanner did not see, as LIDC-IDRI has it: the least number is no air."""


def phantom(shape=(8, 24, 20)) -> np.ndarray:
    """Air around a box of tissue with a lung in it and a bone, in HU, int16 (D, H, W).

    What was not seen, a corner, is -1024.
    """
    voxels = np.full(shape, -1000, np.int16)
    d, h, w = shape
    voxels[:, 3 : h - 3, 3 : w - 3] = 40
    voxels[:, 7 : h - 7, 6 : w - 6] = -850
    voxels[d // 2, h // 2, w // 2] = 900
    voxels[:, :2, :2] = -1024
    return voxels


def stored(voxels: np.ndarray) -> np.ndarray:
    """Return HU as a scanner stores them: from 0 on, and padding."""
    return np.where(voxels <= -1024, PADDING, voxels.astype(np.int16) + 1024).astype(np.int16)


def write_series(
    folder: Path, voxels: np.ndarray | None = None, change: Callable | None = None
) -> Path:
    """Write a slice a file, in an order that is not that of their names.

    Args:
        folder: is made.
        voxels: HU, (D, H, W).
        change: takes number and header of each slice before it is written; `False` leaves it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    voxels = phantom() if voxels is None else voxels
    order = np.random.default_rng(0).permutation(len(voxels))
    for number in range(len(voxels)):
        header = make_slice(voxels[number], number)
        if change is not None and change(number, header) is False:
            continue
        header.save_as(folder / f"{order[number]:03}.dcm", enforce_file_format=True)
    return folder


def make_slice(pixels: np.ndarray, number: int, tilt: Sequence[float] = (1, 0, 0, 0, 1, 0)):
    """Return a CT slice with what identifies a patient in it."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{number}"
    header.PatientName, header.PatientID, header.PatientBirthDate = SECRET, SECRET, "19700101"
    header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.3.5", "1.2.3.6"
    header.Modality, header.InstanceNumber = "CT", number + 1
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = 1
    header.PixelSpacing, header.SliceThickness = [*SPACING_MM[1:]], SPACING_MM[0]
    header.ImageOrientationPatient = list(tilt)
    header.ImagePositionPatient = [-10, -20, -30 + SPACING_MM[0] * number]
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelPaddingValue = PADDING
    header.PixelData = stored(pixels).tobytes()
    return header
