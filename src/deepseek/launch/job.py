"""What is to be started: the program, how often, and where the hosts meet."""

import re
from dataclasses import dataclass, field

from deepseek.errors import ConfigError
from deepseek.launch.endpoint import Endpoint
from deepseek.launch.environment import count_gpus

DEFAULT_RESTARTS = 3
RENDEZVOUS_DEFAULTS = {
    # A host counts as dead after 3 x 3 s without a sign of life. A busy host answers late, so less
    # would restart jobs that are well.
    "keep_alive_interval": "3",
    "keep_alive_max_attempt": "3",
    # How long an elastic job waits for more hosts once it has enough. torch's 30 s would be most of
    # a recovery; a host that comes later joins by a restart.
    "last_call_timeout": "5",
    # How long one question to the store may take. It is above `watch.LOST_AFTER_S`: an agent that
    # gives up by itself closes the rendezvous for all, as soon as it can reach it again.
    "read_timeout": "60",
}
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Job:
    """One training, as every host that takes part in it is told.

    Args:
        program: a deepseek command, `script.py` or `-m module`, with its arguments.
        nproc: workers on each host.
        min_nodes, max_nodes: hosts with which it runs; equal unless it is elastic.
        endpoints: where hosts meet, in the order of preference; none for a single host.
        run_id: the same on every host, and again when a job goes on later.
        max_restarts: how often torchrun starts the workers again.
        supervised: whether the death of the rendezvous host is survived.
        timeout_s: how long to wait for other hosts.
        grace_s: how long workers may take to save after a signal.
        local_addr: address of this host for the others; found out where it is `None`.
        rendezvous: settings of torch's rendezvous over `RENDEZVOUS_DEFAULTS`.
        is_placed: whether a cluster says where the hosts meet.
    """

    program: tuple[str, ...]
    nproc: int = 1
    min_nodes: int = 1
    max_nodes: int = 1
    endpoints: tuple[Endpoint, ...] = ()
    run_id: str = "run"
    max_restarts: int = 0
    supervised: bool = False
    timeout_s: int = 600
    grace_s: int = 120
    local_addr: str | None = None
    rendezvous: dict[str, str] = field(default_factory=dict)
    is_placed: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is started.

        Raises:
            ConfigError: names the option and the rule.
        """
        if not RUN_ID.fullmatch(self.run_id):
            raise ConfigError(
                f"--rdzv-id={self.run_id} is not a name of letters, digits, '.', '_' and '-'",
                fix="choose a name such as bert-large.3",
            )
        if self.is_placed:
            return
        if self.has_many_hosts and not self.endpoints:
            raise ConfigError(
                f"--nnodes={self.nnodes} without --rdzv-endpoint: hosts do not know where to meet",
                fix="add --rdzv-endpoint HOST:29500, the same on every host",
            )
        if self.supervised and not self.endpoints:
            raise ConfigError(
                "--supervise without --rdzv-endpoint: there is no rendezvous host to survive",
                fix="add --rdzv-endpoint FIRST:29500,SECOND:29500, or leave --supervise away",
            )
        if len(self.endpoints) > 1 and not self.supervised:
            raise ConfigError(
                f"{len(self.endpoints)} rendezvous endpoints without --supervise: only the first"
                " would be used",
                fix="add --supervise, or name one endpoint",
            )

    @property
    def nnodes(self) -> str:
        """The number of hosts as torchrun writes it."""
        if self.min_nodes == self.max_nodes:
            return str(self.max_nodes)
        return f"{self.min_nodes}:{self.max_nodes}"

    @property
    def has_many_hosts(self) -> bool:
        """Whether more than one host may take part."""
        return self.max_nodes > 1


def parse_nodes(text: str) -> tuple[int, int]:
    """Read `N` or `MIN:MAX`.

    Raises:
        ConfigError: unless 1 <= MIN <= MAX.
    """
    low, separator, high = text.partition(":")
    high = high if separator else low
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise ConfigError(
            f"--nnodes={text} is not N or MIN:MAX with 1 <= MIN <= MAX",
            fix="write a number of hosts such as 4, or a range such as 2:4",
        )
    return int(low), int(high)


def parse_nproc(text: str) -> int:
    """Read a number of processes, or "auto" for the GPUs of this host (1 without any).

    Raises:
        ConfigError: for anything else.
    """
    if text == "auto":
        return count_gpus() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f'--nproc={text} is not a number of processes >= 1, nor "auto"',
            fix="write the number of GPUs of one host",
        )
    return int(text)


def parse_rendezvous(text: str) -> dict[str, str]:
    """Read `key=value,key=value`.

    Raises:
        ConfigError: for an entry without key or value.
    """
    settings = {}
    for entry in filter(None, text.split(",")):
        key, separator, value = (part.strip() for part in entry.partition("="))
        if not (separator and key and value):
            raise ConfigError(
                f"--rdzv-conf={text}: {entry!r} is not KEY=VALUE",
                fix="write settings such as last_call_timeout=10,read_timeout=30",
            )
        settings[key] = value
    return settings


def check_program(words: tuple[str, ...]) -> None:
    """Refuse a program that no worker could start.

    Raises:
        ConfigError: if there is none, or `-m` names no module.
    """
    if not words or words == ("-m",):
        raise ConfigError(
            "nothing to launch",
            fix="end the command with a deepseek command or a script:"
            " deepseek launch --nproc 2 train model_config.yaml",
        )
    if words[0].startswith("-") and words[0] != "-m":
        raise ConfigError(
            f"{words[0]} is no option of `deepseek launch`, and no program to launch",
            fix="see `deepseek launch --help`; options of the program stand behind its name",
        )
