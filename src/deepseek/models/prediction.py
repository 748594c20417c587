"""From what a user has (a path, a picture, a tensor) to named classes.

Shapes: B batch, C channels, H W pixels, K classes.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from deepseek.datasets.picture import DEFAULT_MAX_PIXELS, Picture
from deepseek.datasets.randomness import Draws
from deepseek.datasets.spec import DataSpec
from deepseek.datasets.transforms import Transform, parse_transform
from deepseek.errors import ConfigError, DataError
from deepseek.models.text_batches import text_batches

Predictable = Tensor | Image.Image | str | Path
"""One sample, or for a tensor one more dim: a batch."""


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a classifier says about one sample.

    Attributes:
        label: name of the most probable class, or its index as text where names are unknown.
        index: its index.
        prob: its probability, in 0..1.
        top: (label, probability) of the most probable classes, best first.
        probs: of every class, shape (K,), float32, on the CPU.
    """

    label: str
    index: int
    prob: float
    top: list[tuple[str, float]]
    probs: Float[Tensor, "K"] = field()

    def __repr__(self) -> str:
        shown = ", ".join(f"{label} {prob:.1%}" for label, prob in self.top)
        return f"Prediction({shown})"


def name_probs(
    probs: Float[Tensor, "B K"], class_names: tuple[str, ...], top_k: int
) -> list[Prediction]:
    """Return a `Prediction` per row, with the `top_k` best classes (all, if there are fewer).

    Raises:
        ConfigError: there are several classes of a sample, or other classes than `class_names`.
    """
    if probs.ndim != 2:
        raise ConfigError(
            f"the model gives outputs {list(probs.shape[1:])} for a sample, not one class",
            fix="call engine(batch) for the outputs; of scans deepseek.models.VolumeSegmenter"
            " or VolumeDetector (engine)(read_volume(path))",
        )
    if class_names and probs.shape[1] != len(class_names):
        raise ConfigError(
            f"the model has {probs.shape[1]} outputs, the data {len(class_names)} class_names",
            fix="build the model with num_classes of the data it was trained on",
        )
    values, indices = probs.topk(min(top_k, probs.shape[1]), dim=1)
    predictions = []
    for row, row_values, row_indices in zip(probs, values.tolist(), indices.tolist(), strict=True):
        labels = [class_names[i] if class_names else str(i) for i in row_indices]
        top = list(zip(labels, row_values, strict=True))
        predictions.append(Prediction(labels[0], row_indices[0], row_values[0], top, row))
    return predictions


def to_batches(x: object, spec: DataSpec | None, batch_size: int) -> tuple[Iterator[Tensor], bool]:
    """Cut what a user gave into batches, read only when their turn comes.

    Returns:
        Tensors with a batch dim, and whether `x` was a single sample.

    Raises:
        ConfigError: if `x` is of another type, or pictures are given and the transform is unknown.
    """
    if spec is not None and spec.tokenizer is not None and not isinstance(x, Tensor):
        return text_batches(x, spec, batch_size)
    if spec is not None and spec.features is not None:
        raise ConfigError(
            "a model of tables is given rows, and predict takes pictures and texts",
            fix="score them: deepseek.recsys.Scorer(engine)([{column: value, ...}, ...])",
        )
    inputs = spec.fields.get("inputs") if spec else None
    sample_ndim = len(inputs.shape) if inputs else 3
    if isinstance(x, Tensor):
        if x.ndim == sample_ndim:
            return iter([x[None]]), True
        if x.ndim == sample_ndim + 1:
            return iter(x.split(batch_size) if len(x) else []), False
        raise ConfigError(
            f"a tensor of shape {tuple(x.shape)} is neither a sample, of {sample_ndim} dims, nor a"
            " batch of them",
            fix="give an image as (C, H, W), or a batch as (B, C, H, W)",
        )
    if isinstance(x, str | Path | Image.Image):
        return _read_batches([x], spec, batch_size), True
    if isinstance(x, list | tuple):
        return _read_batches(x, spec, batch_size), False
    raise ConfigError(
        f"x is a {type(x).__name__}, which cannot be predicted",
        fix="give a tensor, a PIL image, a path, or a list of them",
    )


