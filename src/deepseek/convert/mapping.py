"""Their names and ours: one table of rules that is read in both directions.

A rule says that one tensor of ours is one tensor of theirs under another name, transposed, with
more rows, or several of theirs one below the other. All of that can be undone, so the same rules
bring weights in and out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepseek.convert.report import Fate
from deepseek.errors import CheckpointError

KINDS = ("weight", "bias")
_MAX_LISTED = 8


@dataclass(frozen=True)
class Rule:
    """How one tensor of ours is made of theirs.

    Attributes:
        ours: name in our state dict.
        theirs: names in theirs; several are put one below the other.
        transpose: whether theirs has rows and columns exchanged.
        num_rows: rows of theirs, where ours has more, which are zero; `None`: as many.
        copies: names under which theirs may stand again, tied.
    """

    ours: str
    theirs: tuple[str, ...]
    transpose: bool = False
    num_rows: int | None = None
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leftover:
    """Tensors of theirs that ours has no place for.

    Attributes:
        pattern: regular expression of the whole name.
        reason: why nothing is lost, or what is.
        is_derived: whether it is computed anew, such as a mask, rather than lost.
    """

    pattern: str
    reason: str
    is_derived: bool = False


def rename(ours: str, theirs: str, **options) -> Rule:
    """Return the rule of one tensor under two names."""
    return Rule(ours, (theirs,), **options)


def module_rules(
    table: Mapping[str, str | tuple[str, ...]],
    *,
    ours: str = "",
    theirs: str = "",
    kinds: Sequence[str] = KINDS,
    transpose: bool = False,
) -> list[Rule]:
    """Return the rules of modules that have the same kinds of parameters.

    Args:
        table: name of a module of ours -> theirs, or several that are fused.
        ours: what stands before our names.
        theirs: what stands before theirs.
        kinds: parameters of each module.
        transpose: whether weights (not biases) are transposed.
    """
    rules = []
    for own, foreign in table.items():
        parts = (foreign,) if isinstance(foreign, str) else foreign
        for kind in kinds:
            names = tuple(f"{theirs}{part}.{kind}" for part in parts)
            rules.append(Rule(f"{ours}{own}.{kind}", names, transpose and kind == "weight"))
    return rules


def bring_in(
    rules: Sequence[Rule],
    state: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    leftovers: Iterable[Leftover],
    source: object,
    fresh: Sequence[str] = (),
) -> tuple[dict[str, Tensor], list[Fate]]:
    """Return our state dict made of theirs, and what became of every tensor.

    Args:
        rules: every tensor of ours must be in one.
        state: theirs.
        shapes: of ours, by name.
        leftovers: what may be left out.
        source: where theirs comes from, for messages.
        fresh: beginnings of names of ours that may be missing, to be trained.

    Raises:
        CheckpointError: something is missing, has another shape or dtype, or has no place; names
            every such tensor.
    """
    check_names(rules, state, leftovers, source, fresh)
    made: dict[str, Tensor] = {}
    fates: list[Fate] = []
    misshapen: list[str] = []
    for rule in rules:
        if rule.theirs[0] not in state:
            if _counts_batches(rule):
                made[rule.ours] = torch.zeros((), dtype=torch.int64)
                fates.append(Fate("added", "", rule.ours, "counts batches, from 0"))
            continue
        tensor = _make(rule, state, tuple(shapes[rule.ours]))
        if isinstance(tensor, str):
            misshapen.append(tensor)
            continue
        made[rule.ours] = tensor
        kind = _kind(rule, shapes)
        fates += [Fate(kind, name, rule.ours) for name in rule.theirs]
        fates += _take_copies(rule, state, source)
    _raise_problems({"of another shape": misshapen}, source)
    for name in _unknown(rules, state):
        left = _leftover(name, leftovers)
        if left is not None:
            fates.append(Fate("unused", name, "", left.reason, is_lost=not left.is_derived))
    return made, fates


def check_names(
    rules: Sequence[Rule],
    state: Mapping[str, Tensor],
    leftovers: Iterable[Leftover],
    source: object,
    fresh: Sequence[str] = (),
) -> None:
    """Raise `CheckpointError` if tensors are missing or have no place, and name them all.

    Args:
        rules: as `bring_in` takes them.
        state: as there.
        leftovers: as there.
        source: as there.
        fresh: as there.
    """
    missing: list[str] = []
    for rule in rules:
        lacks = [name for name in rule.theirs if name not in state]
        is_whole_rule = len(lacks) == len(rule.theirs)
        may_lack = _counts_batches(rule) or rule.ours.startswith(tuple(fresh))
        if not (is_whole_rule and may_lack):
            missing += lacks
    unexpected = [name for name in _unknown(rules, state) if _leftover(name, leftovers) is None]
    _raise_problems({"missing": missing, "unexpected": unexpected}, source)


def _counts_batches(rule: Rule) -> bool:
    return rule.ours.endswith("num_batches_tracked")


def _unknown(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> list[str]:
    known = {name for rule in rules for name in (*rule.theirs, *rule.copies)}
    return [name for name in state if name not in known]


def _leftover(name: str, leftovers: Iterable[Leftover]) -> Leftover | None:
    return next((each for each in leftovers if re.fullmatch(each.pattern, name)), None)


def bring_out(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return their state dict made of ours; copies share their tensor with the first name."""
    made: dict[str, Tensor] = {}
    for rule in rules:
        tensor = state[rule.ours].detach()
        if rule.num_rows is not None:
            tensor = tensor[: rule.num_rows]
        if rule.transpose:
            tensor = tensor.t()
        parts = [tensor] if len(rule.theirs) == 1 else tensor.chunk(len(rule.theirs))
        for name, part in zip(rule.theirs, parts, strict=True):
            made[name] = part.contiguous()
        for name in rule.copies:
            made[name] = made[rule.theirs[0]]
    return made


