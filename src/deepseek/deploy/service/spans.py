"""Parts of a text in an answer: entities that a model of tokens finds, and what patterns find.

Shapes: T tokens, K classes.
"""

from collections.abc import Callable, Sequence

import numpy as np

from deepseek.deploy.service.question import parse_json, parts_of
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.shelf import Version
from deepseek.models.joint_outputs import is_of_tokens
from deepseek.registry import Registry
from deepseek.trainer.token_classification import find_entities, has_entities

# Named, not imported: the layer above knows the patterns of its field, and plug-ins may add to it.
SPANS: Registry[Callable[[str], list[dict]]] = Registry(
    "kind of spans", {"tickers": "deepseek.finance.tickers:find_tickers"}
)


def find_pattern(name: str) -> Callable[[str], list[dict]] | None:
    """Return the function that finds a kind of spans; `None` where none is asked for.

    Raises:
        Refusal: 422, there is no such kind.
    """
    if not name:
        return None
    if name not in SPANS:
        raise Refusal(422, f"spans={name[:40]!r}", fix=f"give one of {', '.join(SPANS.names())}")
    return SPANS.get(name)


def texts_of(body: bytes) -> list[str]:
    """Return the texts of a body that was read already.

    Raises:
        Refusal: 422, it holds none.
    """
    content = parse_json(body) if body[:1] in (b"{", b" ", b"\n") else None
    known = content if isinstance(content, dict) else {}
    texts = [known["text"]] if "text" in known else known.get("texts")
    if not isinstance(texts, list):
        raise Refusal(422, "spans are of texts", fix='send {"texts": ["...", "..."]}')
    return texts


async def entities_of(
    texts: list[str], rows: Sequence[np.ndarray], version: Version
) -> list[list[dict]]:
    """Return the entities of each text: `kind`, `text`, `start`, `end`, `prob`.

    A word has the class of its first token, as in training. Of a model of several tasks, `task` is
    the one that found it.

    Args:
        texts: as they were sent.
        rows: probabilities (T, K) of each, with the tokens around it; those of tasks side by side.
        version: that gave them.
    """
    if version.decoder is None:
        return [[] for _ in texts]
    places = await version.decoder.locate(texts)
    found: list[list[dict]] = []
    for text, row, where in zip(texts, rows, places, strict=True):
        found.append([])
        for name, (probs, spec) in parts_of(row, version).items():
            if is_of_tokens(spec):
                task = {"task": name} if version.spec.tasks else {}
                entities = _entities(text, probs, where, spec.class_names)
                found[-1] += [{**each, **task} for each in entities]
    return found


def _entities(
    text: str, probs: np.ndarray, words: np.ndarray, names: tuple[str, ...]
) -> list[dict]:
    """Return the entities of a text.

    Args:
        text: N words.
        probs: (T, K).
        words: (N, 3): first token of each, where it starts and ends in the text.
        names: of the classes.
    """
    words = words[words[:, 0] < len(probs)]
    own = probs[words[:, 0]]
    labels = own.argmax(1)
    if has_entities(names):
        found = find_entities(labels.tolist(), [0] * len(labels), names)
        spans = sorted((begin, end, kind) for _, begin, end, kind in found)
    else:  # each word is of a class
        spans = [(place, place + 1, names[label]) for place, label in enumerate(labels.tolist())]
    entities = []
    for begin, end, kind in spans:
        start, stop = int(words[begin, 1]), int(words[end - 1, 2])
        prob = float(own[np.arange(begin, end), labels[begin:end]].min())
        entities.append(
            {"kind": kind, "text": text[start:stop], "start": start, "end": stop, "prob": prob}
        )
    return entities
