"""Names of learning-rate schedules: a setting that is checked before anything starts."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from deepseek.registry import Registry, nearest

# (progress after warm-up in [0, 1], share of the peak at the end) -> share of the peak
Shape = Callable[[float, float], float]
_OWN = {
    "constant": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "polynomial": "polynomial",
    "wsd": "wsd",
    "one_cycle": "cosine",  # its rise is the warm-up: `one_cycle` warms up over 30 %
}
SCHEDULES: Registry[Shape] = Registry(
    "schedule", {name: f"deepseek.trainer.schedule:{shape}" for name, shape in _OWN.items()}
)


def _check(name: str) -> str:
    if name in SCHEDULES:
        return name
    near = nearest(name, SCHEDULES.names(), count=1)
    fix = f"did you mean `{near[0]}`?" if near else "take one of these, or install its plug-in"
    raise PydanticCustomError(
        "told",
        "expected one of {known}",
        {"known": ", ".join(SCHEDULES.names()), "fix": fix},
    )


ScheduleName = Annotated[
    str, AfterValidator(_check), WithJsonSchema({"type": "string", "examples": list(_OWN)})
]
