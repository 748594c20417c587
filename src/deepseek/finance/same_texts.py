"""A run goes on with the texts that it began with, and with no others."""

import hashlib
from collections.abc import Iterable

from deepseek.errors import ConfigError
from deepseek.trainer import Callback


class SameTexts(Callback):
    """Keeps a hash of the training texts in the checkpoints, and refuses those of other texts.

    Args:
        texts: of the run, in order.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        digest, self._num_texts = hashlib.sha256(), 0
        for text in texts:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(content))
            digest.update(content)
            self._num_texts += 1
        self._digest = digest.hexdigest()

    def state_dict(self) -> dict:
        """Return the hash, and the number of texts."""
        return {"texts": self._digest, "num_texts": self._num_texts}

    def load_state_dict(self, state: dict) -> None:
        """Hold the texts against those of a checkpoint.

        Raises:
            ConfigError: they are others.
        """
        if state.get("texts", self._digest) != self._digest:
            raise ConfigError(
                f"resume: the run learns from {state['num_texts']:,} texts, which are not these"
                f" {self._num_texts:,}",
                fix="give the corpus, general, replay, held_out and seed of that run, name another"
                " run by resume='runs/NAME-N', or begin anew without resume",
            )
