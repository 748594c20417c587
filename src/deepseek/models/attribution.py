"""What each token of a text has done to what the model says of it.

Paper: Sundararajan et al. 2017 (integrated gradients), arXiv 1703.01365, equation 1, by the
midpoint rule. The baseline has the vector of padding in place of each word; the tokens around a
text (`[CLS]`, `[SEP]`) are theirs and get nothing. Attention and positions are those of the text.
The attributions of a text add up to the difference of what is explained between it and the
baseline, but for the error of the rule.

Shapes: T tokens, D dim, K classes, S steps.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.engine import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.quantized import schemes_of
from deepseek.models.text_batches import tokenizer_of

AT_ONCE = 16
_STEPPED = ("int8_dynamic", "int8_static")
"""Schemes that round inputs of layers, too."""


def attribute_tokens(
    engine: ModelEngine,
    tokens: Int[Tensor, "T"],
    direction: Float[Tensor, "K"],
    *,
    steps: int = 32,
    task: str | None = None,
) -> Float[Tensor, "T"]:
    """Return what each token adds to a combination of the logits, float32, on the CPU.

    Args:
        engine: classifies texts.
        tokens: of one text, with what stands around it.
        direction: weight of each logit in what is explained, such as 1 for one class and -1 for
            another.
        steps: S; more of them leave less of an error.
        task: whose logits, of a model of several tasks.

    Raises:
        ConfigError: the model has no table of tokens that its hints name, or rounds what it
            computes to integers.
    """
    if rounded := sorted(schemes_of(engine.changes) & set(_STEPPED)):
        raise ConfigError(
            f"a model of {', '.join(rounded)} rounds to integers, which have no slope: its"
            " gradients explain nothing",
            fix="explain the model that it was made from",
        )
    table = _token_table(engine)
    spec = engine.spec
    tokens = tokens.to(engine.device)
    around = torch.tensor(
        [token for part in _frame(engine) for token in part], device=tokens.device
    )
    pad = torch.full_like(tokens, 0 if spec is None else spec.pad_token or 0)
    with torch.no_grad():
        rows = table(tokens)
        dtype, whole = rows.dtype, rows.float()
        baseline = torch.where(torch.isin(tokens, around)[:, None], whole, table(pad).float())
    difference = whole - baseline
    shares = (torch.arange(steps, device=tokens.device) + 0.5) / steps
    total = torch.zeros_like(whole)
    with evaluating(engine):
        for part in shares.split(AT_ONCE):
            points = (baseline + part[:, None, None] * difference).requires_grad_(True)
            hook = table.register_forward_hook(lambda module, args, output, x=points: x.to(dtype))
            try:
                outputs = engine(tokens.expand(len(part), -1))
            finally:
                hook.remove()
            logits = outputs if task is None else outputs[task]
            explained = (logits.float() * direction.to(logits.device)).sum()
            total += torch.autograd.grad(explained, points)[0].sum(0)
    return (total / steps * difference).sum(-1).cpu()


def _token_table(engine: ModelEngine) -> nn.Embedding:
    """Return the table whose rows are tokens: the largest in what comes before the blocks."""
    tables = [
        part
        for name in engine.hints.embeddings
        for part in engine.module.get_submodule(name).modules()
        if isinstance(part, nn.Embedding)
    ]
    if not tables:
        raise ConfigError(
            f"{engine.architecture!r} has no table of tokens that is known",
            fix="explain an Encoder",
        )
    return max(tables, key=lambda table: table.num_embeddings)


def _frame(engine: ModelEngine) -> tuple[list[int], list[int]]:
    if engine.spec is None or engine.spec.tokenizer is None:
        return [], []
    before, after = tokenizer_of(engine.spec.tokenizer).frame
    return list(before), list(after)
