"""What opening a file returns: a module around a function of some runtime."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Opened(nn.Module):
    """A converted model, on the CPU.

    Args:
        call: from inputs (B, ...), contiguous and on the CPU, to outputs, float32.
        threads: of torch while it runs; for runtimes that have no threads of their own.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], threads: int | None = None) -> None:
        super().__init__()
        # In a tuple: programs of torch.export are modules that refuse to be set to `eval`.
        self._call = (call,)
        self._threads = threads

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, where the inputs are."""
        # AOTInductor reads a tensor of other strides as if it had those of the example.
        on_cpu = inputs.detach().cpu().contiguous()
        if on_cpu.dtype in (torch.bfloat16, torch.float16):
            on_cpu = on_cpu.float()  # programs take what the spec says
        # A precision was chosen when it was converted: the autocast of whoever calls is not meant.
        autocast = torch.autocast("cpu", enabled=False)
        with torch.no_grad(), autocast, torch_threads(self._threads):
            return self._call[0](on_cpu).to(inputs.device)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads in this thread of Python; `None`: as it is."""
    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
