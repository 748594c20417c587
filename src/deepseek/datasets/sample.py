"""One sample of a torch data set: read, with errors that name it, and its fields named."""

import traceback
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepseek.errors import DataError, DeepSeekError


def read_sample(dataset: torch.utils.data.Dataset, index: int) -> dict:
    """Return a sample as a dict.

    Raises:
        DataError: the data set raises, or the sample is neither a pair nor a dict.
    """
    try:
        sample = dataset[index]
    except DeepSeekError:
        raise
    except Exception as error:  # of the user's own code
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        fix = "mend the sample, or the data set's __getitem__"
        if isinstance(error, MemoryError):
            fix = "lower num_workers or batch_size, or read less of the sample at once"
        raise DataError(
            f"sample {index} of {type(dataset).__name__} cannot be read: {reason}"
            f" ({last.filename}:{last.lineno})",
            fix=fix,
        ) from error
    return name_fields(sample)


def name_fields(sample: object) -> dict:
    """Return a sample as a dict: a pair becomes `inputs` and `targets`.

    Raises:
        DataError: if it is neither a tensor, a tuple of one or two, nor a dict.
    """
    if isinstance(sample, Mapping):
        return dict(sample)
    if isinstance(sample, Tensor):
        return {"inputs": sample}
    if isinstance(sample, Sequence) and not isinstance(sample, str) and 1 <= len(sample) <= 2:
        return dict(zip(("inputs", "targets"), sample, strict=False))
    size = f" of {len(sample)}" if isinstance(sample, Sequence) else ""
    raise DataError(
        f"a sample is a {type(sample).__name__}{size}, neither (x, y) nor a dict",
        fix='let the data set return (x, y), or {"inputs": x, "targets": y}',
    )
