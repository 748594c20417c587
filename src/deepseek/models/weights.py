"""Weights from files and from the network, and how they are put into a module.

Where published weights are looked for, in this order: the folder named by `DEEPSEEK_WEIGHTS`
(`ARCHITECTURE.safetensors`, or `.bin`), the Hugging Face cache, the Hugging Face hub.
"""

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.errors import CheckpointError, ConfigError
from deepseek.models.growing_table import growing_tables
from deepseek.models.model_file import KEY, read_model_file, read_tensors
from deepseek.models.tensor_layout import read_layout

FOLDER_VARIABLE = "DEEPSEEK_WEIGHTS"
NETWORK_TIMEOUT_S = 5.0
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep a state dict."""
_PICKLED = frozenset([".pt", ".pth", ".th", ".ckpt", ".pkl", ".pickle"])
_MAX_LISTED = 8


def read_weights(path: str | Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, a model file, or, if allowed, a pickled file.

    Args:
        path: the file.
        allow_pickle: read `.pt`, `.pth`, ... with torch's restricted unpickler.

    Raises:
        ConfigError: if there is no such file, or it is a pickle and `allow_pickle` is false.
        CheckpointError: if it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"weights={str(path)!r} is not a file", fix="check the path")
    if path.suffix.lower() in _PICKLED:
        if not allow_pickle:
            raise ConfigError(
                f"weights={str(path)!r} is a pickled file, which can run code when it is loaded",
                fix="give a .safetensors file, or allow_pickle=True if you trust where it comes"
                " from",
            )
        return read_pickle(path)
    with open(path, "rb") as file:
        layout = read_layout(file, path)
        if KEY not in layout.metadata:
            return read_tensors(file, layout, path)[0]
    return read_model_file(path).state


def find_pretrained(architecture: str, timm_name: str | None) -> Path:
    """Return a local file with the published weights of an architecture, fetched if need be.

    Args:
        architecture: the name that the user gave.
        timm_name: what timm calls it; `None` if timm has no such model.

    Raises:
        ConfigError: if there are none, or they cannot be fetched; says how to use a local file.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    name = architecture.removeprefix("timm/")
    if folder:
        for suffix in (".safetensors", ".bin"):
            if (path := Path(folder) / f"{name}{suffix}").is_file():
                return path
    fix = (
        f"give weights='FILE.safetensors', or put {name}.safetensors into the folder named by the"
        f" environment variable {FOLDER_VARIABLE}, or leave pretrained=True out"
    )
    cfg = (
        importlib.import_module("timm.models").get_pretrained_cfg(timm_name) if timm_name else None
    )
    if cfg is None or not cfg.hf_hub_id:
        raise ConfigError(f"no published weights are known for {architecture!r}", fix=fix)
    return _fetch(architecture, cfg.hf_hub_id, fix)


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: object,
    head: Sequence[str] = (),
    assign: bool = False,
) -> None:
    """Put weights into a module, all of them.

    A head for another number of classes is left as it is, with a warning that names it.

    Args:
        module: where to.
        state: name -> tensor.
        source: where they come from, for messages.
        head: names of the modules that make logits.
        assign: take the tensors themselves rather than copy their values.

    Raises:
        CheckpointError: if names or shapes differ; lists them.
    """
    own = module.state_dict()
    state = dict(state)
    growing = tuple(f"{name}." for name in growing_tables(module))
    replaced: list[str] = []
    for name in head:
        ours = {key: own[key].shape for key in own if key.startswith(f"{name}.")}
        theirs = {key: state[key].shape for key in state if key.startswith(f"{name}.")}
        if ours != theirs:  # the whole of it: a new weight and an old bias fit nothing
            replaced += ours
            for key in theirs:
                del state[key]
    missing = [
        name
        for name in own
        # Weights older than this counter lack it; only a momentum of None would use it.
        if name not in (*state, *replaced) and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape and not name.startswith(growing)
    ]
    if missing or unexpected or reshaped:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        raise CheckpointError(
            f"{source} does not fit the model: "
            + "; ".join(f"{what}: {_shorten(names)}" for what, names in lists.items() if names),
            fix="build the architecture, with the arguments, that these weights were saved from",
        )
    if replaced:
        warnings.warn(
            f"the head ({', '.join(replaced)}) is new: {source} has none of that shape",
            stacklevel=3,
        )
    module.load_state_dict(state, strict=False, assign=assign)


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_LISTED])
    rest = len(names) - _MAX_LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a state dict that `torch.save` wrote, with torch's restricted unpickler.

    Raises:
        CheckpointError: if it is damaged, needs more than that unpickler allows, or holds something
            else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails in any way on a damaged or refused file
        lines = (str(error) or repr(error)).splitlines()
        told = [line.strip() for line in lines if "Unsupported" in line]
        raise CheckpointError(
            f"{path} cannot be read as pickled weights: {(told or lines)[0]}",
            fix="save model.state_dict() with torch.save, or use safetensors; for a pickled module,"
            " see deepseek.convert",
        ) from error
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"{path} holds no state dict (name -> tensor)", fix="save model.state_dict() only"
        )
    # DataParallel puts a prefix before every name.
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _fetch(architecture: str, repository: str, fix: str) -> Path:
    hub = importlib.import_module("huggingface_hub")
    hub_utils = importlib.import_module("huggingface_hub.utils")
    name = "model.safetensors"
    try:
        return Path(hub.hf_hub_download(repository, name, local_files_only=True))
    except OSError:
        pass  # not in the cache: on to the network
    try:
        # The hub's own download retries for half a minute where there is no network: ask once.
        url = hub.hf_hub_url(repository, name)
        response = hub_utils.get_session().head(url, timeout=NETWORK_TIMEOUT_S)
        if response.status_code >= 400:
            raise OSError(f"HTTP status {response.status_code}")
        return Path(hub.hf_hub_download(repository, name, etag_timeout=NETWORK_TIMEOUT_S))
    except Exception as error:  # httpx, hub and operating system each have their own
        raise ConfigError(
            f"the published weights of {architecture!r} ({repository}) cannot be fetched:"
            f" {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix=fix,
        ) from error
