"""Files of volumes that are damaged, or say what is not so, each with the reason that is given."""

import struct


def nifti_with(offset, packing, *values):
    """Change bytes of a header."""

    def change(path):
        raw = bytearray(path.read_bytes())
        struct.pack_into(packing, raw, offset, *values)
        path.write_bytes(raw)

    return change


def shorten(path):
    path.write_bytes(path.read_bytes()[:-200])


DAMAGED_NIFTI = [
    (shorten, "declares 960 bytes of voxels and holds 760"),
    (lambda path: path.write_bytes(b""), "is no NIfTI file, or is damaged"),
    (lambda path: path.write_bytes(b"\0" * 400), "is no NIfTI file, or is damaged"),
    (nifti_with(42, "<3h", 2000, 2000, 2000), "2000 x 2000 x 2000 voxels, more than max"),
    (nifti_with(42, "<3h", 500, 500, 500), "declares 250,000,000 bytes of voxels and holds"),
    (nifti_with(42, "<3h", 0, 8, 6), "it is empty"),
    (nifti_with(40, "<6h", 5, 5, 8, 3, 2, 2), "has 5 axes, neither three nor four"),
    (nifti_with(70, "<h", 32), "holds complex64 voxels, not real numbers"),
    (nifti_with(70, "<h", 999), "is no NIfTI file, or is damaged"),
    (nifti_with(280, "<f", float("nan")), "not finite numbers"),
    (nifti_with(280, "<12f", *[0.0] * 12), "spacing of .* is not between"),
    (nifti_with(280, "<12f", 1, 0, 0, 0, 0.3, 1, 0, 0, 0, 0, 1, 0), "sheared"),
    (nifti_with(80, "<3f", 0, 0, 0), "has pixdim 0 x 0 x 0: the size of its voxels is unknown"),
    (nifti_with(80, "<f", float("nan")), "has pixdim nan x"),
    (nifti_with(280, "<12f", 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0), "two of its axes lead"),
]
"""How a `.nii` file of `draw()` is changed, and what is said of it."""

WRONG_METAIMAGE = [
    ({"NDims": 2}, "NDims='2': not a volume of three axes"),
    ({"DimSize": "10 8"}, "DimSize='10 8': not 3 whole numbers"),
    ({"DimSize": "ten 8 6"}, "DimSize='ten 8 6': not 3 whole numbers"),
    ({"DimSize": "10 8 6.5"}, "not 3 whole numbers"),
    ({"ElementNumberOfChannels": "nan"}, "'nan': not 1 whole number"),
    ({"HeaderSize": "inf"}, "HeaderSize='inf': not 1 whole number"),
    ({"DimSize": "10 8 0"}, "it is empty"),
    ({"DimSize": "10 8 -6"}, "it is empty"),
    ({"DimSize": "9000 9000 9000"}, "voxels, more than max_voxels"),
    ({"DimSize": "10 8 60"}, "declares 9,600 bytes of voxels and holds 960"),
    ({"DimSize": "10 8 3"}, "holds 480 bytes more than the 480 of voxels that a.mhd declares"),
    ({"ElementType": "MET_UCHAR"}, "holds 480 bytes more than the 480"),
    ({"DimSize": "10 8 3", "HeaderSize": 100}, "holds 380 bytes more than the 480"),
    (
        {"TransformMatrix": "1 0 0 0.3 1 0 0 0 1"},
        r"at 73\.3 degrees, not 90: its voxels are sheared",
    ),
    ({"ElementType": "MET_STRING"}, "ElementType='MET_STRING', which is not known"),
    ({"ElementType": None}, "ElementType=None"),
    ({"ElementSpacing": "0.7 nan 2.5"}, "not finite numbers"),
    ({"ElementSpacing": "0 0.8 2.5"}, "spacing of 2.5 x 0.8 x 0 mm is not between"),
    ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "two of its axes lead the same way"),
    ({"TransformMatrix": "1 0 0"}, "TransformMatrix='1 0 0': not 9 numbers"),
    ({"ElementDataFile": "gone.raw"}, "names its voxels 'gone.raw', which is not there"),
    ({"ElementDataFile": "../a.raw"}, "not a file beside it"),
    ({"ElementDataFile": ""}, "ElementDataFile='': not a file beside it"),
    ({"ElementDataFile": "/etc/passwd"}, "not a file beside it"),
    ({"ElementDataFile": "LIST"}, "not a file beside it"),
    ({"CompressedData": True}, "is damaged: "),
]
"""Fields of the header of a `.mhd` file of `draw()`, and what is said of them."""
