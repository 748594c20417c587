"""Products and convolutions in all of float32, where two models are compared."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute products and convolutions of float32 in float32 on an NVIDIA GPU, too.

    By default a GPU convolves in TF32, which keeps three decimal digits of what it multiplies, and
    products do so where `torch.set_float32_matmul_precision` has been told. On a CPU nothing
    changes.
    """
    convolutions = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    products = torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision = products.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before
