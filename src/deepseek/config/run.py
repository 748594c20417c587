"""`RunConfig`: everything that decides what a run does, in one object."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from deepseek.config.model import ModelConfig
from deepseek.config.nodule_data import NoduleDataConfig
from deepseek.config.settings import Settings, Whole
from deepseek.config.text_data import AnyDataConfig
from deepseek.config.trainer import TrainerConfig

SHARED = (("seed", None), ("num_workers", "data"))
"""Settings of `trainer` that may be given in another place too: key, section (None: the top)."""


class RunConfig(Settings):
    """A run: data, model, trainer."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run; its folder is `OUTPUT/NAME-N`. Letters, digits, `.`, `_`, `-`."""
    seed: Whole = Field(default=0, ge=0, lt=2**63)
    """Decides weights, order of the data and augmentation."""
    output: str = Field(default="runs", min_length=1)
    """Folder in which the run's own folder is made."""
    data: AnyDataConfig
    """Training and validation data: at least `train`."""
    model: ModelConfig
    """The model: at least `architecture`."""
    trainer: TrainerConfig = TrainerConfig()
    """How the model is trained."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for key, section in SHARED:
            other = self if section is None else getattr(self, section)
            if not {key} <= other.model_fields_set & self.trainer.model_fields_set:
                continue
            here, there = getattr(other, key), getattr(self.trainer, key)
            if here != there and "auto" not in (here, there):
                name = key if section is None else f"{section}.{key}"
                raise PydanticCustomError(
                    "contradiction",
                    "{name}={here} and trainer.{key}={there} contradict each other",
                    {
                        "name": name,
                        "here": here,
                        "key": key,
                        "there": there,
                        "keys": [f"trainer.{key}", name],
                        "fix": f"keep one of {name} and trainer.{key}",
                    },
                )
        key = "fold" if isinstance(self.data, NoduleDataConfig) else "val"
        if self.trainer.early_stopping is not None and getattr(self.data, key) is None:
            raise PydanticCustomError(
                "contradiction",
                "trainer.early_stopping={patience} evaluations, but data.{key}=null: "
                "there is nothing to evaluate on",
                {
                    "patience": self.trainer.early_stopping,
                    "key": key,
                    "keys": ["trainer.early_stopping", f"data.{key}"],
                    "fix": f"give data.{key}, or remove early_stopping",
                },
            )
        return self


def resolve(config: RunConfig) -> RunConfig:
    """Return `config` with the settings that may stand in two places equal in both.

    A value that was written wins over a default, a number over `auto`.
    """
    data, trainer, top = config.data, config.trainer, {}
    for key, section in SHARED:
        other = config if section is None else data
        written = key in trainer.model_fields_set and getattr(trainer, key) != "auto"
        value = getattr(trainer if written else other, key)
        trainer = trainer.model_copy(update={key: value})
        if section is None:
            top[key] = value
        else:
            data = data.model_copy(update={key: value})
    return config.model_copy(update={**top, "data": data, "trainer": trainer})