def _read_batches(
    items: Sequence[object], spec: DataSpec | None, batch_size: int
) -> Iterator[Tensor]:
    transform = None
    for start in range(0, len(items), batch_size):
        samples = []
        for item in items[start : start + batch_size]:
            if isinstance(item, Tensor):
                samples.append(item)
                continue
            transform = transform or _evaluation_transform(spec)
            samples.append(_read_image(item, transform))
        shapes = sorted({tuple(sample.shape) for sample in samples})
        if len(shapes) > 1:
            raise DataError(
                f"samples of one batch have different shapes: {shapes[:4]}",
                fix='resize them, as transform="resize_224" does, or predict them one by one',
            )
        yield torch.stack(samples)


def _evaluation_transform(spec: DataSpec | None) -> Transform:
    if spec is None or "inputs" not in spec.fields:
        raise ConfigError(
            "the model does not know how its pictures are prepared: it has no data spec",
            fix="give a tensor (B, C, H, W), or call engine.bind(data.spec)",
        )
    if spec.task == "segmentation":
        raise ConfigError(
            "the model finds a class for every voxel of a volume, which is no classification",
            fix="deepseek.models.VolumeSegmenter(engine)(read_volume(path))",
        )
    if spec.task == "detection":
        raise ConfigError(
            "the model finds centres in volumes, which is no classification",
            fix="deepseek.models.VolumeDetector(engine)(read_volume(path))",
        )
    if spec.transform is None:
        raise ConfigError(
            "the model was trained with a Python function as transform, which a spec cannot hold",
            fix="apply it yourself and give the tensor: engine.predict(transform(image))",
        )
    return parse_transform(spec.transform, spec.fields["inputs"].shape[0])


def decode_picture(content: bytes, where: str, spec: DataSpec, max_pixels: int) -> Tensor:
    """Return an encoded picture as a model takes it, uint8 (C, H, W).

    Args:
        content: a file's bytes.
        where: what it is called in messages.
        spec: of the model; it must have a transform.
        max_pixels: limit, checked before anything is decoded.

    Raises:
        DataError: it is no picture, or a damaged or too large one.
    """
    return _prepare(Picture(content, where, max_pixels), _evaluation_transform(spec))


def read_picture(path: str | Path, spec: DataSpec | None) -> Tensor:
    """Return the picture in a file as a model takes it, uint8 (C, H, W).

    Raises:
        ConfigError: the model does not say how its pictures are prepared.
        DataError: there is none, or it is damaged or too large.
    """
    return _read_image(path, _evaluation_transform(spec))


def _read_image(item: object, transform: Transform) -> Tensor:
    if isinstance(item, Image.Image):
        content, where = _to_content(item), "the PIL image"
    elif isinstance(item, str | Path):
        where = str(item)
        try:
            content = Path(item).read_bytes()
        except OSError as error:
            raise DataError(
                f"{where} cannot be read: {error.strerror}", fix="check the path"
            ) from error
    else:
        raise ConfigError(
            f"a list holds a {type(item).__name__}, which cannot be predicted",
            fix="give tensors, PIL images or paths",
        )
    return _prepare(Picture(content, where, DEFAULT_MAX_PIXELS), transform)


def _prepare(picture: Picture, transform: Transform) -> Tensor:
    draws = Draws(0)  # an evaluation transform draws nothing
    image, is_first_done = transform.start(picture, draws)
    image = transform.run(image, draws, int(is_first_done), len(transform.steps))
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _to_content(image: Image.Image) -> np.ndarray | bytes:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        return np.asarray(image.convert("RGB"))
    # The reader of files has the rules for palettes, transparency and 16 bits.
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if image.mode == "F" else "PNG")
    return buffer.getvalue()
