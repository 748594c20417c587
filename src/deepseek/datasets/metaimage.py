"""MetaImage volumes: `.mhd` with its `.raw` or `.zraw` beside it, and `.mha`; no package needed.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation. LUNA16 is distributed like this.
"""

import zlib
from math import prod
from pathlib import Path

import numpy as np

from deepseek.datasets.text_numbers import read_number
from deepseek.datasets.volume import Volume, make_affine
from deepseek.datasets.volume_file import check_holds, check_size
from deepseek.errors import DataError

_MAX_HEADER_BYTES = 2**16
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


def read_metaimage(path: Path, max_voxels: int) -> Volume:
    """Read a volume of three axes.

    Raises:
        DataError: the header lacks something or says what is not so, or the voxels are damaged.
    """
    fields, start = _read_header(path)
    if fields.get("NDims") != "3":
        raise DataError(
            f"{path} has NDims={fields.get('NDims')!r}: not a volume of three axes",
            fix="give three-dimensional images",
        )
    width, height, depth = (int(size) for size in _numbers(fields, path, "DimSize", whole=True))
    channels = int(_numbers(fields, path, "ElementNumberOfChannels", (1.0,), whole=True)[0])
    shape = (depth, height, width, channels)
    check_size(shape, max_voxels, str(path))
    kind = _TYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise DataError(
            f"{path} has ElementType={fields.get('ElementType')!r}, which is not known",
            fix=f"one of {', '.join(_TYPES)}",
        )
    is_big = any(
        fields.get(key, "False").lower() == "true"
        for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    )
    dtype = np.dtype(kind).newbyteorder(">" if is_big else "<")
    content = _read_voxels(path, fields, start, prod(shape) * dtype.itemsize)
    voxels = np.frombuffer(content, dtype).reshape(shape)
    voxels = voxels.astype(dtype.newbyteorder("="), copy=False).transpose(3, 0, 1, 2)
    return Volume(voxels, _affine(fields, path))


def voxel_file(path: Path) -> Path:
    """Return the file with the voxels of a header: another beside it, or the same.

    Raises:
        DataError: it is no header, or names a file elsewhere.
    """
    fields, _ = _read_header(path)
    return _source(path, fields["ElementDataFile"])


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields, and where the bytes after them start."""
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        line, newline, _ = head[at:].partition(b"\n")
        key, equals, value = _text(line).partition("=")
        if not equals:
            raise DataError(
                f"{path} is no MetaImage: its header does not lead to ElementDataFile",
                fix="copy it again from its source",
            )
        fields[key.strip()] = value.strip()
        at += len(line) + len(newline)
    return fields, at


def _text(line: bytes) -> str:
    """Return a line of a header: UTF-8, or else Latin-1, in which Windows may name files."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _source(path: Path, name: str) -> Path:
    if name == "LOCAL":
        return path
    # the header of a stranger must not read what lies elsewhere
    if (
        not name
        or name.startswith("LIST")
        or "%" in name
        or Path(name).name != name
        or "\\" in name
    ):
        raise DataError(
            f"{path} has ElementDataFile={name!r}: not a file beside it",
            fix="put the voxels into one file in the same folder",
        )
    return path.with_name(name)


def _read_voxels(path: Path, fields: dict[str, str], start: int, num_bytes: int) -> bytes:
    name = fields["ElementDataFile"]
    source = _source(path, name)
    if source != path:
        start = 0
    if not source.is_file():
        raise DataError(
            f"{path} names its voxels {name!r}, which is not there",
            fix="copy both files into one folder",
        )
    there = source.stat().st_size - start
    skipped = int(_numbers(fields, path, "HeaderSize", (0.0,), whole=True)[0])
    is_packed = fields.get("CompressedData", "False").lower() == "true"
    start += there - num_bytes if skipped == -1 and not is_packed else max(skipped, 0)
    check_holds(num_bytes, there - max(skipped, 0), str(source), is_packed=is_packed)
    surplus = there - max(skipped, 0) - num_bytes
    if surplus > 0 and skipped != -1 and not is_packed:
        raise DataError(
            f"{source} holds {surplus:,} bytes more than the {num_bytes:,} of voxels that"
            f" {path.name} declares: sizes or type are of another file",
            fix="mend DimSize or ElementType, or skip what is before the voxels by HeaderSize",
        )
    with source.open("rb") as file:
        file.seek(start)
        if not is_packed:
            return file.read(num_bytes)
        packed = file.read()
    unpack = zlib.decompressobj()
    try:
        content = unpack.decompress(packed, num_bytes + 1)
    except zlib.error as error:
        raise DataError(
            f"{source} is damaged: {error}", fix="copy it again from its source"
        ) from error
    if len(content) != num_bytes:
        more = "more than" if len(content) > num_bytes else f"{len(content):,} instead of"
        raise DataError(
            f"{source} unpacks to {more} the {num_bytes:,} bytes that its header declares",
            fix="copy it again from its source",
        )
    return content


def _affine(fields: dict[str, str], path: Path) -> np.ndarray:
    default = _numbers(fields, path, "ElementSize", (1.0, 1.0, 1.0))
    spacing = _numbers(fields, path, "ElementSpacing", default)
    origin = (0.0, 0.0, 0.0)
    for key in ("Origin", "Position", "Offset"):
        origin = _numbers(fields, path, key, origin)
    matrix = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
    for key in ("Orientation", "Rotation", "TransformMatrix"):
        matrix = _numbers(fields, path, key, matrix)
    # a row is the direction of one axis, x first; ours are columns, and D is the last axis
    directions = np.array(matrix, np.float64).reshape(3, 3).T[:, ::-1]
    return make_affine(spacing[::-1], origin, directions)


def _numbers(
    fields: dict[str, str],
    path: Path,
    key: str,
    default: tuple[float, ...] | None = None,
    *,
    whole: bool = False,
) -> tuple[float, ...]:
    """Return the numbers of a field, as many as its default has; three without one."""
    text = fields.get(key)
    count = 3 if default is None else len(default)
    if text is None and default is not None:
        return default
    try:
        found = tuple(map(read_number, (text or "").split()))
    except ValueError:
        found = ()
    if len(found) != count or (whole and not all(number.is_integer() for number in found)):
        raise DataError(
            f"{path} has {key}={text!r}: not {count} {'whole ' * whole}number{'s' * (count > 1)}",
            fix="mend the header, or write the file anew",
        )
    return found
