"""An engine written in the forms of other libraries."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from deepseek.convert.conversion import deepseek_to_pytorch, find_writer, written_state
from deepseek.convert.huggingface_folder import write_folder
from deepseek.convert.pictures import picture_files
from deepseek.convert.tokenizers import tokenizer_files
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.lora import merge_lora
from deepseek.version import __version__

_PIPELINES = (
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForMaskedLM", "fill-mask"),
    ("LMHeadModel", "text-generation"),
    ("ForCausalLM", "text-generation"),
    ("ForImageClassification", "image-classification"),
    ("Model", "feature-extraction"),
)
STATE_SUFFIXES = (".safetensors", ".pt", ".pth")


def deepseek_to_huggingface(
    engine: ModelEngine, folder: str | Path, files: Mapping[str, bytes] | None = None
) -> None:
    """Write a folder that transformers' `from_pretrained` opens.

    It has `config.json` with the names of the classes, `model.safetensors`, the tokenizer of an
    engine that has one, how its pictures are prepared (of transforms that only resize and crop),
    and a model card.

    Args:
        engine: of an architecture that transformers has.
        folder: must not be there yet, or be empty.
        files: further files, such as a tokenizer's: name -> content.

    Raises:
        ConfigError: transformers has no such model, or there is something in the folder.
    """
    engine = merge_lora(engine)
    family = find_writer(engine, "huggingface")
    config = family.config_json(engine.config)
    names = engine.spec.class_names if engine.spec else ()
    if names and config.get("num_labels") == len(names):
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
    if engine.spec is not None and engine.spec.task == "sequence_regression":
        config["problem_type"] = "regression"
    state = written_state(engine, family)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}
    floating = sorted(dtypes & {"float32", "float16", "bfloat16", "float64"})
    config["dtype"] = floating[0] if len(floating) == 1 else "float32"
    card = _model_card(engine, str(config["architectures"][0]))
    contents = {
        **tokenizer_files(engine),
        **picture_files(engine),
        **(files or {}),
        "README.md": card.encode(),
    }
    write_folder(Path(folder), config, state, contents)


def write_state_dict(engine: ModelEngine, path: str | Path, layout: str = "auto") -> None:
    """Write the weights of an engine under the names of another library.

    Args:
        engine: what to write.
        path: `.safetensors`, in which tied tensors stand once; or `.pt`, by `torch.save`.
        layout: as `deepseek_to_pytorch` takes it.

    Raises:
        ConfigError: no library has such a model, or the name ends otherwise.
    """
    path = Path(path)
    if path.suffix not in STATE_SUFFIXES:
        raise ConfigError(
            f"{path} does not say what to write", fix=f"let it end in {', '.join(STATE_SUFFIXES)}"
        )
    state = deepseek_to_pytorch(engine, layout)
    if path.suffix != ".safetensors":
        torch.save(state, path)
        return
    first: dict[tuple, str] = {}
    for name, tensor in state.items():
        place = tensor.data_ptr() if tensor.numel() else id(tensor)
        first.setdefault((place, tensor.shape, tensor.stride(), tensor.dtype), name)
    # weights may lie channels last, which the format does not know
    tensors = {name: state[name].contiguous() for name in first.values()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # save_file lets nobody else read it


def _model_card(engine: ModelEngine, architecture: str) -> str:
    pipeline = next((tag for end, tag in _PIPELINES if end in architecture), "feature-extraction")
    names = engine.spec.class_names if engine.spec else ()
    classes = f"Classes: {', '.join(names)}.\n" if names else ""
    size = f"{engine.num_parameters / 1e6:.1f} M parameters"
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
---

# {architecture}

{size}, written by deepseek-framework {__version__} from its `{engine.architecture}`.
{classes}
```python
from transformers import {architecture}

model = {architecture}.from_pretrained(".")
```

What it was trained on, for what use, and how well it does are for whoever trained it to add.
"""