def respell(rules: Sequence[Rule], pairs: Sequence[tuple[str, str]]) -> list[Rule]:
    """Return the rules with other names of theirs: in each, the first of a pair by the second."""

    def change(name: str) -> str:
        return substitute(name, pairs)

    return [
        replace(
            rule, theirs=tuple(map(change, rule.theirs)), copies=tuple(map(change, rule.copies))
        )
        for rule in rules
    ]


def substitute(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return `name` with the first of each pair replaced by the second, one after the other."""
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def _make(rule: Rule, state: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor | str:
    """Return our tensor, or what is wrong with the shapes."""
    parts = [state[name].t() if rule.transpose else state[name] for name in rule.theirs]
    tensor = parts[0]
    want = tuple(shape)
    if rule.num_rows is not None:
        want = (rule.num_rows, *want[1:])
    if len(parts) > 1:
        want = (want[0] // len(parts), *want[1:])
    for name, part in zip(rule.theirs, parts, strict=True):
        if tuple(part.shape) != want:
            has = tuple(state[name].shape)
            return f"{name} {has} for {want[::-1] if rule.transpose else want}"
    if len(parts) > 1:
        return torch.cat(parts)
    if rule.num_rows is not None and rule.num_rows < shape[0]:
        return torch.cat([tensor, tensor.new_zeros(shape[0] - rule.num_rows, *shape[1:])])
    return tensor.contiguous()


def _kind(rule: Rule, shapes: Mapping[str, Sequence[int]]) -> str:
    if len(rule.theirs) > 1:
        return "fused"
    if rule.transpose:
        return "transposed"
    if rule.num_rows is not None and rule.num_rows < shapes[rule.ours][0]:
        return "padded"
    return "mapped"


def _take_copies(rule: Rule, state: Mapping[str, Tensor], source: object) -> list[Fate]:
    fates = []
    for name in rule.copies:
        if name not in state:
            continue
        first = state[rule.theirs[0]]
        if state[name].shape != first.shape or not torch.equal(state[name], first):
            raise CheckpointError(
                f"{source}: {name} differs from {rule.theirs[0]}, and this library computes the"
                " model with one tensor for both",
                fix="keep the module itself: ModelEngine.wrap(module)",
            )
        fates.append(Fate("tied", name, rule.ours, f"the same as {rule.theirs[0]}"))
    return fates


def _raise_problems(problems: Mapping[str, Sequence[str]], source: object) -> None:
    if not any(problems.values()):
        return
    shown = []
    for what, names in problems.items():
        if names:
            rest = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            shown.append(f"{len(names)} {what}: {', '.join(names[:_MAX_LISTED])}{rest}")
    raise CheckpointError(
        f"{source} does not fit: " + "; ".join(shown),
        fix="give the whole state dict of the model as its library saves it; where the model"
        " differs from its family, hand over the module itself",
    )
