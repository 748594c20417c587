"""Architecture and weights put together: published, from a local file, or from a model file."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.datasets.spec import DataSpec
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models.changes import apply_changes
from deepseek.models.classifier import Classifier
from deepseek.models.decoder import VOCABULARY_MULTIPLE, Decoder
from deepseek.models.model_file import ModelFile
from deepseek.models.multi_head import MultiHead
from deepseek.models.pretrained import PretrainedLogits
from deepseek.models.weights import find_pretrained, load_weights, read_weights
from deepseek.models.zoo import build_model, is_own, is_timm, timm_head_names

# Arguments that say how many layers there are: a file cannot declare more than it has tensors.
_DEPTHS = (
    "num_layers", "depth", "depths", "layers", "num_blocks", "blocks", "num_levels", "num_experts",
    "num_own", "num_shared",
)  # fmt: skip
_SIZES = {"dcn_v2": ("num_experts",)}
"""Of these architectures they are sizes of tensors, and as harmless as those."""
_MAX_UNCHECKED_SIZE = 4096
FEW_FILL_UP = 0.9
"""Share of the rows of a vocabulary that its tokenizer has at least, the padding aside."""


def head_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that make logits, in one of our models or timm's."""
    if isinstance(module, Classifier):
        return module.hints.head[-1:]
    return timm_head_names(module)


def build_pretrained(
    architecture: str,
    path: Path | None,
    num_classes: int | None,
    args: Mapping[str, object],
    *,
    allow_pickle: bool,
) -> tuple[nn.Module, int | None]:
    """Build an architecture and load weights.

    Args:
        architecture: a name of the zoo.
        path: the weights; `None` looks for published ones.
        num_classes: outputs; `None` takes as many as the weights have.
        args: arguments of the architecture.
        allow_pickle: whether a pickled file may be read.

    Returns:
        The module and its number of classes, `None` where there is no head.
    """
    module = build_model(architecture, num_classes, args)
    if path is None:
        path = find_pretrained(architecture, _published_as(architecture))
    state = read_weights(path, allow_pickle=allow_pickle)
    heads = head_names(module)
    if num_classes is None:
        beside = module.outputs_beside if isinstance(module, Classifier) else 0
        num_classes = _count_classes(state, heads, beside)
        if num_classes is not None:
            build_head(module, num_classes)
    load_weights(module, state, source=path, head=heads)
    return module, num_classes


def build_head(module: nn.Module, num_classes: int, is_lent: bool = False) -> None:
    """Build a head in one of our models or timm's, in place of one that is there.

    The head of a decoder is its vocabulary, too: that which is there keeps its first rows. Where
    nobody has said of which tokenizer they are (`is_lent`), many too many are warned of.

    Raises:
        ConfigError: a decoder has fewer rows.
    """
    if isinstance(module, Decoder) and module.head is not None:
        num_rows = len(module.head.weight)
        if is_lent and num_classes < FEW_FILL_UP * num_rows - VOCABULARY_MULTIPLE:
            warnings.warn(
                f"the first {num_classes} of {num_rows} rows of the vocabulary are kept: the data"
                " must be of the tokenizer that the weights were trained with",
                stacklevel=2,
            )
        module.narrow(num_classes)
        return
    if isinstance(module, Classifier):
        module.bind_classes(num_classes)
        return
    device = next(module.parameters()).device
    module.reset_classifier(num_classes)  # pyright: ignore[reportCallIssue]  # timm's convention
    module.to(device).train(module.training)


def build_from_file(
    path: str | Path,
    content: ModelFile,
    args: Mapping[str, object],
    num_classes: int | None,
    module: nn.Module | None,
) -> tuple[nn.Module, bool]:
    """Build what a model file holds, or fill `module` with it.

    Returns:
        The module, and whether it is foreign to the zoo.

    Raises:
        CheckpointError: if the architecture needs a module or cannot be built, or does not fit.
        ConfigError: if `module` cannot agree with the data that it was trained on.
    """
    name = content.architecture
    is_known = is_own(name) or is_timm(name)
    if module is not None:
        if isinstance(module, MultiHead) and not module.heads:
            module.build_heads(content.config.get("heads", {}))
        apply_changes(module, content.changes, path)
        load_weights(module, content.state, source=path)
    elif is_known:
        module = _build_known(path, content, args, num_classes)
    else:
        what = f"{name!r}, which is no architecture of this library"
        raise _needs_module(path, what, f"{name.rpartition('.')[-1]}(...)")
    if content.spec is not None:
        _agree(module, content.spec)
    return module, not is_known


