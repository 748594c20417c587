"""Models of other libraries into engines of this one, and back."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.convert.family import Family
from deepseek.convert.mapping import bring_in, bring_out, check_names, respell
from deepseek.convert.module_comparison import compare_with_module, compare_with_timm
from deepseek.convert.pictures import picture_spec
from deepseek.convert.recognition import FAMILIES, Recognised, family_names, find_layers, recognise
from deepseek.convert.report import Assumption, Fate, Report
from deepseek.convert.source import Source, read_source
from deepseek.convert.tensors import cast_weights
from deepseek.convert.tokenizers import class_names, text_spec
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine
from deepseek.models.assembly import build_from_file
from deepseek.models.classifier import Classifier
from deepseek.models.decoder import Decoder
from deepseek.models.lora import merge_lora
from deepseek.models.model_file import ModelFile
from deepseek.models.pretrained import given_module
from deepseek.models.quantized import DTYPES, schemes_of
from deepseek.models.weights import load_weights
from deepseek.models.zoo import build_model, check_model_args, is_timm

_CHOSEN = ("context_length", "dropout", "num_classes", "outputs")
"""Arguments that may be other than what a model was trained with."""
_WEIGHTS_LOST = "left out of the conversion: {names} (all of it is in deepseek.convert.convert)"


@dataclass(frozen=True)
class Conversion:
    """An engine, and how it came about.

    Attributes:
        engine: the model.
        report: what became of every tensor, and what was assumed.
        family: how the weights were spelled; `None` where the module was kept as it is.
        source: what was read.
        state: the weights in the family's spelling of files; empty where there is no family.
    """

    engine: ModelEngine
    report: Report
    family: Family | None
    source: Source = field(repr=False)
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def pytorch_to_deepseek(
    model: object,
    *,
    family: str | None = None,
    allow_pickle: bool = False,
    unsafe_pickle: bool = False,
    dtype: str = "float32",
    **args: object,
) -> ModelEngine:
    """Return an engine with the weights of a model of another library.

    Where this library has a model that computes the same, the engine is built of that: every kind
    of parallelism, recomputation and the planner work on it, and its file needs nothing else. Any
    other module is kept as it is.

    Args:
        model: a module (own classes too), a state dict, the path of a `.safetensors` or pickled
            file or of a Hugging Face folder, or a name of timm.
        family: of the weights, where names and shapes leave it open; one of `family_names()`.
        allow_pickle: read a pickled state dict (`.pt`, `.bin`) with torch's restricted unpickler.
        unsafe_pickle: read a pickled whole module, in a process that can reach nothing.
        dtype: of the weights: "float32", "bfloat16", "float16", or "keep".
        args: arguments of our architecture that the weights do not tell, such as `heads`, or
            that choose what becomes of them, such as `outputs`.

    Raises:
        ConfigError: the model cannot be read, or an argument is wrong or missing.
        CheckpointError: the weights are damaged, quantised, or do not fit any model.

    Example:
        >>> from torchvision.models import resnet18
        >>> pytorch_to_deepseek(resnet18(num_classes=3).state_dict()).architecture
        'imagenet_resnet'
    """
    conversion = convert(
        model, family=family, allow_pickle=allow_pickle, unsafe_pickle=unsafe_pickle, dtype=dtype,
        **args,
    )  # fmt: skip
    if conversion.report.lost:
        names = ", ".join(conversion.report.lost)
        warnings.warn(_WEIGHTS_LOST.format(names=names), stacklevel=2)
    return conversion.engine


def convert(
    model: object,
    *,
    family: str | None = None,
    allow_pickle: bool = False,
    unsafe_pickle: bool = False,
    dtype: str = "float32",
    **args: object,
) -> Conversion:
    """Return the engine that `pytorch_to_deepseek` does, with the report.

    Args:
        model: as there.
        family: as there.
        allow_pickle: as there.
        unsafe_pickle: as there.
        dtype: as there.
        args: as there.
    """
    if isinstance(model, ModelEngine):
        raise ConfigError("this is a ModelEngine already", fix="use it as it is")
    source = read_source(model, allow_pickle=allow_pickle, unsafe_pickle=unsafe_pickle)
    named = family or _family_of_config(source)
    found = recognise(source.state, source.name, named)
    if source.module is None:
        if found is None:
            raise _unrecognised(source, named)
        return _convert_weights(source, found, args, dtype)
    try:
        if found is None:
            raise _unrecognised(source, named)
        conversion = _convert_weights(source, found, args, dtype)
        difference = compare_with_module(conversion.engine, found, source, source.module)
        if difference.is_small:
            conversion.report.notes.append(f"compared with the module: {difference.describe()}")
            return conversion
        reason = (
            f"its names are those of {found.family.title}, but it computes something else:"
            f" {difference.describe()}"
        )
    except (CheckpointError, ConfigError) as error:
        if args or family:  # the user has said what it is
            raise
        reason = error.message
    if dtype not in ("float32", "keep"):
        raise ConfigError(
            f"dtype={dtype!r} is for models of ours, and this one is kept as it is: {reason}",
            fix="leave dtype out, and give the module in that dtype",
        )
    return _keep_module(source, source.module, reason)


def deepseek_to_pytorch(engine: ModelEngine, layout: str = "auto") -> dict[str, Tensor]:
    """Return the weights of an engine as a state dict of another library.

    Args:
        engine: of one of our architectures; of any other the state dict is returned as it is.
        layout: "huggingface", "timm" or "torchvision", whose model's `load_state_dict` takes the
            result; "auto" takes the first that has such a model.

    Raises:
        ConfigError: no model of that library computes what this one does, or it was cut or
            quantised.
    """
    _check_whole(engine)
    engine = merge_lora(engine)
    if not isinstance(engine.module, Classifier):
        state = given_module(engine.module).state_dict()
        return {name: tensor.detach() for name, tensor in state.items()}
    family = find_writer(engine, layout)
    return written_state(engine, family, family.in_memory)


def find_writer(engine: ModelEngine, layout: str = "auto") -> Family:
    """Return the family that an engine can be written in.

    Raises:
        ConfigError: there is none of that layout, or the engine was cut or quantised.
    """
    _check_whole(engine)
    name = _base_architecture(engine)
    near = [family for family in FAMILIES if family.architecture == name]
    for family in near:
        if layout in ("auto", family.layout) and family.can_write(engine.config):
            return family
    layouts = sorted({family.layout for family in FAMILIES})
    if layout not in ("auto", *layouts):
        raise ConfigError(f"layout={layout!r} is not known", fix=f"use one of {layouts}")
    tried = ", ".join(family.title for family in near) or "no family"
    raise ConfigError(
        f"no model of another library ({tried} were tried, layout={layout!r}) computes what this"
        f" {name!r} does",
        fix="save it with engine.save(path)",
    )


def _check_whole(engine: ModelEngine) -> None:
    """Refuse a model that is not what its architecture says: no other library could load it."""
    only_rounded = schemes_of(engine.changes) <= set(DTYPES)
    writable = {"lora"} | ({"quantised"} if only_rounded else set())  # merged, and 16-bit floats
    kinds = list(dict.fromkeys(change["kind"] for change in engine.changes))
    if left := [kind for kind in kinds if kind not in writable]:
        raise ConfigError(
            f"the model was changed since it was built ({', '.join(left)}), and no model of another"
            " library has such weights",
            fix="write the model that it was made from, or export it: deepseek.deploy.export",
        )


def written_state(
    engine: ModelEngine, family: Family, spelling: Sequence[tuple[str, str]] = ()
) -> dict[str, Tensor]:
    """Return the weights of an engine in the spelling of a family's files.

    Args:
        engine: one that the family can write.
        family: whose spelling.
        spelling: what else is changed of the names: pairs of a part and what stands for it.
    """
    args = engine.config
    rules = family.rules(args, family.written_prefix(args))
    state = bring_out(respell(rules, spelling), engine.module.state_dict())
    family.add_constants(state, args)
    return state


def _base_architecture(engine: ModelEngine) -> str:
    """Return the name of the class, for an engine of a preset such as `encoder_base`, too."""
    return ModelEngine.wrap(engine.module).architecture


def _family_of_config(source: Source) -> str | None:
    if not source.config:
        return None
    kind = source.config.get("model_type")
    alike = next((each.name for each in FAMILIES if kind in (each.name, *each.aliases)), None)
    if alike is not None:
        return alike
    if source.module is not None:
        return None
    raise CheckpointError(
        f"{source.name}: config.json has model_type={kind!r}, which no model of this library"
        " computes",
        fix=f"use one of {family_names()}, or load the module and hand it over:"
        " pytorch_to_deepseek(module)",
    )


def _convert_weights(
    source: Source, found: Recognised, given: Mapping[str, object], dtype: str
) -> Conversion:
    family = found.family
    report = Report(source.name, family.title, family.architecture, notes=list(found.notes))
    args = _resolve_args(source, found, given, report)
    num_classes = args.pop("num_classes", None)
    with torch.device("meta"):
        skeleton = build_model(family.architecture, num_classes, args)
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    config = skeleton.config if isinstance(skeleton, Classifier) else {}
    fresh = family.fresh_parts if "outputs" in given else ()
    rules = family.rules(config, found.prefix)
    # before anything is fused: torch would make one dtype of two without a word
    taken = {name for rule in rules for name in (*rule.theirs, *rule.copies)}
    weights = {name: tensor for name, tensor in found.state.items() if name in taken}
    weights, casts = cast_weights(weights, dtype, source.name)
    report.notes += casts
    state, report.fates = bring_in(
        rules, {**found.state, **weights}, shapes, family.leftovers, source.name, fresh
    )
    _add_fresh(state, skeleton, args, num_classes, report)
    content = ModelFile(family.architecture, config, None, state)
    module, _ = build_from_file(source.name, content, args, num_classes, None)
    engine = ModelEngine.wrap(module)
    names = class_names(source.config, engine.num_classes)
    engine.spec = text_spec(engine, source, names, report)
    engine.spec = engine.spec or picture_spec(engine, source, names, report)
    if engine.spec is None and "num_classes" not in given:
        engine._head_is_lent = isinstance(module, Decoder)  # a tokenizer may fill fewer rows
    return Conversion(engine, report, family, source, found.state)


def _add_fresh(
    state: dict[str, Tensor],
    skeleton: nn.Module,
    args: Mapping[str, object],
    num_classes: int | None,
    report: Report,
) -> None:
    """Add second names of tied weights, and parts that the weights have not."""
    first: dict[int, str] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name and name not in state:
            state[name] = state[known]
    missing = [name for name in skeleton.state_dict() if name not in state]
    if not missing:
        return
    dtypes = Counter(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    initial = build_model(report.architecture, num_classes, args)
    initial = initial.to(dtypes.most_common(1)[0][0]).state_dict()
    for name in missing:
        state[name] = initial[name]
        report.fates.append(Fate("added", "", name, "not in the weights: begins fresh"))


def _resolve_args(
    source: Source, found: Recognised, given: Mapping[str, object], report: Report
) -> dict[str, Any]:
    """Return the arguments of our architecture, from all that says something about them."""
    family = found.family
    _check_arguments(family, given, source)
    configured = {}
    if source.config.get("model_type") in (family.name, *family.aliases):
        _check_requirements(family, source)
        configured = family.args_from_config(source.config)
    known = {**source.facts, **configured, **given}
    shapes = found.shapes(source.name)
    report.notes += family.notes(source.config if configured else {}, shapes)
    told = family.args_from_shapes(shapes, known)
    told |= family.args_from_values(found.state, found.prefix)
    _check_agreement(source, told, configured, given)
    args = {**told, **configured, **given}
    # what the user asked for decides on the head, not the weights
    args["num_classes"] = given.get("num_classes", told.get("num_classes"))
    for name, value in source.facts.items():
        if name not in args and name in family.unknown:
            args[name] = value
    for assumption in family.defaults(args):
        if assumption.name not in args:
            args[assumption.name] = assumption.value
            report.assumptions.append(assumption)
    if "heads" in family.unknown and "heads" not in args:
        _assume_heads(family, args, report)
    asked = {name: value for name, value in family.asked(args).items() if name not in args}
    if "heads" in family.unknown and "heads" not in args:
        dim = args["dim"]
        likely = family.likely_heads.get(dim) or _likely_heads(dim, family.head_dim)
        asked = {"heads": likely, **asked}
    if asked:
        rules = family.rules({**args, **asked}, found.prefix)
        fresh = family.fresh_parts if "outputs" in given else ()
        check_names(rules, found.state, family.leftovers, source.name, fresh)
        raise _asking(asked, family, args, source)
    return args


def _check_arguments(family: Family, given: Mapping[str, object], source: Source) -> None:
    wrong = [each for each in check_model_args(family.architecture, given) if each.key in given]
    wrong = [each for each in wrong if each.key != "num_classes"]
    if wrong:
        raise ConfigError(
            f"{source.name}: " + "; ".join(each.message for each in wrong),
            fix="; ".join(each.suggestion for each in wrong),
        )


def _check_requirements(family: Family, source: Source) -> None:
    for each in family.requirements:
        value = source.config.get(each.key, each.values[0])
        if value not in each.values:
            raise CheckpointError(
                f"{source.name}: config.json has {each.key}={value!r}, and our"
                f" {family.architecture} computes {each.key}="
                + " or ".join(map(repr, each.values)),
                fix="load the module with its own library and hand it over, to keep it as it is",
            )


def _check_agreement(
    source: Source,
    told: Mapping[str, Any],
    configured: Mapping[str, Any],
    given: Mapping[str, Any],
) -> None:
    for where, values in (("config.json", configured), ("the argument", given)):
        for name, value in values.items():
            fresh_head = name == "num_classes" and told.get(name) is None
            if name in told and name != "outputs" and told[name] != value and not fresh_head:
                kind = ConfigError if values is given else CheckpointError
                raise kind(
                    f"{source.name}: {where} says {name}={value!r}, the weights {told[name]!r}",
                    fix="leave it out" if values is given else "copy the folder again",
                )
    for name, value in given.items():
        if name not in _CHOSEN and configured.get(name, value) != value:
            raise ConfigError(
                f"{source.name}: the argument says {name}={value!r}, config.json"
                f" {configured[name]!r}",
                fix="leave it out, or mend config.json",
            )


def _assume_heads(family: Family, args: dict[str, Any], report: Report) -> None:
    """Take the number of heads of published models, where one has these sizes."""
    size = (args["num_layers"], args["dim"])
    if size in family.published_heads:
        reason = f"published models of {size[0]} layers {size[1]} wide have it"
        args["heads"] = family.published_heads[size]
        report.assumptions.append(Assumption("heads", args["heads"], reason))


def _asking(
    asked: Mapping[str, Any], family: Family, args: Mapping[str, Any], source: Source
) -> ConfigError:
    """Return the error that asks for what weights do not tell, by name, with likely values."""
    known = {"heads": "the number of attention heads"}
    what = " and ".join(known.get(name, name) for name in asked)
    likely = ", ".join(f"{name}={value}" for name, value in asked.items())
    options = " ".join(f"--set {name}={value}" for name, value in asked.items())
    size = f"num_layers={args['num_layers']}, dim={args['dim']}"
    return ConfigError(
        f"{source.name}: {what} cannot be told from weights"
        + (f", and no known {family.name} has {size}" if "heads" in asked else ""),
        fix=f"give {likely} if that is what it has, as is likely ({options})",
    )


def _likely_heads(dim: int, head_dim: int) -> int:
    """Return the number of heads of the usual number of features, or of the nearest below it."""
    return next(dim // width for width in range(min(head_dim, dim), 0, -1) if dim % width == 0)


def _unrecognised(source: Source, family: str | None) -> CheckpointError:
    wanted = f"not those of {family}" if family else f"those of none of {family_names()}"
    return CheckpointError(
        f"{source.name}: the names of the weights are {wanted}; they are"
        f" {find_layers(source.state)}, ...",
        fix="hand over the module that the weights are of, or give family= if they are of a known"
        " one under other names",
    )


def _keep_module(source: Source, module: nn.Module, reason: str) -> Conversion:
    """Return an engine around the module itself, or around timm's own where it is that."""
    report = Report(source.name, "", type(module).__name__, notes=[f"kept as it is: {reason}"])
    engine = ModelEngine.wrap(module)
    if source.timm_name and is_timm(source.timm_name):
        try:
            classes: Sequence[int] = [
                tensor.shape[0]
                for name, tensor in source.state.items()
                if name in ("head.weight", "fc.weight", "classifier.weight", "head.fc.weight")
            ]
            built = ModelEngine(
                f"timm/{source.timm_name}", num_classes=classes[0] if classes else None
            )
            load_weights(built.module, source.state, source=source.name)
            difference = compare_with_timm(built, module)
            if not difference.is_small:
                raise ConfigError(f"it computes something else: {difference.describe()}")
            engine = built
            report.architecture = engine.architecture
        except (CheckpointError, ConfigError) as error:
            report.notes.append(f"not timm's {source.timm_name}: {error.message}")
    return Conversion(engine, report, None, source)
