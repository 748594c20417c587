"""A model as the service sees it: what it takes, and rows of numbers to rows of probabilities.

Shapes: B batch, T tokens, K classes.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from deepseek.datasets import DataSpec
from deepseek.datasets.packed_features import PackedFeatures
from deepseek.datasets.spec import FieldSpec
from deepseek.datasets.volume_transforms import parse_volume_transform
from deepseek.deploy.artefact import description_of, load_engine, read_description
from deepseek.deploy.service.volumes import fill_rows, shape_of_centers
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.device import resolve_device
from deepseek.models.joint_outputs import rows_of
from deepseek.models.multi_head import trunk_config
from deepseek.models.sliding_window import DEFAULT_OVERLAP
from deepseek.models.table_scores import table_scores
from deepseek.models.volume_detector import VolumeDetector, finds_centers
from deepseek.models.volume_predictor import WindowOptions
from deepseek.models.volume_segmenter import VolumeSegmenter, takes_volumes

WINDOWS = 4
"""Of volumes that are computed at a time."""
COMPILED = ("compiled",)
"""Runtimes that compile anew for each shape."""


@dataclass(frozen=True)
class ModelSettings:
    """How a file is opened.

    Attributes:
        path: a model file, or the file of a runtime with its description.
        device: of a model file.
        precision: of a model file: `fp32`, or `bf16` for autocast. Other files have their own.
        threads: of one batch on the CPU.
        max_batch: samples of a batch at most.
        target_s: what a batch should take at most.
        trust: SHA-256 of files that can run code, and may.
        overlap: of windows of volumes.
        flips: axes of volumes that outputs are means over.
    """

    path: Path
    device: str = "auto"
    precision: str = "fp32"
    threads: int = 1
    max_batch: int = 32
    target_s: float = 0.05
    trust: tuple[str, ...] = ()
    overlap: float = DEFAULT_OVERLAP
    flips: tuple[int, ...] = ()

    def to_json(self) -> dict:
        """Return a JSON-able dict; `from_json` reads it back."""
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_json(cls, content: dict) -> "ModelSettings":
        """Build from what `to_json` returned."""
        known = {name: tuple(content[name]) for name in ("trust", "flips")}
        return cls(**{**content, "path": Path(content["path"]), **known})


@dataclass(frozen=True)
class Facts:
    """What the service knows of a model.

    Attributes:
        spec: what it takes.
        num_tokens: of its vocabulary; `None`: any number.
        max_length: tokens of a row at most; `None`: not known.
    """

    spec: DataSpec
    num_tokens: int | None = None
    max_length: int | None = None

    def to_json(self) -> dict:
        """Return a JSON-able dict; `from_json` reads it back."""
        return {**vars(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, content: dict) -> "Facts":
        """Build from what `to_json` returned."""
        return cls(**{**content, "spec": DataSpec.from_json(content["spec"])})


def sample_field(spec: DataSpec) -> FieldSpec:
    """Return shape and dtype of a sample, without the batch; a row of a table is packed."""
    return spec.fields["inputs"] if spec.features is None else PackedFeatures(spec.features).field


class Model(Protocol):
    """Something that computes: here, or in a process of its own.

    Attributes:
        facts: what it takes.
        is_up: whether it answers now.
    """

    @property
    def facts(self) -> Facts:
        """What it takes."""
        ...

    @property
    def is_up(self) -> bool:
        """Whether it answers now."""
        ...

    async def compute(self, samples: np.ndarray, expires: float) -> np.ndarray:
        """Return the probabilities of samples (B, ...), in the order of the samples.

        Args:
            samples: of one request; computed together with those of others, or apart.
            expires: on the clock of `time.monotonic`; nobody waits for them any more from then on.

        Raises:
            Refusal: the model failed, or its process has ended.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class ServedModel:
    """An engine that computes batches, warmed up.

    Args:
        engine: with a data spec; evaluated as it is, on its device.
        is_half: compute in bf16 by autocast.
        sizes: batch sizes that it is to be compiled for; others are filled up. Empty: any.
        has_one_length: whether rows of tokens have to be as long as the spec says.
        overlap: of windows of volumes.
        flips: axes of volumes that outputs are means over.

    Raises:
        ConfigError: it has no data spec, what it answers is not finite, or of a detector the
            spacing is not known.
    """

    def __init__(
        self,
        engine: ModelEngine,
        *,
        is_half: bool = False,
        sizes: Collection[int] = (),
        has_one_length: bool = False,
        overlap: float = DEFAULT_OVERLAP,
        flips: Sequence[int] = (),
    ) -> None:
        spec = engine.spec
        if spec is None or ("inputs" not in spec.fields and spec.features is None):
            raise ConfigError(
                "the model does not say what it takes: the file has no data spec",
                fix="save it after training, or bind a spec: engine.bind(data.spec)",
            )
        self._engine, self._is_half = engine.eval(), is_half
        self._sizes, self._has_one_length = sorted(sizes), has_one_length
        self._field = sample_field(spec)
        self._packing = None if spec.features is None else PackedFeatures(spec.features)
        self.segmenter: VolumeSegmenter | None = None
        """Of a model that finds a class for every voxel of a volume, of any size."""
        self.detector: VolumeDetector | None = None
        """Of a model that finds centres in a volume of any size."""
        windows = min(max(self._sizes, default=WINDOWS), WINDOWS)
        options = WindowOptions(overlap=overlap, batch_size=windows, flips=flips)
        if takes_volumes(spec):
            self.segmenter = VolumeSegmenter(engine, options)
        if finds_centers(spec):
            spacing = parse_volume_transform(spec.transform or "").spacing_mm
            if spacing is None:
                raise ConfigError(
                    "the detector does not say the spacing of its volumes",
                    fix="train it on a NoduleDataset",
                )
            self._spacing_mm = spacing
            self.detector = VolumeDetector(engine, options)
        is_whole_row = len(self._field.shape) == 1 and self._field.dtype == "int64"
        takes_tokens = is_whole_row and self._packing is None
        config = trunk_config(engine.config)
        vocabulary = config.get("vocab_size") or (
            engine.num_classes if takes_tokens and not spec.class_names else None
        )
        self.pad = spec.pad_token if takes_tokens else None
        """What rows of tokens are filled up with, so that they fit together."""
        longest = self._field.shape[0] if has_one_length else config.get("context_length")
        self.facts = Facts(spec, vocabulary, longest if takes_tokens else None)
        self._warm_up()

    @classmethod
    def open(cls, settings: ModelSettings) -> "ServedModel":
        """Return the model of a file.

        Raises:
            DeepSeekError: it cannot be opened, or does not compute.
        """
        path = settings.path
        if not description_of(path).is_file():
            engine = load_engine(path).to(resolve_device(settings.device))
            return cls(
                engine, is_half=settings.precision == "bf16", overlap=settings.overlap,
                flips=settings.flips,
            )  # fmt: skip
        artefact = read_description(path)
        known = set(artefact.hashes.values())
        trust = next((each for each in settings.trust if each in known), None)
        engine = load_engine(path, trust=trust, threads=settings.threads)
        compiles = artefact.runtime in COMPILED
        return cls(
            engine,
            sizes=_powers(settings.max_batch) if compiles else (),
            has_one_length=compiles or "length" not in artefact.open_dims,
            overlap=settings.overlap,
            flips=settings.flips,
        )

    def compute(self, batch: np.ndarray) -> np.ndarray:
        """Return probabilities, or numbers, (B, ..., K), float32, of a batch (B, ...).

        Those of several tasks stand side by side, in the order of the spec; where one has classes
        of tokens, (B, T, K), and what is said of a sample is repeated for each token. Of volumes,
        prepared, the class of each voxel: uint8 or uint16 (B, D, H, W); of a detector its centres,
        `shape_of_centers` each. A channel more than the model takes is a mask of where there is
        something to look for. Of packed rows of a table the score of each label (B, T).
        """
        kind = self._engine.device.type
        with (
            torch.inference_mode(),
            torch.autocast(kind, dtype=torch.bfloat16, enabled=self._is_half),
        ):
            if self.takes_volumes:
                return np.stack([self._look_at(volume) for volume in batch])
            if self._packing is not None:
                return table_scores(self._engine, self._packing.unpack(batch)).numpy()
            filled = self._fill(batch)
            outputs = self._engine.outputs_of(torch.from_numpy(filled))
            return rows_of(outputs, self.facts.spec).cpu().numpy()[: len(batch)]

    @property
    def takes_volumes(self) -> bool:
        """Whether a sample is a volume of any size."""
        return self.segmenter is not None or self.detector is not None

    def _look_at(self, volume: np.ndarray) -> np.ndarray:
        channels = self._field.shape[0]
        mask = volume[channels] > 0 if len(volume) > channels else None
        voxels = np.ascontiguousarray(volume[:channels])
        if self.segmenter is not None:
            return self.segmenter.find_labels(voxels, mask)
        shape, detector = shape_of_centers(self.facts.spec), self.detector
        rows = detector.find_rows(voxels, self._spacing_mm, mask) if detector else np.empty(shape)
        return fill_rows(rows, shape)

    def _fill(self, batch: np.ndarray) -> np.ndarray:
        """Return the batch with rows and tokens added, in a shape that the program takes."""
        is_short = self._has_one_length and batch.ndim == 2 and self.pad is not None
        if is_short and batch.shape[1] < self._field.shape[0]:
            width = self._field.shape[0] - batch.shape[1]
            batch = np.pad(batch, ((0, 0), (0, width)), constant_values=self.pad or 0)
        count = next((size for size in self._sizes if size >= len(batch)), len(batch))
        if count == len(batch):
            return batch
        return np.concatenate([batch, batch[:1].repeat(count - len(batch), 0)])

    def _warm_up(self) -> None:
        """Compute what will be asked for: a model that cannot is found before it answers anybody.

        Two samples beside one: some runtimes prepare themselves for one and for many.
        """
        dtype = "float32" if self._field.dtype == "bfloat16" else self._field.dtype
        for size in self._sizes or (1, 2):
            zeros = np.zeros((size, *self._field.shape), dtype)
            if not np.isfinite(self.compute(zeros)).all():
                raise ConfigError(
                    "the model answers zeros with values that are not finite",
                    fix="train it again, or serve another version",
                )


def _powers(limit: int) -> list[int]:
    """Return 1, 2, 4, ... and `limit`."""
    return [*(1 << power for power in range((limit - 1).bit_length())), limit]
