"""Models and their versions: which answers now, which came before, which are there to be taken.

A version is a file: a model file, or the file of a runtime with its description. The shelf is
filled from files that the operator names, or from a folder `MODELS/NAME/VERSION.bin`; a client says
a name and a version and never a path. A new version is loaded and warmed up beside the old one,
then takes its place; requests that the old one has begun are finished by it.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek.datasets import DataSpec
from deepseek.datasets.feature_encoder import FeatureEncoder
from deepseek.datasets.packed_features import PackedFeatures
from deepseek.deploy.artefact import description_of
from deepseek.deploy.service.decoding import Decoder
from deepseek.deploy.service.protection import Limits
from deepseek.deploy.service.queueing import Queue
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.served_model import Model, sample_field
from deepseek.deploy.service.volumes import WAITING
from deepseek.errors import ConfigError, DeepSeekError
from deepseek.models.joint_outputs import is_number, is_of_tokens, widths_of
from deepseek.models.multi_head import head_of
from deepseek.models.text_batches import TASKS as TEXT_TASKS
from deepseek.models.volume_detector import finds_centers
from deepseek.models.volume_segmenter import takes_volumes
from deepseek.registry import import_extra

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SUFFIX = ".bin"


@dataclass(frozen=True)
class Pace:
    """How models compute.

    Attributes:
        max_batch: samples of a batch at most; 1: no batching.
        target_ms: what a batch should take at most.
        max_waiting: samples that may wait for a model.
        num_decoders: processes that read pictures, texts and volumes.
    """

    max_batch: int = 32
    target_ms: float = 50.0
    max_waiting: int = 512
    num_decoders: int = 1


class Version:
    """A model that is ready to compute.

    Args:
        name: of the model.
        version: of it.
        models: that compute it, all alike.
        pace: how they compute.
        limits: of a request.
        region: of volumes, where there is something to look for.
    """

    def __init__(
        self, name: str, version: str, models: Sequence[Model], pace: Pace, limits: Limits,
        region: str | None = None,
    ) -> None:  # fmt: skip
        self.name, self.version = name, version
        self._models = models
        self._num_users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self.spec = models[0].facts.spec
        self.num_tokens = models[0].facts.num_tokens or 2**31
        """Of its vocabulary; without one, any number."""
        self.max_length = models[0].facts.max_length
        """Tokens of a row at most; `None`: not known."""
        self.sample_field = sample_field(self.spec)
        self.sample_shape = self.sample_field.shape
        """Of what the model takes, without the batch."""
        features = self.spec.features
        self.encoder = None if features is None else FeatureEncoder(features)
        """Of a model of tables."""
        self.packing = None if features is None else PackedFeatures(features)
        room = min(pace.max_waiting, WAITING) if self.takes_volumes else pace.max_waiting
        self.queue = Queue(models, max_waiting=room)
        self.decoder: Decoder | None = None
        takes_pictures = self.takes_pictures and self.spec.transform is not None
        if self.takes_volumes:
            import_extra("nibabel", "medical")  # or every request would fail
        if self.takes_texts or takes_pictures or self.takes_volumes:
            self.decoder = Decoder(
                self.spec, num_processes=pace.num_decoders, max_pixels=limits.max_pixels,
                max_voxels=limits.max_voxels, region=region,
                # a volume may take as long as its request; pictures and texts never do
                timeout_s=limits.timeout_s if self.takes_volumes else limits.body_s,
            )  # fmt: skip

    @property
    def is_up(self) -> bool:
        """Whether any of its models answers."""
        return any(model.is_up for model in self._models)

    @property
    def takes_pictures(self) -> bool:
        """Whether a sample is (channels, height, width)."""
        return len(self.sample_shape) == 3

    @property
    def takes_any_length(self) -> bool:
        """Whether a sample is a row of tokens, which may be shorter or longer."""
        is_row = len(self.sample_shape) == 1 and self.sample_field.dtype == "int64"
        return is_row and self.encoder is None

    @property
    def takes_texts(self) -> bool:
        """Whether it says of which class or number a text is, or of which class its words."""
        tasks = (*TEXT_TASKS, "token_classification")
        return self.spec.tokenizer is not None and self.spec.task in tasks

    @property
    def finds_entities(self) -> bool:
        """Whether it, or one of its tasks, says of which class each word of a text is."""
        return self.takes_texts and any(map(is_of_tokens, self.outputs.values()))

    @property
    def takes_volumes(self) -> bool:
        """Whether it finds a class for every voxel of a volume, or centres."""
        return takes_volumes(self.spec) or self.finds_centers

    @property
    def finds_centers(self) -> bool:
        """Whether it finds centres in a volume."""
        return finds_centers(self.spec)

    @property
    def takes(self) -> str:
        """What a client sends: `text`, `picture`, `volume`, `rows` of a table, or `numbers`."""
        if self.encoder is not None:
            return "rows"
        if self.decoder is None:
            return "numbers"
        if self.takes_volumes:
            return "volume"
        return "text" if self.takes_texts else "picture"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of class 0, 1, ..."""
        return self.spec.class_names

    @property
    def outputs(self) -> dict[str, DataSpec]:
        """What a row holds, by name; several tasks side by side."""
        if self.packing is not None:
            return {"scores": self.spec}
        return self.spec.tasks or {"values" if is_number(self.spec) else "probs": self.spec}

    @property
    def widths(self) -> list[int]:
        """How many numbers of a row each output has; -1 where the spec does not say."""
        if self.spec.features is not None:
            return [len(self.spec.features.label)]
        if self.spec.tasks:
            return widths_of(self.spec)
        known = self.class_names or "targets" in self.spec.fields
        return [head_of(self.spec)["outputs"] if known else -1]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep it open: who reads a picture for it has not asked it yet."""
        self._num_users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._num_users -= 1
            if not self._num_users:
                self._unused.set()

    async def close(self) -> None:
        """Finish what was begun, and let go."""
        await self._unused.wait()
        for model in self._models:
            model.close()
        if self.decoder is not None:
            self.decoder.close()


class Shelf:
    """All models of a service.

    Args:
        files: (name, version) -> file, of what the operator has named.
        folder: `NAME/VERSION.bin`, or `NAME/FILE` with the description `FILE.json`, whose version
            is `FILE`; looked at anew whenever a version is asked for.
        build: (name, version, file) -> a `Version`.
    """

    def __init__(
        self,
        files: dict[tuple[str, str], Path],
        folder: Path | None,
        build: Callable[[str, str, Path], Version],
    ) -> None:
        self._files, self._folder, self._build = files, folder, build
        self._active: dict[str, Version] = {}
        self._before: dict[str, Version] = {}
        self._stamps: dict[tuple[str, str], tuple[int, int]] = {}
        self._lock = asyncio.Lock()
        self._closing: set[asyncio.Task] = set()
        self._loading = threading.Lock()  # one model at a time: memory
        for name in self.list_versions():
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"{name!r} is no name for a model",
                    fix="use letters, digits, points and dashes, 64 at most",
                )

    def list_versions(self) -> dict[str, list[str]]:
        """Return the versions that there are of each model, the newest last."""
        found: dict[str, set[str]] = {}
        for name, version in self._all_files():
            found.setdefault(name, set()).add(version)
        return {name: sorted(found[name], key=_natural) for name in sorted(found)}

    def _all_files(self) -> dict[tuple[str, str], Path]:
        files = dict(self._files)
        if self._folder is not None:
            for path in sorted(self._folder.glob("*/*")):
                version = _version_of(path)
                if version and NAME.fullmatch(path.parent.name) and NAME.fullmatch(version):
                    files[path.parent.name, version] = path
        return files

    def active(self, name: str) -> Version:
        """Return the version that answers for a model; `""`: the only model, or the first by name.

        Raises:
            Refusal: 404, there is no such model; 503, it is not loaded yet.
        """
        if name in self._active:
            return self._active[name]
        if not name and self._active:
            return self._active[min(self._active)]
        if name in self.list_versions():
            raise Refusal(
                503, f"model {name} is not loaded", fix="try again later", retry_after_s=2
            )
        raise self._no_model(name)

    def _no_model(self, name: str) -> Refusal:
        known = ", ".join(self.list_versions())
        return Refusal(404, f"there is no model {name[:64]!r}", fix=f"ask for one of: {known}")

    @property
    def is_ready(self) -> bool:
        """Whether every model has a version that answers."""
        return bool(self._active) and all(
            name in self._active and self._active[name].is_up for name in self.list_versions()
        )

    def check_ready(self) -> None:
        """Check that every model answers.

        Raises:
            Refusal: 503, one does not.
        """
        if not self.is_ready:
            raise Refusal(503, "a model is not loaded", fix="try again later", retry_after_s=2)

    @property
    def num_waiting(self) -> int:
        """Samples that wait for any model."""
        loaded = (*self._active.values(), *self._before.values())
        return sum(version.queue.num_waiting for version in loaded)

    def state(self) -> list[dict]:
        """Return what there is, JSON-able."""
        return [
            {
                "name": name,
                "versions": versions,
                "active": self._active[name].version if name in self._active else None,
                "previous": self._before[name].version if name in self._before else None,
                "takes": self._active[name].takes if name in self._active else None,
            }
            for name, versions in self.list_versions().items()
        ]

    def open_all(self) -> None:
        """Load the newest version of every model.

        Raises:
            DeepSeekError: a file is damaged, or a model does not compute.
        """
        for name, versions in self.list_versions().items():
            self._active[name] = self._load(name, versions[-1])
        if not self._active:
            raise ConfigError(
                f"there is no model in {self._folder}", fix="put NAME/VERSION.bin into it"
            )

    async def activate(self, name: str, version: str) -> Version:
        """Put a version in the place of the one that answers; the old one is kept for `roll_back`.

        Raises:
            Refusal: 404, there is no such version; 409, it cannot be loaded: the old one stays.
        """
        if version not in self.list_versions().get(name, ()):
            known = ", ".join(self.list_versions().get(name, ())) or "none"
            raise Refusal(
                404, f"there is no version {version[:64]!r} of {name[:64]!r}", fix=f"known: {known}"
            )
        async with self._lock:
            if name in self._active and self._active[name].version == version:
                if self._stamp(name, version) != self._stamps.get((name, version)):
                    raise Refusal(
                        409, f"the file of {name}/{version} is another one since it was loaded",
                        fix="put it there as another version",
                    )  # fmt: skip
                return self._active[name]
            if name in self._before and self._before[name].version == version:
                self._active[name], self._before[name] = self._before[name], self._active[name]
                return self._active[name]
            try:
                loaded = await asyncio.to_thread(self._load, name, version)
            except DeepSeekError as error:
                raise Refusal(
                    409, f"{name}/{version} cannot be served: {error.message}", fix=error.fix or ""
                ) from error
            forgotten = self._before.pop(name, None)
            if name in self._active:
                self._before[name] = self._active[name]
            self._active[name] = loaded
            if forgotten is not None:
                self._let_go(forgotten)
            return loaded

    async def roll_back(self, name: str) -> Version:
        """Put the version back that answered before, which is still loaded; let the other one go.

        Asked again, it changes nothing: a client that has missed the answer may ask twice.

        Raises:
            Refusal: 404, there is no such model; 409, no other version has answered since it
                started, or since it was rolled back.
        """
        if name not in self.list_versions():
            raise self._no_model(name)
        async with self._lock:
            if name not in self._before:
                now = self.active(name).version
                raise Refusal(
                    409, f"version {now} of {name[:64]} answers, and none is kept from before it",
                    fix="activate one by name",
                )  # fmt: skip
            self._let_go(self._active[name])
            self._active[name] = self._before.pop(name)
            return self._active[name]

    def _let_go(self, version: Version) -> None:
        """Close a version once it has finished what it has begun."""
        closing = asyncio.create_task(version.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def loaded(self, name: str, version: str) -> Version:
        """Return a version that is loaded: the one that answers, or the one before it.

        Raises:
            Refusal: 404, there is no such model, or the version is not loaded; 503, the model is
                not loaded yet.
        """
        known = [self.active(name), *([self._before[name]] if name in self._before else [])]
        for each in known:
            if each.version == version:
                return each
        there = ", ".join(each.version for each in known)
        raise Refusal(
            404, f"version {version[:64]!r} of {name[:64]} is not loaded",
            fix=f"ask for one of: {there}; or activate one of:"
            f" {', '.join(self.list_versions()[known[0].name])}",
        )  # fmt: skip

    async def close(self) -> None:
        """Finish what was begun, and let go of all models."""
        for version in (*self._active.values(), *self._before.values()):
            await version.close()

    def _load(self, name: str, version: str) -> Version:
        with self._loading:
            self._stamps[name, version] = self._stamp(name, version)
            return self._build(name, version, self._all_files()[name, version])

    def _stamp(self, name: str, version: str) -> tuple[int, int]:
        """Return what changes where a file is replaced."""
        found = self._all_files()[name, version].stat()
        return found.st_mtime_ns, found.st_size


def _version_of(path: Path) -> str | None:
    """Return what a file of the folder is called, or `None` where it is no version."""
    if path.suffix != SUFFIX:
        return path.name if description_of(path).is_file() else None
    # the weights of OpenVINO lie beside their graph, and are none by themselves
    is_part = description_of(path.with_suffix(".xml")).is_file()
    return None if is_part and not description_of(path).is_file() else path.stem


def _natural(version: str) -> list:
    """Sort `v10` behind `v9`."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", version)
        if part
    ]
