"""Phantoms on disk, as scanners and challenges write them: DICOM, NIfTI, MetaImage.

```
FOLDER/images/NAME              a folder of slices; or NAME.nii.gz, or NAME.mhd with NAME.raw
FOLDER/labels/NAME.npz          beside DICOM; or NAME.nii.gz, or NAME.mhd: 1 where a nodule is
FOLDER/annotations.csv          seriesuid, coordX, coordY, coordZ, diameter_mm, as LUNA16 has it
```
`VolumeDataset` reads the folder as it is. With `luna16` scans lie in `subset0/`, labels in `seg/`.
"""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.errors import ConfigError
from deepseek.medical.phantoms import Phantom
from deepseek.registry import did_you_mean, import_extra

FORMATS = ("dicom", "nifti", "metaimage", "luna16")
COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
_ELEMENTS = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}


def write_phantom(
    phantom: Phantom, folder: str | os.PathLike, name: str, format: str = "dicom"
) -> Path:
    """Write a scan with its labels, add its nodules to `annotations.csv`, and return the scan.

    Args:
        phantom: what `make_phantom` returned.
        folder: is made; may hold others.
        name: of the scan: letters, digits, `-`, `_` and `.`.
        format: `dicom`, `nifti`, `metaimage` or `luna16`.

    Raises:
        ConfigError: the name or the format is none, or the scan is there already.
        MissingExtraError: pydicom or nibabel is missing.
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format!r} is unknown", fix=did_you_mean(format, FORMATS))
    if not name or name[0] == "." or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(f"name={name!r} is no name of a file", fix="use letters, digits, - _ .")
    root = Path(folder)
    places = ("subset0", "seg") if format == "luna16" else ("images", "labels")
    images, labels = (root / place for place in places)
    suffix = {"dicom": "", "nifti": ".nii.gz"}.get(format, ".mhd")
    image = images / f"{name}{suffix}"
    if image.exists():
        raise ConfigError(f"{image} is there already", fix="give another name or folder")
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    affine, voxels = phantom.volume.affine, phantom.volume.voxels[0]
    if format == "dicom":
        _write_series(image, voxels, phantom)
        np.savez_compressed(labels / f"{name}.npz", voxels=phantom.labels, affine=affine)
    else:
        write = _write_nifti if format == "nifti" else _write_metaimage
        write(image, voxels, affine)
        write(labels / image.name, phantom.labels, affine)
    _add_findings(root / "annotations.csv", name, phantom)
    return image


def _add_findings(path: Path, name: str, phantom: Phantom) -> None:
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if is_new:
            rows.writerow(COLUMNS)
        found = phantom.findings
        for center, size in zip(found.centers_mm, found.diameters_mm, strict=True):
            rows.writerow([name, *(f"{number:.3f}" for number in (*center, size))])


def _write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    nibabel = import_extra("nibabel", "medical")
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(voxels.T, to_ras)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _write_metaimage(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": " ".join(f"{number:g}" for number in affine[:3, 3]),
        "ElementSpacing": " ".join(f"{step:g}" for step in spacing),
        "DimSize": " ".join(map(str, voxels.shape[::-1])),
        "ElementType": _ELEMENTS[str(voxels.dtype)],
        "ElementDataFile": f"{path.stem}.raw",
    }
    voxels.astype(voxels.dtype.newbyteorder("<")).tofile(path.parent / f"{path.stem}.raw")
    path.write_text("".join(f"{key} = {value}\n" for key, value in fields.items()), "utf-8")


def _write_series(folder: Path, voxels: np.ndarray, phantom: Phantom) -> None:
    pydicom = import_extra("pydicom", "medical")
    folder.mkdir()
    # numbers of its own for each phantom; the same phantom, the same numbers
    source = [str(phantom.findings.centers_mm.tolist()), folder.name]
    uids = {
        name: pydicom.uid.generate_uid(entropy_srcs=[name, *source])
        for name in ("study", "series", "frame")
    }
    for number, slice_ in enumerate(voxels):
        uid = pydicom.uid.generate_uid(entropy_srcs=[str(number), *source])
        header = _make_slice(pydicom, uid, uids, slice_, number, phantom)
        header.PatientID = f"PHANTOM-{folder.name}"[:64]  # patients are told apart by it
        header.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)


def _make_slice(
    pydicom: Any, uid: str, uids: dict[str, str], pixels: np.ndarray, number: int, phantom: Phantom
) -> Any:
    dataset = import_extra("pydicom.dataset", "medical")
    meta = dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    depth, height, width = phantom.volume.spacing_mm
    header = dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = pydicom.uid.CTImageStorage, uid
    header.PatientName = "PHANTOM"
    header.StudyInstanceUID, header.SeriesInstanceUID = uids["study"], uids["series"]
    header.FrameOfReferenceUID = uids["frame"]
    # nobody's, and there: what is derived from a series, such as a segmentation, carries them on
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                 "AccessionNumber", "ReferringPhysicianName", "Manufacturer"):  # fmt: skip
        setattr(header, name, "")
    header.SeriesNumber = 1
    header.Modality, header.InstanceNumber = "CT", number + 1
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = 1
    header.PixelSpacing, header.SliceThickness = _decimals([height, width]), _decimals([depth])[0]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.ImagePositionPatient = _decimals(phantom.volume.to_mm(np.array([[number, 0, 0]]))[0])
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = 1, -1024, "HU"
    header.PixelData = (pixels.astype(np.int16) + 1024).astype("<i2").tobytes()
    return header


def _decimals(numbers) -> list[str]:
    """Return numbers as DICOM's decimal strings: 16 characters at the most."""
    return [f"{float(number):.8g}" for number in numbers]
