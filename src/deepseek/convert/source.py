"""Where weights come from: a module, a state dict, a file, a folder, or a name of timm."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepseek.convert.huggingface_folder import read_folder, refuse_code
from deepseek.convert.tensors import check_tensors
from deepseek.convert.unpickle import unpickle
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.model_file import KEY
from deepseek.models.pretrained import find_transformers_model
from deepseek.models.tensor_layout import MAX_HEADER_BYTES, read_layout
from deepseek.models.weights import WRAPPERS, read_pickle, read_weights
from deepseek.models.zoo import is_timm

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")


@dataclass(frozen=True)
class Source:
    """Weights, and what is known of the model that they are of.

    Attributes:
        name: where they come from, for messages.
        state: name -> tensor, plain, on the CPU.
        config: `config.json` of a Hugging Face model; empty if there is none.
        facts: arguments of our architectures that a module tells.
        module: the module, where there is one.
        timm_name: what timm calls it; empty if it is not timm's.
        files: further files that are carried along.
    """

    name: str
    state: dict[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    timm_name: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def read_source(
    model: object, *, allow_pickle: bool = False, unsafe_pickle: bool = False
) -> Source:
    """Return the weights of whatever was given.

    Args:
        model: a module, a state dict (or a dict around it), the path of a `.safetensors` or pickled
            file or of a Hugging Face folder, or a name of timm.
        allow_pickle: read pickled files of tensors with torch's restricted unpickler.
        unsafe_pickle: read a pickled module, in a process that can reach nothing.

    Raises:
        ConfigError: it is none of these, or a pickle that may not be read.
        CheckpointError: it is damaged, or holds something else.
    """
    if isinstance(model, nn.Module):
        return _read_module(model)
    if isinstance(model, Mapping):
        state = unwrap(model)
        return Source("the state dict", check_tensors(state, "the state dict"))
    if not isinstance(model, str | Path):
        raise ConfigError(
            f"a {type(model).__name__} is no model",
            fix="give a module, a state dict, the path of a file or folder, or a name of timm",
        )
    path = Path(model)
    if path.is_dir():
        folder = read_folder(path, allow_pickle=allow_pickle)
        state = check_tensors(folder.state, path)
        return Source(str(path), state, config=folder.config, files=folder.files)
    if path.is_file():
        return _read_file(path, allow_pickle, unsafe_pickle)
    if isinstance(model, str) and "/" not in model.removeprefix("timm/") and is_timm(model):
        return _read_module(ModelEngine(model, pretrained=True).module)
    raise ConfigError(
        f"{str(model)!r} is neither a file, a folder nor a name of timm", fix="check the path"
    )


def is_model_file(path: str | Path) -> bool:
    """Return whether there is a model file of this library."""
    path = Path(path)
    if not path.is_file() or _is_pickle(path):
        return False
    with open(path, "rb") as file:
        return KEY in read_layout(file, path).metadata


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        first = file.read(8)
    # the length of a safetensors header may begin with the byte of a pickle, but is smaller
    if len(first) == 8 and int.from_bytes(first, "little") <= MAX_HEADER_BYTES:
        return False
    return first[:4] == b"PK\x03\x04" or first[:1] == b"\x80"


def unwrap(content: Mapping) -> Mapping:
    """Return the state dict in what training scripts save around it."""
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, nn.Module):
            return inner.state_dict()
        if isinstance(inner, Mapping):
            return unwrap(inner)
    for prefix in ("module.", "_orig_mod."):  # DataParallel's and torch.compile's
        if content and all(str(name).startswith(prefix) for name in content):
            return unwrap({str(name).removeprefix(prefix): v for name, v in content.items()})
    return content


def _read_file(path: Path, allow_pickle: bool, unsafe_pickle: bool) -> Source:
    if is_model_file(path):
        raise ConfigError(
            f"{path} is a model file of this library already", fix="use ModelEngine.load(path)"
        )
    if not _is_pickle(path):
        return Source(str(path), check_tensors(read_weights(path), path))
    if unsafe_pickle:
        content = unpickle(path)
        refuse_code(content.config, path)
        return Source(
            f"{path} ({content.kind})",
            check_tensors(unwrap(content.state), path),
            config=content.config,
            facts=content.facts,
        )
    if not allow_pickle:
        raise ConfigError(
            f"{path} is a pickle, which can run code when it is loaded",
            fix="take a .safetensors file; or allow_pickle=True (--allow-pickle) for a state dict,"
            " unsafe_pickle=True (--unsafe-pickle) for a whole module",
        )
    return Source(str(path), check_tensors(unwrap(read_pickle(path)), path))


def _read_module(module: nn.Module) -> Source:
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    cfg = vars(module).get("pretrained_cfg")
    timm_name = str(cfg.get("architecture", "")) if isinstance(cfg, Mapping) else ""
    return Source(
        kind,
        check_tensors(module.state_dict(), kind),
        config=_find_config(module),
        facts=find_facts(module),
        module=module,
        timm_name=timm_name,
    )


def _find_config(module: nn.Module) -> Mapping[str, Any]:
    """Return the configuration of transformers' model that it is, or has inside; empty if none."""
    found = find_transformers_model(module)
    if found is None or getattr(found[1], "config", None) is None:
        return {}
    # "architectures" of a loaded module is that of the file, which may have been another's
    return {**found[1].config.to_dict(), "architectures": [type(found[1]).__name__]}


def find_facts(module: nn.Module) -> dict[str, Any]:
    """Return what the parts of a module say that its weights do not: heads and epsilon."""
    facts: dict[str, Any] = {}
    heads = {
        value
        for part in module.modules()
        for name in _HEADS
        if isinstance(value := vars(part).get(name), int) and not isinstance(value, bool)
    }
    epsilons = {part.eps for part in module.modules() if isinstance(part, nn.LayerNorm)}
    if len(heads) == 1:
        facts["heads"] = heads.pop()
    if len(epsilons) == 1:
        facts["norm_eps"] = epsilons.pop()
    return facts
