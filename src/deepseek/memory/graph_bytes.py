"""What a graph has kept for its backward pass, counted in the graph itself.

For compiled graphs, in which no hook sees what is saved.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from deepseek.memory.host_copies import storages_of
from deepseek.memory.node import Node


def count_kept_bytes(root: Tensor, given: Iterable[Tensor]) -> int:
    """Return the bytes behind all that is saved for the gradient of `root`, before it is taken.

    Args:
        root: a loss.
        given: weights, buffers and inputs, which are there anyway.
    """
    nodes = list(_walk(root.grad_fn))
    weights = [node.variable for node in nodes if hasattr(node, "variable")]
    known = {storage._cdata for each in (*given, *weights) for storage in storages_of(each)}
    kept = {}
    for node in nodes:
        for tensor in _saved_by(node):
            kept |= {storage._cdata: storage.nbytes() for storage in storages_of(tensor)}
    return sum(size for storage, size in kept.items() if storage not in known)


def _walk(begin: Node | None) -> Iterator[Node]:
    seen, ahead = set(), [begin]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
        yield node


def _saved_by(node: Node) -> Iterator[Tensor]:
    """Yield what an operation has saved: one in Python, such as a compiled graph, or torch's."""
    saved = getattr(node, "saved_tensors", None)
    if saved is None:
        names = [name for name in dir(node) if name.startswith("_saved_")]
        saved = [getattr(node, name) for name in names]
    # newer versions of torch keep some of a compiled graph's apart
    for each in (*saved, *(getattr(node, "_tensors_no_vc_check", None) or ())):
        if isinstance(each, Tensor):
            yield each
