"""The small number that a norm adds to a variance: its node in the graph does not keep it."""

from torch import Tensor, nn

from deepseek.memory.node import Node

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Epsilons:
    """Epsilon of each norm of a model, told apart by its weight; of others nothing is known.

    Args:
        modules: the model, or its parts.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._norms = [
            module
            for root in modules
            for module in root.modules()
            if isinstance(module, _NORMS) and module.eps is not None and module.weight is not None
        ]
        self._by_weight: dict[int, tuple[Tensor, float]] = {}

    def of(self, node: Node) -> float | None:
        """Return the epsilon of the norm behind a node; `None` where it is not known."""
        leaf = node.next_functions[1][0]  # of the input, the weight, the bias
        weight = getattr(leaf, "variable", None)
        if weight is None:
            return None
        found = self._by_weight.get(id(weight))
        if found is None or found[0] is not weight:
            # FSDP puts other tensors in a parameter's place
            self._by_weight = {id(n.weight): (n.weight, float(n.eps or 0.0)) for n in self._norms}
            found = self._by_weight.get(id(weight))
        return None if found is None else found[1]
