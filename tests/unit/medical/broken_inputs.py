"""Scans, masks and lists that must be refused, each with the reason that is given.

One table, `BROKEN_INPUTS`: how each is made in a folder, what is said of it, and what reads it.
"""

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deepseek.datasets import VolumeDataset, read_volume
from deepseek.medical import find_scans
from deepseek.medical.luna16 import read_findings

from ..datasets.broken_files import DAMAGED_NIFTI, WRONG_METAIMAGE
from ..datasets.test_volume_dataset import BROKEN_SETS, damage
from ..datasets.volumes import draw, write_metaimage, write_nifti, write_pairs
from .slices import write_series
from .test_luna16 import HEADER, WRONG_LISTS


@dataclass(frozen=True)
class Broken:
    """An input that is refused.

    Attributes:
        make: it in a folder, and return its path.
        message: a regular expression of what is said.
        read: what refuses it.
    """

    make: Callable[[Path], Path]
    message: str
    read: Callable[[Path], object] = read_volume


def setting(**values):
    """Change headers of slice 3."""

    def change(number, header):
        if number == 3:
            for name, value in values.items():
                setattr(header, name, value)

    return change


def everywhere(**values):
    def change(_, header):
        for name, value in values.items():
            setattr(header, name, value)

    return change


def without(*names, only=None):
    def change(number, header):
        for name in names:
            if only is None or number == only:
                delattr(header, name)

    return change


def leave_out(*numbers):
    return lambda number, header: number not in numbers


def place(position):
    def change(number, header):
        header.ImagePositionPatient = [float(x) for x in position(number)]

    return change


def frames(number, header):
    header.NumberOfFrames = 8
    del header.ImagePositionPatient


def both(*changes):
    """Make several changes; a slice that one of them leaves out is left out."""

    def change(number, header):
        return all([each(number, header) is not False for each in changes])

    return change


def too_dense(number, header):
    pixels = np.frombuffer(header.PixelData, np.int16).copy()
    pixels[:20] = 20_000
    header.PixelData = pixels.tobytes()


def two_kernels(number, header):
    header.ConvolutionKernel = "B70f" if number == 3 else "B30f"


def deflated(_, header):
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    header.private_block(0x0099, "BOMB", create=True).add_new(0, "OB", bytes(1 << 20))


