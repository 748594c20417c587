"""Which layers hurt, and how many of them have to stay in float."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from deepseek.deploy.quantization.observation import signal_to_noise
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.joint_outputs import join_outputs


def rank_by_harm(
    engine: ModelEngine,
    quantized: Mapping[str, nn.Module],
    batch: Tensor,
    say: Callable[[str], None],
) -> list[str]:
    """Return the layers by the noise each makes in the outputs when it alone is quantised.

    Args:
        engine: in float; as it was afterwards.
        quantized: the quantised layer of each layer.
        batch: inputs of the engine.
        say: is told how far it is.

    Returns:
        Names, the one that hurts most first.
    """
    batch = batch.to(engine.device)
    ratios = {}
    with evaluating(engine), torch.no_grad():
        want = join_outputs(engine(batch)).float()
        for number, (name, layer) in enumerate(quantized.items(), 1):
            original = engine.module.get_submodule(name)
            engine.module.set_submodule(name, layer)
            try:
                ratios[name] = signal_to_noise(want, join_outputs(engine(batch)).float())
            finally:
                engine.module.set_submodule(name, original)
            say(f"layer {number} of {len(quantized)} by itself")
    return sorted(ratios, key=lambda name: (ratios[name] == ratios[name], ratios[name]))


def find_fewest(
    ranked: Sequence[str], drop_without: Callable[[Sequence[str]], float], tolerance: float
) -> tuple[int, float]:
    """Return how many of the first layers have to stay in float, by bisection, and the drop then.

    All of them in float count as good, so that `log2(n)` evaluations are enough.

    Args:
        ranked: n layers, the one that hurts most first; with none of them in float the drop is
            above the tolerance.
        drop_without: of the metric where these layers are in float.
        tolerance: the largest drop that is good.

    Returns:
        The count, `n` where no smaller one was seen to be good, and the drop: the least that was
        seen where none was good.
    """
    too_few, enough = 0, len(ranked)
    reached = least = float("inf")
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        drop = drop_without(ranked[:middle])
        least = min(least, drop)
        if drop <= tolerance:
            enough, reached = middle, drop
        else:
            too_few = middle
    return enough, reached if enough < len(ranked) else least
