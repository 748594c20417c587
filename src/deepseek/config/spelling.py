"""Which setting somebody meant: misspelt, or called by the name it has in another library.

Distance: the restricted Damerau-Levenshtein distance (a swap of neighbours counts one), since most
typing errors are one letter lost, doubled, swapped or replaced.
"""

from collections.abc import Iterable

from deepseek.registry import nearest

ALIASES = {
    "accumulate_grad_batches": "grad_accum_steps",
    "amp": "precision",
    "arch": "architecture",
    "bs": "batch_size",
    "checkpoint_interval": "checkpoint_every",
    "dtype": "precision",
    "eval_steps": "eval_every",
    "gradient_accumulation_steps": "grad_accum_steps",
    "gradient_clip_val": "clip_grad_norm",
    "in_chans": "channels",
    "learning_rate": "lr",
    "logging_steps": "log_every",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "max_duration": "time_budget",
    "max_epochs": "epochs",
    "max_grad_norm": "clip_grad_norm",
    "max_iters": "max_steps",
    "max_time": "time_budget",
    "mixed_precision": "precision",
    "model_name": "architecture",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "optim": "optimizer",
    "output_dir": "output",
    "patience": "early_stopping",
    "per_device_train_batch_size": "batch_size",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "scheduler": "schedule",
    "train_path": "train",
    "val_path": "val",
    "valid": "val",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "workers": "num_workers",
}
"""What other libraries call a setting of ours."""


def distance(left: str, right: str) -> int:
    """Return how many letters to insert, delete, replace or swap to get from `left` to `right`."""
    before: list[int] = []
    above = list(range(len(right) + 1))
    for row, a in enumerate(left, start=1):
        here = [row]
        for column, b in enumerate(right, start=1):
            cost = min(above[column] + 1, here[-1] + 1, above[column - 1] + (a != b))
            if row > 1 and column > 1 and a == right[column - 2] and left[row - 2] == b:
                cost = min(cost, before[column - 2] + 1)
            here.append(cost)
        before, above = above, here
    return above[-1]


def meant(word: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `word` most likely stands for, or `None`."""
    known = sorted(known)
    lowered = word.lower().replace("-", "_")[:80]
    if lowered in known:
        return lowered
    if ALIASES.get(lowered) in known:
        return ALIASES[lowered]
    scored = sorted((distance(lowered, entry.lower()), entry) for entry in known)
    if scored and scored[0][0] <= max(1, len(lowered) // 4):
        return scored[0][1]
    close = nearest(lowered, known, count=1)
    return close[0] if close else None
