"""A new head learns alone before all weights do, in a run of its own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.datasets import TextDataset
from deepseek.errors import ConfigError
from deepseek.finance.same_texts import SameTexts
from deepseek.models import ModelEngine
from deepseek.models.encoder import Encoder
from deepseek.trainer import Trainer
from deepseek.trainer.run_folder import RUNS, RunFolder

_NOT_OF_THE_HEAD = ("epochs", "max_steps", "time_budget", "lora", "warmup")


@dataclass(frozen=True)
class HeadRun:
    """Where the run of the head is: `NAME-head-N`, or beside a given folder, `FOLDER_head`.

    Attributes:
        name: of the run that follows.
        run_dir: of it; `None`: numbered.
        output: where numbered run folders are.
    """

    name: str
    run_dir: Path | None
    output: Path = RUNS

    def was_last(self) -> bool:
        """Return whether the head has begun, and what follows it has not."""
        following = self.run_dir or RunFolder.newest(self.name, self.output)
        return _began(self._find()) > _began(following)

    @property
    def folder(self) -> Path | None:
        """The folder, where it is not numbered."""
        if self.run_dir is None:
            return None
        return self.run_dir.with_name(f"{self.run_dir.name}_head")

    def train(
        self,
        engine: ModelEngine,
        data: TextDataset,
        same_texts: SameTexts,
        steps: int,
        settings: Mapping[str, Any],
        *,
        goes_on: bool,
    ) -> None:
        """Let what is behind the blocks learn alone; a weight that the embedding shares stays.

        Args:
            engine: an encoder, with the head.
            data: to learn from.
            same_texts: their hash.
            steps: of the optimizer.
            settings: of the run that follows; the head has a length and a warm-up of its own.
            goes_on: with what an earlier run of the head has saved.
        """
        if not isinstance(engine.module, Encoder):
            raise ConfigError(
                f"head_steps={steps}: the head of a {engine.architecture!r} is not new",
                fix="leave head_steps out",
            )
        was_trained = {n: weight.requires_grad for n, weight in engine.module.named_parameters()}
        for n, weight in engine.module.named_parameters():
            weight.requires_grad_(n.startswith("transform.") or n == "head.bias")
        own = {key: value for key, value in settings.items() if key not in _NOT_OF_THE_HEAD}
        try:
            Trainer(
                engine, data, None, callbacks=[same_texts], run_dir=self.folder,
                resume=self._find_saved() if goes_on else None, name=f"{self.name}-head",
                max_steps=steps, **own,
            ).fit()  # fmt: skip
        finally:
            for n, weight in engine.module.named_parameters():
                weight.requires_grad_(was_trained[n])

    def _find(self) -> Path | None:
        return self.folder or RunFolder.newest(f"{self.name}-head", self.output)

    def _find_saved(self) -> Path | None:
        """Return the run of the head if it has saved anything; else let its folder be free."""
        head = self._find()
        if head is None or RunFolder(head).has_saved:
            return head
        if head == self.folder:
            RunFolder(head).begin_anew()
        return None


def _began(folder: Path | None) -> str:
    """Return the time at which a run began; empty where there is none."""
    if folder is None:
        return ""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["started"]
    except (OSError, ValueError, KeyError):
        return ""
