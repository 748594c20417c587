"""The small number that a norm adds to a variance: its node in the graph does not keep it."""

from torch import nn

from deepseek.memory.node import Node

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Epsilons:
    """Epsilon of each norm of a model, by its weight; of a norm without weight, that of all.

    Args:
        modules: the model, or its parts.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._norms = [
            module
            for root in modules
            for module in root.modules()
            if isinstance(module, _NORMS) and module.eps is not None
        ]
        values = {norm.eps for norm in self._norms}
        self._common = values.pop() if len(values) == 1 else None
        self._by_weight: dict[int, float] = {}

    def of(self, node: Node) -> float | None:
        """Return the epsilon of the norm behind a node; `None` where it is not known."""
        if self._common is not None:
            return self._common
        weight = node._saved_weight
        if weight is None:
            return None
        if id(weight) not in self._by_weight:  # FSDP puts other tensors in a parameter's place
            self._by_weight = {
                id(n.weight): float(n.eps) for n in self._norms if n.weight is not None and n.eps
            }
        return self._by_weight.get(id(weight))
