"""The norm of a gradient, by the fewest passes over it."""

import torch
from torch import Tensor


def total_norm(grads: list[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, as a scalar on their device.

    On a CPU scalar products take half the time of norms.
    """
    if grads and grads[0].device.type == "cpu" and all(grad.is_contiguous() for grad in grads):
        flat = [grad.view(-1) for grad in grads]
        return torch.stack([torch.vdot(each, each).real for each in flat]).sum().sqrt()
    # torch.nn.utils.get_total_norm without its grouping by device, which costs as much again
    norms = torch._foreach_norm(grads)  # pyright: ignore[reportPrivateImportUsage]
    return torch.linalg.vector_norm(torch.stack(norms))
