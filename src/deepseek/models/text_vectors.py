"""A vector for each text, whose products are similarities.

Paper: Reimers & Gurevych 2019 (Sentence-BERT), arXiv 1908.10084, section 3: the mean of the vectors
of a text's tokens; here of unit length, so that a product is a cosine.

Shapes: N texts, D dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.models.encoder import Encoder
from deepseek.models.engine import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.text_batches import encode_texts


def sentence_vectors(
    engine: ModelEngine, texts: Sequence[str], batch_size: int = 32
) -> Float[Tensor, "N D"]:
    """Return a vector of unit length for each text, float32, on the CPU.

    A text of more tokens than the model sees is cut.

    Args:
        engine: an `Encoder` with `outputs="hidden"` and the tokenizer of its data, as
            `pytorch_to_deepseek(FOLDER, outputs="hidden")` makes of a Hugging Face folder.
        texts: any number.
        batch_size: texts at once.

    Raises:
        ConfigError: the engine is another.
    """
    module, spec = engine.module, engine.spec
    if not isinstance(module, Encoder) or module.config["outputs"] != "hidden":
        raise ConfigError(
            f"{engine.architecture!r} gives no vectors of tokens",
            fix='take an encoder with outputs="hidden": pytorch_to_deepseek(FOLDER,'
            ' outputs="hidden")',
        )
    if spec is None or spec.tokenizer is None:
        raise ConfigError("the model has no tokenizer", fix="convert it from a folder that has one")
    found = [torch.empty(0, module.config["dim"])]
    with torch.inference_mode(), evaluating(module):
        for tokens in encode_texts(texts, spec, batch_size):
            is_text = (tokens != spec.pad_token)[..., None].to(engine.device)
            hidden = engine(tokens.to(engine.device)).float()
            means = (hidden * is_text).sum(1) / is_text.sum(1).clamp(min=1)  # an empty text: zeros
            found.append(F.normalize(means, dim=1).cpu())
    return torch.cat(found)