def eight_bits(number, header):
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.PixelRepresentation = 0
    del header.PixelPaddingValue
    header.PixelData = bytes(len(header.PixelData) // 2)


BROKEN_SERIES = {
    "one slice missing": (
        leave_out(4),
        r"1 slices of .* are missing, such as between -22\.5 and -17\.5 mm \(\d+\.dcm, \d+\.dcm\)",
    ),
    "several slices missing": (leave_out(2, 3, 5), "3 slices of .* are missing"),
    "a slice twice": (
        setting(ImagePositionPatient=[-10, -20, -25]),
        r"1 slices of .* are there twice, .* at -25 mm",
    ),
    "mixed spacing": (
        place(lambda n: (0, 0, 2.5 * n if n < 4 else 10 + 1.7 * (n - 4))),
        r"slices of .* are 1\.7 to 2\.5 mm apart: their spacing is mixed",
    ),
    "a tilted gantry": (
        place(lambda n: (0, 1.0 * n, 2.5 * n)),
        r"shifted beside each other by up to 7\.0 mm: the gantry was tilted",
    ),
    "all slices at one place": (place(lambda n: (0, 0, 0)), "7 slices of .* are there twice"),
    "two series": (setting(SeriesInstanceUID="9.9"), "holds 2 series, of 7, 1 slices"),
    "two patients": (setting(PatientID="other"), "holds 2 patients, of 7, 1 slices"),
    "two frames of reference": (setting(FrameOfReferenceUID="9"), "holds 2 frames of reference"),
    "another pixel spacing": (
        setting(PixelSpacing=[0.9, 0.7]),
        r"differ in pixel spacing: \(0\.\d, 0\.7\) of \d+\.dcm, \(0\.\d, 0\.7\) of",
    ),
    "another orientation": (
        setting(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        "differ in orientation",
    ),
    "another size": (
        setting(Rows=12, PixelData=b"\0" * 480),
        r"differ in size: \(\d+, 20\) of",
    ),
    "a colour picture": (setting(SamplesPerPixel=3), "3 samples a pixel: it is a picture"),
    "inverted grey": (
        setting(PhotometricInterpretation="MONOCHROME1"),
        "stored as MONOCHROME1, not MONOCHROME2",
    ),
    "no position": (without("ImagePositionPatient", only=3), "lacks ImagePositionPatient"),
    "no pixel spacing": (without("PixelSpacing"), "lacks PixelSpacing: its place in the patient"),
    "no size": (without("Rows", only=2), "lacks the size of its image: it is truncated"),
    "spacing 0": (everywhere(PixelSpacing=[0, 0]), "not the numbers they should be"),
    "two numbers of position": (
        setting(ImagePositionPatient=[1, 2]),
        "2 of ImagePositionPatient, 6 of .*, not 2, 3 and 6",
    ),
    "no right angle": (
        everywhere(ImageOrientationPatient=[1, 0, 0, 0.7071, 0.7071, 0]),
        "no right angle",
    ),
    "no rescale": (without("RescaleSlope"), "CT without RescaleSlope and RescaleIntercept"),
    "slope 0": (setting(RescaleSlope=0), "has RescaleSlope=0"),
    "intercept forgotten": (
        everywhere(RescaleIntercept=0),
        r"is CT from -2000 to 1924 HU after rescale; without padding 0\.0% of it is air",
    ),
    "intercept of twice": (
        everywhere(RescaleIntercept=-2024),
        r"is CT from -4024 to -100 HU after rescale; .* \(about -1000\), 0\.1% tissue",
    ),
    "slope of nearly two": (everywhere(RescaleSlope=1.9), r"of what is denser than lung \d\.\d%"),
    "slope of another unit": (
        everywhere(RescaleSlope=1000),
        "is CT with RescaleSlope=1000, and scanners write 1",
    ),
    "slope of a half": (everywhere(RescaleSlope=0.5), r"is CT with RescaleSlope=0\.5, and"),
    "a rescale of its own": (
        setting(RescaleIntercept=-1000),
        r"differ in RescaleSlope and RescaleIntercept \(1 and -1024 in 7, 1 and -1000 in 1 slices",
    ),
    "a scale of its own": (setting(RescaleSlope=1.2), "CT has one scale"),
    "too dense": (too_dense, r"is CT of which \d+\.\d% is above 4000 HU after rescale"),
    "every second slice left out": (
        leave_out(1, 3, 5, 7),
        r"are 5 mm apart and 2\.5 mm thick: about 1 are missing between every two",
    ),
    "every third slice there": (leave_out(1, 2, 4, 5, 7), "about 2 are missing between every two"),
    "every second of overlapping slices left out": (
        both(leave_out(1, 3, 5, 7), everywhere(SliceThickness=5)),
        "3 slices of .* are missing: InstanceNumber goes from 1 to 7 in steps of 2",
    ),
    "a copy at another place": (
        setting(SOPInstanceUID="1.2.3.4.1"),
        r"are copies of one: \d+\.dcm and \d+\.dcm have the same SOPInstanceUID",
    ),
    "two modalities": (setting(Modality="PT"), "have 2 modalities: 7 of 'CT', 1 of 'PT'"),
    "two kernels": (two_kernels, "have 2 kernels of reconstruction: 7 of 'B30f', 1 of 'B70f'"),
    "one number of pixel spacing": (everywhere(PixelSpacing=0.7), "has 1 numbers of PixelSpacing"),
    "eight bits": (eight_bits, "is CT with BitsAllocated=8: 256 greys are no HU"),
    "more bits than there are": (setting(BitsAllocated=8), "BitsAllocated=8, BitsStored=16"),
    "no modality and no rescale": (
        without("Modality", "RescaleSlope"),
        "CT without RescaleSlope and RescaleIntercept",
    ),
    "pixels truncated": (
        setting(PixelData=b"\0" * 100),
        "declares 960 bytes of voxels and holds 100",
    ),
    "no pixels": (without("PixelData", only=5), "has no pixels: it is truncated"),
    "a deflated bomb": (deflated, r"is stored deflated, as CT is not: how large"),
    "a bomb": (everywhere(Rows=60_000, Columns=60_000), "60000 x 60000 voxels, more than max"),
    "frames in one file": (frames, "holds 8 frames in one file, which are not read yet"),
}
"""How the slices of a series are changed, and what is said of it."""


def save(folder, name, voxels):
    import nibabel

    path = folder / f"{name}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), path)
    return path


def not_a_number(folder):
    voxels = np.zeros((5, 6, 7), np.float32)
    voxels[1, 2, 3] = np.nan
    return save(folder, "nan", voxels)


def truncated(folder):
    path = save(folder, "cut", np.random.default_rng(0).integers(0, 99, (9, 9, 9), np.int16))
    path.write_bytes(path.read_bytes()[:300])
    return path


def bomb(folder):
    path = save(folder, "bomb", np.zeros((4, 4, 4), np.int16))
    header = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<8h", header, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(header)))
    return path


def without_spacing(folder):
    path = folder / "flat.npz"
    np.savez(path, voxels=np.zeros((4, 4, 4), np.int16), affine=np.diag([0.0, 1, 1, 1]))
    return path


def pickled(folder):
    path = folder / "code.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    return path


def shown_as_lists(folder):
    path = folder / "list.npz"
    np.savez(path, image=draw())
    return path


def truncated_slice(folder):
    series = write_series(folder / "short")
    path = series / "003.dcm"
    path.write_bytes(path.read_bytes()[:-200])
    return series


def empty_folder(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def one_slice(folder):
    return next(write_series(folder / "one").iterdir())


def several_series(folder):
    for name in ("a", "b"):
        write_series(folder / "patient" / "study" / name)
    return folder / "patient"


FILES = {
    "not a number": Broken(not_a_number, "1 of 210 voxels are NaN"),
    "truncated": Broken(truncated, "is no NIfTI file, or is damaged"),
    "a packed bomb": Broken(bomb, "declares 30000 x 30000 x 30000 voxels"),
    "without a spacing": Broken(without_spacing, "a spacing of 0 x 1 x 1 mm"),
    "code": Broken(pickled, "holds object, not real numbers"),
    "without voxels": Broken(shown_as_lists, r"has no array `voxels`, but image\.npy"),
    "a slice cut off": Broken(truncated_slice, "declares 960 bytes of voxels and holds 760"),
    "an empty folder": Broken(empty_folder, "holds no DICOM images"),
    "one slice alone": Broken(one_slice, r"is one file of a DICOM series, not a volume"),
}  # fmt: skip


def list_of(folder, text):
    np.save(folder / "a.npy", draw())
    (folder / "annotations.csv").write_text(text)
    return folder


def find_findings(path):
    return find_scans([path])


OTHERS = {
    "a patient of several series": Broken(
        several_series, "holds 2 folders of series: study/a, study/b"
    ),
    "a list of other scans": Broken(
        partial(list_of, text=HEADER + "b,1,2,3,4\n"),
        r"lists findings of 1 scans \(b\), and none of them is one of the 1 beside it \(a\)",
        find_findings,
    ),
}


def _series(folder, change):
    return write_series(folder / "series", change=change)


def _nifti(folder, change):
    path = write_nifti(folder / "a.nii", draw())
    change(path)
    return path


def _metaimage(folder, fields):
    return write_metaimage(folder / "a.mhd", draw(), **fields)


def _set(folder, case):
    damage(write_pairs(folder / "set"), case)
    return folder / "set"


def _list(folder, text):
    path = folder / "annotations.csv"
    path.write_text(text)
    return path


def _numbered(what, rows, make, read=read_volume):
    return {
        f"{what} {number}": Broken(partial(make, **{argument: value}), message, read)
        for argument in [make.__code__.co_varnames[1]]
        for number, (value, message) in enumerate(rows, 1)
    }


read_set = partial(VolumeDataset, transform="patch_4x4x4", cache="off")
BROKEN_INPUTS = {
    **{
        f"series: {name}": Broken(partial(_series, change=change), message)
        for name, (change, message) in BROKEN_SERIES.items()
    },
    **FILES,
    **OTHERS,
    **_numbered("NIfTI", DAMAGED_NIFTI, _nifti),
    **_numbered("MetaImage", WRONG_METAIMAGE, _metaimage),
    **_numbered("set", [row for row in BROKEN_SETS if row[0] != "bomb"], _set, read_set),
    **_numbered("list", WRONG_LISTS, _list, read_findings),
}
