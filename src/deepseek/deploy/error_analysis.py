"""Where a classifier is wrong, and why: from a model and labelled data to a page.

Shapes: N samples, K classes, T tokens.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets import JointDataset, TextDataset
from deepseek.datasets.evaluation_view import evaluation_dataset
from deepseek.deploy.one_task import choose_task, finds_classes, samples_of_task
from deepseek.deploy.report.mistakes import Explained, write_mistakes
from deepseek.deploy.temperature import measure_temperature
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.attribution import attribute_tokens
from deepseek.trainer.evaluation import evaluate_samples

MIN_CALIBRATED = 20


def analyse_errors(
    engine: ModelEngine,
    data,
    path: str | Path,
    *,
    task: str | None = None,
    title: str = "Error analysis",
    num_shown: int = 20,
    steps: int = 32,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, float]:
    """Write a page of confusions, calibration and the surest mistakes; return the metrics.

    The words of texts are coloured by integrated gradients: of a mistake, for the class that was
    found against the right one.

    Args:
        engine: finds a class for each sample.
        data: labelled samples that were not trained on.
        path: of the `.html` file.
        task: of a model of several tasks; `None`: the one that the data have labels of.
        title: of the page.
        num_shown: mistakes on it.
        steps: of integrated gradients; 0: words are not coloured.
        batch_size: samples at a time.
        device: where they are computed.

    Raises:
        ConfigError: the model is no such classifier, or `num_shown` is negative.
    """
    if num_shown < 0 or steps < 0:
        raise ConfigError(f"num_shown={num_shown}, steps={steps}", fix="give 0 or more")
    dataset = evaluation_dataset(data)
    found = evaluate_samples(engine, dataset, batch_size, device=device)
    task = choose_task(engine, found.samples, task)
    samples = samples_of_task(found.samples, task)
    if not finds_classes(samples):
        raise ConfigError(
            "only the errors of a model that finds a class for each sample can be shown",
            fix="give a classifier",
        )
    probs, targets = samples["probs"].numpy(), samples["targets"].numpy()
    order = np.argsort(-probs.max(1), kind="stable")
    is_wrong = (probs.argmax(1) != targets)[order]
    wrong, right = order[is_wrong][:num_shown], order[~is_wrong]
    # for comparison: the surest right answers of each class
    typical = [
        at for label in range(probs.shape[1]) for at in right[targets[right] == label][:2].tolist()
    ]
    mistakes, others = (
        [_explain(engine, dataset, samples, at, steps, task) for at in chosen]
        for chosen in (wrong.tolist(), typical)
    )
    notes = []
    if len(targets) >= MIN_CALIBRATED:
        temperature = measure_temperature(probs, targets)
        notes.append(temperature.describe()[0].upper() + temperature.describe()[1:] + ".")
    spec = engine.spec if task is None or engine.spec is None else engine.spec.tasks[task]
    names = spec.class_names if spec else ()
    write_mistakes(Path(path), title, probs, targets, names, mistakes, others, notes)
    if task is None:
        return found.metrics
    own = [name for name in found.metrics if name.startswith(f"{task}_")]
    return {name.removeprefix(f"{task}_"): found.metrics[name] for name in own}


def _explain(
    engine: ModelEngine,
    dataset,
    samples: dict[str, Tensor],
    at: int,
    steps: int,
    task: str | None,
) -> Explained:
    if isinstance(dataset, JointDataset):
        dataset = dataset.data
    index, probs = int(samples["index"][at]), samples["probs"][at]
    target, predicted = int(samples["targets"][at]), int(probs.argmax())
    answer = (target, predicted, float(probs.max()))
    if not isinstance(dataset, TextDataset):
        describe = getattr(dataset, "describe", None)
        words = [str(describe(index)) if callable(describe) else f"sample {index}"]
        return Explained(index, words, [], *answer)
    tokens = dataset[index]["inputs"]
    if engine.spec is not None and engine.spec.pad_token is not None:
        tokens = tokens[: int((tokens != engine.spec.pad_token).nonzero().max()) + 1]
    if steps == 0:
        return Explained(index, [dataset.text(index)], [], *answer)
    direction = torch.zeros(len(probs))
    direction[predicted] = 1.0
    if predicted == target:
        direction -= (1 - direction) / max(1, len(probs) - 1)
    else:
        direction[target] = -1.0
    weights = attribute_tokens(engine, tokens, direction, steps=steps, task=task).tolist()
    return Explained(index, *_to_words(tokens.tolist(), weights, dataset), *answer)


def _to_words(
    tokens: list[int], weights: list[float], dataset: TextDataset
) -> tuple[list[str], list[float]]:
    """Join the tokens of each word; a word weighs what its tokens do together."""
    tokenizer = dataset.tokenizer
    around = {token for part in tokenizer.frame for token in part}
    words: list[list[int]] = []
    sums: list[float] = []
    for token, weight in zip(tokens, weights, strict=True):
        if token in around:
            continue
        if words and tokenizer.continues_word[token]:
            words[-1].append(token)
            sums[-1] += weight
        else:
            words.append([token])
            sums.append(weight)
    return [tokenizer.decode(word).strip() for word in words], sums
