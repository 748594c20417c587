"""A step on paper: forward and backward with tensors that have shapes, and what would be allocated.

torch's fake tensors run the real code of a model, its loss and its memory policy; every storage is
counted from its making to its end. No weight is copied and no random number drawn.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deepseek.memory.allocations import LOGITS, Allocations
from deepseek.memory.chunked_loss import chunked_loss
from deepseek.memory.head import Head, find_head
from deepseek.memory.host_copies import HostCopies
from deepseek.memory.mirror import mirror
from deepseek.memory.policy import MemoryPolicy


@dataclass(frozen=True)
class Simulated:
    """What a micro-batch allocates beyond weights and optimizer state.

    Attributes:
        activation_bytes: alive between forward and backward.
        logits_bytes: of them, the model's outputs and what the loss makes of them.
        gradient_bytes: of all that is trained; of the largest, if they are freed one by one.
        peak_bytes: most at any time, gradients and what kernels hand on for a moment included.
        host_bytes: of activations that wait on the host of an accelerator.
    """

    activation_bytes: int
    logits_bytes: int
    gradient_bytes: int
    peak_bytes: int
    host_bytes: int


class LossParts(NamedTuple):
    """How head and loss are taken of some tokens at a time.

    Attributes:
        number: of parts.
        head: names of the modules that the head of one of our models uses.
        loss_of: scalar loss of some tokens' logits, and which tokens they are.
    """

    number: int
    head: Sequence[str]
    loss_of: Callable[[Tensor, slice], Tensor]


def simulate_step(
    module: nn.Module,
    inputs: Callable[[], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    *,
    parts: LossParts | None = None,
    policy: str = "off",
    keeps_norms: bool = False,
    remade_places: frozenset[int] | None = None,
    copied_places: frozenset[int] | None = frozenset(),
    blocks: Sequence[str] = (),
    recomputed: frozenset[int] = frozenset(),
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    has_gradients: bool = False,
    frees_gradients: bool = False,
    is_on_cpu: bool = True,
    device: str = "cpu",
) -> Simulated:
    """Run a step on fake tensors.

    Args:
        module: the model, which is left as it is.
        inputs: makes a micro-batch, called where tensors are fake; moved to `device`.
        loss_of: scalar loss of what the model returns, of fake tensors, too.
        parts: in which head and loss are taken instead; `None`: at once.
        policy: name of the memory policy.
        keeps_norms: whether `pointwise` keeps what layer norms make.
        remade_places: matrix products that are done again; see `MemoryPolicy`.
        copied_places: what waits on the host; `None`: all that is kept.
        blocks: names of what the policy takes for blocks; what looks like some by default.
        recomputed: numbers of those that are recomputed as one, whatever the policy.
        autocast: context of the forward pass.
        has_gradients: whether gradients are there before, as from the second micro-batch on.
        frees_gradients: whether each is freed as soon as it is there.
        is_on_cpu: whether a CPU's kernels will run, whose buffers are known.
        device: type of the one that tensors are said to be on: it says which kernels are chosen,
            and what autocast does. One that is there, for the backward pass asks its driver.

    Raises:
        Exception: whatever a model does that cannot be done with shapes alone.
    """
    # a thread of the device's own would not know that tensors are fake
    in_this_thread = torch.autograd.set_multithreading_enabled(False)
    with in_this_thread, FakeTensorMode(allow_non_fake_inputs=True) as fake:
        twin = mirror(module, device, fake).train()
        trained = [p for p in twin.parameters() if p.requires_grad]
        if has_gradients:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        for parameter in trained if frees_gradients else ():
            parameter.register_post_accumulate_grad_hook(_free_gradient)
        batch = inputs().to(device)
        allocations = Allocations(counts_kernels=is_on_cpu)
        memory = MemoryPolicy(policy, [twin], [twin.get_submodule(name) for name in blocks])
        memory.remade_places, memory.copied_places = remade_places, copied_places
        memory.recomputed, memory.keeps_norms = recomputed, keeps_norms
        # on a CPU the host's memory is the device's
        memory.copies = HostCopies(nullcontext() if is_on_cpu else allocations.pause)
        head = None if parts is None else find_head(twin, parts.head)
        left_out = nullcontext() if head is None else head.left_out()
        with allocations:
            with autocast(), memory.saving(), left_out:
                outputs = twin(batch)
                if parts is not None and head is not None:
                    loss = _loss_in_parts(outputs, head, parts)
                else:
                    if isinstance(outputs, Tensor):
                        allocations.logits_numel = outputs.numel()
                        allocations.hold([outputs], LOGITS)
                    loss = loss_of(outputs)
                del outputs  # the graph keeps what it needs of them
            alive, logits = allocations.alive_bytes, allocations.alive_of(LOGITS)
            loss.backward()
        sizes = [p.nbytes for p in trained]
        gradient_bytes = max(sizes) if frees_gradients else sum(sizes)
        peak = allocations.peak_bytes + (gradient_bytes if has_gradients else 0)
        on_host = 0 if is_on_cpu else memory.copies.copied_bytes
        return Simulated(alive, logits, gradient_bytes, peak, on_host)


def _loss_in_parts(hidden: Tensor, head: Head, parts: LossParts) -> Tensor:
    return chunked_loss(
        hidden, head.parameters(), lambda part, tokens: parts.loss_of(head(part), tokens),
        parts.number,
    )  # fmt: skip


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None
