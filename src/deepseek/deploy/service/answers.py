"""What an answer holds, for the interface at `/openapi.json`: generated clients have types by it.

Nothing is checked with these: an answer is written as it is.
"""

from pydantic import BaseModel, ConfigDict


class Guess(BaseModel):
    """A class and its probability, 0..1."""

    label: str
    index: int
    prob: float


class Span(BaseModel):
    """A part of a text that was sent: `text[start:end]`; a pattern gives no `prob`.

    Of a model of several tasks, `task` is the one that found it.
    """

    kind: str
    text: str
    start: int
    end: int
    prob: float | None = None
    task: str | None = None


class Said(BaseModel):
    """What is said of a sample: a class and the best ones, or a number or several."""

    label: str | None = None
    index: int | None = None
    prob: float | None = None
    top: list[Guess] | None = None
    value: float | list[float] | None = None


class Prediction(Said):
    """Of a sample; of several tasks each by its name, of a row a score for each label."""

    tasks: dict[str, Said] | None = None
    scores: dict[str, float] | None = None
    spans: list[Span] | None = None


class Finding(BaseModel):
    """In millimetres of the patient (LPS); what a detector tells besides, such as `malignancy`."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"additionalProperties": {"type": "number"}}
    )

    x: float
    y: float
    z: float
    diameter_mm: float
    score: float


class Predictions(BaseModel):
    """Of `/predict`: `predictions`; of a volume the millilitres of each class, or findings."""

    model: str
    version: str
    predictions: list[Prediction] | None = None
    ml: dict[str, float] | None = None
    findings: list[Finding] | None = None


class OutputTensor(BaseModel):
    """Numbers in the order of rows."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Inference(BaseModel):
    """Of the Open Inference Protocol, version 2."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]