def _agree(module: nn.Module, spec: DataSpec) -> None:
    """Tell a module what it knows from the data, and not from its weights or arguments."""
    if isinstance(module, MultiHead) and spec.tasks.keys() == module.heads.keys():
        module.order_heads(spec.tasks)
    trunk = module.trunk if isinstance(module, MultiHead) else module
    if isinstance(trunk, PretrainedLogits):
        trunk.bind(spec)


def _build_known(
    path: str | Path, content: ModelFile, args: Mapping[str, object], num_classes: int | None
) -> nn.Module:
    name = content.architecture
    if "trunk" in args and args["trunk"] is None:
        what = f"a {name!r} whose trunk is no architecture of this library"
        raise _needs_module(path, what, "MultiHead.around(MODULE, dim=...)")
    inner: object = args
    while isinstance(inner, Mapping):
        _check_sizes(path, content, inner)
        inner = inner.get("trunk_args")
    try:
        with torch.device("meta"):
            skeleton = build_model(name, num_classes, args)
            apply_changes(skeleton, content.changes, path)
    except CheckpointError:
        raise
    except Exception as error:  # some of timm's models compute with tensors while they are built
        if is_own(name) or isinstance(error, ConfigError | TypeError):
            raise _unbuildable(path, name, error) from error
        skeleton = _build_unchecked(path, name, num_classes, args)
        apply_changes(skeleton, content.changes, path)
    else:
        # Without initialisation where the file brings everything; buffers that it does not bring
        # must be computed, in a second, real model: its size is the file's by then.
        persistent = set(skeleton.state_dict())
        if any(buffer not in persistent for buffer, _ in skeleton.named_buffers()):
            load_weights(skeleton, content.state, source=path, assign=True)
            skeleton = build_model(name, num_classes, args)
            apply_changes(skeleton, content.changes, path)
    load_weights(skeleton, _as_parameters(skeleton, content.state), source=path, assign=True)
    return skeleton


def _needs_module(path: str | Path, what: str, made_by: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds the weights of {what}",
        fix=f"build it and hand it over: ModelEngine.load(path, module={made_by})",
    )


def _check_sizes(path: str | Path, content: ModelFile, args: Mapping[str, object]) -> None:
    sizes = _SIZES.get(content.architecture, ())
    for key in (key for key in _DEPTHS if key not in sizes):
        value = args.get(key)
        counts = value if isinstance(value, list) else [value]
        if any(isinstance(count, int) and count > len(content.state) for count in counts):
            raise CheckpointError(
                f"{path} declares {key}={value} for {len(content.state)} tensors",
                fix="save the model anew, from where its weights are known to be right",
            )


def _build_unchecked(
    path: str | Path, name: str, num_classes: int | None, args: Mapping[str, object]
) -> nn.Module:
    """Build with real memory, so only with sizes that cannot exhaust it."""
    for key, value in args.items():
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int) and size > _MAX_UNCHECKED_SIZE:
                raise CheckpointError(
                    f"{path} declares {key}={value}, above {_MAX_UNCHECKED_SIZE}",
                    fix="build the model yourself: ModelEngine(architecture, weights=path)",
                )
    try:
        return build_model(name, num_classes, args)
    except Exception as error:
        raise _unbuildable(path, name, error) from error


def _unbuildable(path: str | Path, name: str, error: Exception) -> CheckpointError:
    reason = error.message if isinstance(error, ConfigError) else str(error)
    return CheckpointError(
        f"{path} declares a {name!r} that cannot be built: {reason}",
        fix="use the version of the library that wrote the file, or save the model anew",
    )


def _as_parameters(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # One Parameter per tensor: names that share one in the file share it in the module.
    made: dict[int, nn.Parameter] = {}
    prepared = dict(state)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in state:
            tensor = state[name]
            made.setdefault(id(tensor), nn.Parameter(tensor, parameter.requires_grad))
            prepared[name] = made[id(tensor)]
    return prepared


def _published_as(architecture: str) -> str | None:
    name = architecture.removeprefix("timm/")
    return name if is_timm(name) else None


def _count_classes(state: Mapping[str, Tensor], heads: tuple[str, ...], beside: int) -> int | None:
    for head in heads:
        weight = state.get(f"{head}.weight")
        if weight is not None and weight.ndim >= 2 and len(weight) > beside:
            return len(weight) - beside
    return None
