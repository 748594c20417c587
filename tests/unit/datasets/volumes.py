"""Volumes drawn on the spot, in each format."""

import zlib
from pathlib import Path

import numpy as np

COS, SIN = np.cos(0.1), np.sin(0.1)
AFFINE_RAS = np.array(
    [[-0.7, 0, 0, 90], [0, 0.8 * COS, 2.5 * SIN, -126], [0, -0.8 * SIN, 2.5 * COS, -72],
     [0, 0, 0, 1.0]]
)  # fmt: skip
"""Turned about the first axis."""


def draw(seed: int = 0, shape=(6, 8, 10)) -> np.ndarray:
    """Smooth numbers, as int16 (D, H, W)."""
    rng = np.random.default_rng(seed)
    d, h, w = np.meshgrid(*[np.linspace(0, 3, size) for size in shape], indexing="ij")
    field = sum(np.sin(rng.uniform(0.5, 2, 3) @ [d.ravel(), h.ravel(), w.ravel()]) for _ in "abc")
    return (100 * field).reshape(shape).astype(np.int16)


def write_nifti(path: Path, voxels: np.ndarray, affine=AFFINE_RAS) -> Path:
    """Write voxels (D, H, W) with an affine of (x, y, z) indices to RAS."""
    import nibabel

    image = nibabel.Nifti1Image(voxels.T, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def write_metaimage(path: Path, voxels: np.ndarray, packed=False, local=False, **fields) -> Path:
    content = np.ascontiguousarray(voxels).tobytes()
    content = zlib.compress(content) if packed else content
    kind = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT"}[str(voxels.dtype)]
    header = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False,
        "CompressedData": packed, "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-10 -20 -30", "ElementSpacing": "0.7 0.8 2.5",
        "DimSize": " ".join(map(str, voxels.shape[::-1])), "ElementType": kind, **fields,
        "ElementDataFile": fields.get("ElementDataFile", "LOCAL" if local else path.stem + ".raw"),
    }  # fmt: skip
    text = "".join(f"{key} = {value}\n" for key, value in header.items() if value is not None)
    path.write_bytes(text.encode() + (content if local else b""))
    if not local:
        path.with_suffix(".raw").write_bytes(content)
    return path


def write_pairs(folder: Path, count=4, shape=(9, 10, 11), num_classes=3) -> Path:
    """Write NumPy volumes with labels: boxes of class 1, 2, ... that are brighter."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        size = [extent + number % 2 for extent in shape]
        labels = np.zeros(size, np.uint8)
        for label in range(1, num_classes):
            d, h, w = (int(rng.integers(0, extent - 4)) for extent in size)
            labels[d : d + 4, h : h + 4, w : w + 4] = label
        voxels = rng.normal(0, 20, size) + 100.0 * labels
        np.savez(folder / "images" / f"{number:02}.npz", voxels=voxels.astype(np.int16))
        np.savez(folder / "labels" / f"{number:02}.npz", voxels=labels)
    return folder
