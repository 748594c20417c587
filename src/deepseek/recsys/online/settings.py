"""The settings of an online-learning service: `deepseek online serve cfg.yaml`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepseek.config.duration import Duration, parse_duration
from deepseek.config.settings import Number, Settings, Switch, Whole, unit
from deepseek.config.validation import validate_settings
from deepseek.errors import ConfigError

Name = Annotated[str, Field(min_length=1)]


class ServerSettings(Settings):
    """Where the service answers, and to whom."""

    host: Name = "127.0.0.1"
    """Address; others than loopback need `token_file`."""
    port: Annotated[Whole, Field(ge=0, le=65535)] = 8000
    """0: any that is free."""
    token_file: Name | None = None
    """Hashes of the tokens that are let in: `deepseek serve --new-token FILE`."""
    probe_port: Annotated[Whole, Field(ge=1, le=65535)] | None = None
    """Port that answers /health and /ready alone, without a token."""
    max_candidates: Annotated[Whole, Field(ge=1)] = 1000
    """Of a request to rank."""
    max_events: Annotated[Whole, Field(ge=1)] = 1000
    """Of a request that brings events."""


class LogSettings(Settings):
    """Where events are kept."""

    kind: Literal["sqlite", "redis", "kafka"] = "sqlite"
    """`sqlite`: a file in `folder`. `redis`: a stream of a Redis server. `kafka`: a topic."""
    url: Name = "redis://127.0.0.1:6379/0"
    """Of the Redis server; of Kafka `host:9092`, several with commas between them."""
    url_variable: Name | None = None
    """Environment variable that holds the address, with its password; it goes before `url`."""
    stream: Name = "deepseek:events"
    """Name of the stream, or topic."""
    options: dict[Name, str] = Field(default_factory=dict)
    """Of librdkafka, where the log is in Kafka; `$NAME` stands for an environment variable."""
    retention: Duration = "7d"
    """How long events stay after they were learnt from, and their ids are known."""
    max_waiting: Annotated[Whole, Field(ge=1)] = 50_000
    """Events that may wait for the disk; more are refused (429)."""


class LabelSettings(Settings):
    """How one label comes about."""

    event: Name
    """Kind of the event that makes it 1."""
    window: Duration = "10m"
    """Without that event for so long after the impression it is 0."""


class JoinSettings(Settings):
    """How impressions and what follows them become examples."""

    key: list[Name] = Field(default_factory=lambda: ["request_id"], min_length=1)
    """Fields of an event that say which impression it belongs to."""
    labels: dict[Name, LabelSettings] = Field(min_length=1)
    """Label of the model -> where it comes from."""
    late: Literal["correct", "drop"] = "correct"
    """What an event after its window does: it is learnt as a 1 after the 0, or counted only."""
    late_for: Duration = "1h"
    """How long after the window an event can still be late; then it belongs to nothing."""
    early_for: Duration = "1m"
    """How long an event waits for an impression that comes after it."""


class LearnerSettings(Settings):
    """How the model learns."""

    algorithm: Literal["adagrad", "sgd", "adam"] = "adagrad"
    """Optimizer; `adagrad` and `sgd` touch only the rows of a batch."""
    lr: Annotated[Number, Field(gt=0)] = 0.05
    """Learning rate."""
    cut_events: Annotated[Whole, Field(ge=1)] = 256
    """Events of the log after which what waits is learnt at the latest."""
    step_examples: Annotated[Whole, Field(ge=1)] = 32
    """Examples of one step of the optimizer: fewer learn more of each, and take longer."""
    tick: Duration = "0.25s"
    """Time after which events that wait are learnt from, be they ever so few."""
    clip_norm: Annotated[Number, Field(gt=0)] = 10.0
    """Longest gradient of an update."""
    seed: Whole = 0
    """Of what the model draws (dropout)."""
    checkpoint_every: Duration = "10s"
    """Time between two checkpoints: what a restart has to learn again at most."""
    publish_every: Duration = "1s"
    """Time between two versions."""
    keep_versions: Annotated[Whole, Field(ge=2)] = 20
    """Versions that stay."""


class GateSettings(Settings):
    """What a version must pass before it answers."""

    holdout: Name | None = None
    """A table with labels that no version learns from. `null`: only what is recent counts."""
    max_auc_drop: Annotated[Number, Field(ge=0)] = 0.01
    """Against the best version that was published, or the model that the service began with."""
    max_loss_rise: Annotated[Number, Field(ge=0, json_schema_extra=unit("nats"))] = 0.02
    """On the hold-out against the version that answers, on what is recent against an older one."""
    slices: list[Name] = Field(default_factory=list)
    """Columns of the hold-out; each of their values is looked at by itself."""
    max_slice_rise: Annotated[Number, Field(ge=0, json_schema_extra=unit("nats"))] = 0.05
    """Log-loss of a slice, against the model that the service began with."""
    min_slice: Annotated[Whole, Field(ge=1, json_schema_extra=unit("rows"))] = 50
    """Smaller slices are not looked at."""
    window: Annotated[Whole, Field(ge=10, json_schema_extra=unit("examples"))] = 2000
    """The recent window: metrics are of it."""


class GuardSettings(Settings):
    """What examples are kept away from the model."""

    window: Annotated[Whole, Field(ge=10, json_schema_extra=unit("examples"))] = 10_000
    """Over which clients are counted."""
    client_share: Annotated[Number, Field(gt=0, le=1)] = 0.05
    """Most that one client may have of what was learnt in the window, with `min_clients` there;
    three equal parts where that is more, and half where its labels are not known to go with the
    predictions."""
    min_clients: Annotated[Whole, Field(ge=2)] = 10
    """With fewer clients there is no limit."""
    outlier_nats: Annotated[Number, Field(gt=0)] = 8.0
    """An example with a higher loss before it is learnt is set aside."""
    flip_margin: Annotated[Number, Field(gt=0, json_schema_extra=unit("nats"))] = 0.5
    """A client whose mean loss is so much above that of all is set aside."""
    flip_errors: Annotated[Number, Field(gt=0, json_schema_extra=unit("standard errors"))] = 3.0
    """A client whose labels go against the predictions by so much, while others' go with them, is
    set aside; one whose labels go with them by so much is known to."""
    flip_examples: Annotated[Whole, Field(ge=1)] = 50
    """Examples that a client is judged by, at least."""


class CrossSettings(Settings):
    """Counters that move with every event (`RealTimeCrosses`)."""

    keys: list[list[Name]] = Field(min_length=1)
    """Columns of an impression, or several that are crossed."""
    windows: list[Name] = Field(default_factory=lambda: ["1h", "1d", "7d", "all"])
    """Of time."""
    prior: Annotated[Number, Field(ge=0, le=1)] = 0.1
    """Rate of a key that was never shown."""
    smoothing: Annotated[Number, Field(gt=0)] = 20.0
    """How many times a key must be shown to count as much as the prior."""
    max_keys: Annotated[Whole, Field(ge=1)] = 1_000_000
    """Of each kind."""


class OnlineSettings(Settings):
    """A service that learns from events and ranks."""

    model: Name
    """The model it begins with: a model file that was trained on a table."""
    folder: Name = "online"
    """Where log, checkpoints and versions are."""
    join: JoinSettings
    server: ServerSettings = Field(default_factory=ServerSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    learner: LearnerSettings = Field(default_factory=LearnerSettings)
    gate: GateSettings = Field(default_factory=GateSettings)
    guard: GuardSettings = Field(default_factory=GuardSettings)
    crosses: CrossSettings | None = None
    trains: Switch = True
    """Whether this service learns; without it, it takes events and ranks."""

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)


def read_settings(path: str | Path) -> OnlineSettings:
    """Return the settings in a file; paths in it are relative to its folder.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    path = Path(path)
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read as settings: {error}", fix="check the path, or mend it"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings", fix="see docs/online.md")
    settings = validate_settings(OnlineSettings, content)
    base = path.parent
    gate, server = settings.gate, settings.server
    if gate.holdout is not None:
        gate = gate.model_copy(update={"holdout": str(base / gate.holdout)})
    if server.token_file is not None:
        server = server.model_copy(update={"token_file": str(base / server.token_file)})
    return settings.model_copy(
        update={
            "model": str(base / settings.model),
            "folder": str(base / settings.folder),
            "gate": gate,
            "server": server,
        }
    )


def seconds(text: str) -> float:
    """Return the seconds of a duration."""
    return parse_duration(text)
