"""How a Hugging Face folder prepares pictures, into a data spec and back."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek.convert.report import Report
from deepseek.convert.source import Source
from deepseek.datasets import DataSpec, Normalization
from deepseek.datasets.spec import FieldSpec
from deepseek.datasets.transforms import parse_transform
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.classifier import Classifier
from deepseek.models.tensor_layout import parse_object

PREPROCESSOR = "preprocessor_config.json"
_BILINEAR = 2  # as Pillow numbers them
_CONVNEXT = ("ConvNextImageProcessor", "ConvNextFeatureExtractor", "ConvNextImageProcessorFast")
_CROP_BELOW = 384  # pixels: from there on ConvNeXt's processor takes the whole picture
_EXACT = re.compile(r"resize_(\d+)x(\d+)(?:\+center_crop_(\d+))?")
_SHORTER = re.compile(r"resize_(\d+)(?:\+center_crop_(\d+))?")


def picture_spec(
    engine: ModelEngine, source: Source, names: tuple[str, ...], report: Report
) -> DataSpec | None:
    """Return what a folder tells of the pictures that its model takes; `None` without its file.

    Args:
        engine: of the folder's model.
        source: the folder.
        names: of the classes.
        report: gets a note on what differs or cannot be taken over.
    """
    content, module = source.files.get(PREPROCESSOR), engine.module
    takes = module.input_shape if isinstance(module, Classifier) else ()
    if content is None or len(takes) != 3 or takes[0] is None:
        return None
    settings = parse_object(content, f"{source.name}/{PREPROCESSOR}", "content")
    channels = takes[0]
    try:
        steps = _read_steps(settings)
        normalization = _read_normalization(settings, channels)
        height, width = _result_size(steps, takes)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        what = error.message if isinstance(error, ConfigError) else f"{PREPROCESSOR}: {error!r}"
        report.notes.append(f"without how its pictures are prepared: {what}")
        return None
    if settings.get("do_resize", True) and settings.get("resample", _BILINEAR) != _BILINEAR:
        report.notes.append(
            f"pictures are resized bilinearly, where {PREPROCESSOR} has"
            f" resample={settings['resample']}: probabilities differ a little"
        )
    return DataSpec(
        task="classification",
        fields={
            "inputs": FieldSpec((channels, height, width), "uint8"),
            "targets": FieldSpec((), "int64"),
        },
        class_names=names,
        class_counts=(0,) * len(names),
        transform=steps,
        normalization=normalization,
    )


def picture_files(engine: ModelEngine) -> dict[str, bytes]:
    """Return the file that has transformers prepare pictures as ours are."""
    spec = engine.spec
    if spec is None or spec.transform is None or spec.normalization is None:
        return {}
    steps = "+".join(
        step for step in spec.transform.split("+") if not step.startswith("normalize_")
    )
    exact, shorter = _EXACT.fullmatch(steps), _SHORTER.fullmatch(steps)
    if exact:
        size: dict[str, int] = {"height": int(exact[1]), "width": int(exact[2])}
        crop = int(exact[3]) if exact[3] else None
    elif shorter:
        size, crop = {"shortest_edge": int(shorter[1])}, int(shorter[2] or shorter[1])
    else:
        return {}
    settings: dict[str, Any] = {
        # of all processors of transformers these two do no more than they are told
        "image_processor_type": "ViTImageProcessor" if crop is None else "CLIPImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.normalization.mean),
        "image_std": list(spec.normalization.std),
    }
    if crop is not None:
        settings |= {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}}
    return {PREPROCESSOR: json.dumps(settings, indent=2).encode()}


def _read_steps(settings: Mapping[str, Any]) -> str:
    """Return the transform in our language.

    Raises:
        ConfigError: ours has none that does the same.
    """
    crop = None
    if settings.get("do_center_crop"):
        sides = _sides(settings["crop_size"])
        if len(set(sides)) > 1:
            raise ConfigError(f"crop_size={sides} is not square", fix="crop by hand")
        crop = sides[0]
    if not settings.get("do_resize", True):
        if crop is None:
            raise ConfigError("pictures are not resized", fix="give tensors")
        return f"center_crop_{crop}"
    size = settings["size"]
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    kind = settings.get("image_processor_type", settings.get("feature_extractor_type"))
    if isinstance(size, int) and str(kind).startswith("CLIP"):  # of its first version
        edge = size
    if kind in _CONVNEXT:
        edge = int(edge or _sides(size)[0])
        if edge >= _CROP_BELOW:
            return f"resize_{edge}x{edge}"
        # before it is cropped; 224 / 0.875 is 256
        return f"resize_{int(edge / settings.get('crop_pct', 224 / 256))}+center_crop_{edge}"
    if edge is None:
        height, width = _sides(size)
        return f"resize_{height}x{width}" + (f"+center_crop_{crop}" if crop else "")
    if crop is None:
        raise ConfigError("pictures keep their shape: only the shorter side is given", fix="crop")
    return f"resize_{int(edge)}+center_crop_{crop}"


def _read_normalization(settings: Mapping[str, Any], channels: int) -> Normalization:
    factor = settings.get("rescale_factor", 1 / 255)
    if not settings.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        raise ConfigError(f"pixels are not divided by 255 (rescale_factor={factor})", fix="do so")
    if not settings.get("do_normalize", True):
        return Normalization((0.0,) * channels, (1.0,) * channels)
    mean, std = settings["image_mean"], settings["image_std"]
    found = Normalization(tuple(map(float, mean)), tuple(map(float, std)))
    if len(found.mean) != channels:
        raise ConfigError(f"image_mean={mean} is not of {channels} channels", fix="mend it")
    return found


def _sides(size: object) -> tuple[int, int]:
    """Return height and width of what versions of transformers write in several ways."""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[1])
    return int(str(size)), int(str(size))


def _result_size(steps: str, takes: Sequence[int | None]) -> tuple[int, int]:
    """Return height and width after a transform, which must fit the model."""
    parse_transform(steps, takes[0] or 3)  # its numbers are in range
    numbers = re.findall(r"\d+", steps.split("+")[-1])
    height, width = int(numbers[0]), int(numbers[-1])
    if any(want not in (None, has) for want, has in zip(takes[1:], (height, width), strict=True)):
        raise ConfigError(
            f"pictures become {height} x {width}, and the model takes {takes[1]} x {takes[2]}",
            fix="mend the file",
        )
    return height, width
