"""A conversion held against a model that the other library builds, with the same weights."""

from torch import nn

from deepseek.convert.conversion import Conversion, deepseek_to_pytorch, find_writer
from deepseek.convert.family import Family
from deepseek.convert.mapping import substitute
from deepseek.convert.verify import Difference, compare
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine


def verify_conversion(conversion: Conversion) -> Difference:
    """Build the original with its own library and the weights that were read, and compare.

    Nothing but numbers of a `config.json` reaches the other library: the class comes from a table
    here, and only keys are passed on that are known here.

    Raises:
        ConfigError: the model was kept as it is, or no library builds its like.
        CheckpointError: the weights do not fit the original, or the outputs differ.
    """
    family, source, engine = conversion.family, conversion.source, conversion.engine
    if family is None:
        raise ConfigError(
            "the module was kept as it is: there is nothing to compare", fix="leave verify out"
        )
    if source.module is not None:
        return _checked(compare(engine, family, source.module))
    args = engine.config
    ours = family.config_json(args) if family.layout == "huggingface" else {}
    theirs = {key: source.config[key] for key in ours if key in source.config}
    for key in ("architectures", "model_type"):  # by what was read, not by what a file says
        theirs.pop(key, None)
    if args.get("num_classes"):
        theirs.pop("num_labels", None)
    original = family.reference(args, theirs)
    expected = deepseek_to_pytorch(engine, family.layout)
    state = {substitute(name, family.in_memory): t for name, t in conversion.state.items()}
    # rounded as ours are, where another dtype was asked for: what is compared is what is computed
    read = {name: state.get(name, ours).to(ours.dtype) for name, ours in expected.items()}
    _load(original, read, family)
    return _checked(compare(engine, family, original))


def verify_written(engine: ModelEngine, layout: str = "auto") -> Difference:
    """Build what an engine is written as with the other library, and compare.

    Raises:
        ConfigError: no library has such a model.
        CheckpointError: the outputs differ.
    """
    family = find_writer(engine, layout)
    original = family.reference(engine.config, {})
    _load(original, deepseek_to_pytorch(engine, family.layout), family)
    return _checked(compare(engine, family, original))


def _load(module: nn.Module, state: dict, family: Family) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit the model of {family.layout}: {str(error).splitlines()[-1]}",
            fix="check that the library is of a version that has this model",
        ) from error


def _checked(difference: Difference) -> Difference:
    if not difference.is_small:
        raise CheckpointError(
            f"the two models differ: {difference.describe()}",
            fix="give the arguments that the weights do not tell (heads=, norm_eps=), or keep the"
            " module: ModelEngine.wrap(module)",
        )
    return difference
