"""A model ready to compute: architecture, weights, and what it knows of its data."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepseek.datasets.spec import DataSpec
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import prediction
from deepseek.models.assembly import build_from_file, build_head, build_pretrained
from deepseek.models.checks import check_choice, check_input, check_positive, missing_head
from deepseek.models.classifier import Classifier
from deepseek.models.decoder import Decoder
from deepseek.models.eval_mode import evaluating
from deepseek.models.hints import ParallelHints
from deepseek.models.joint_outputs import Divided
from deepseek.models.model_file import ModelFile, read_model_file, write_model_file
from deepseek.models.multi_head import MultiHead
from deepseek.models.pretrained import PretrainedLogits, as_logits, given_module, logits_of
from deepseek.models.prompts import Generation, Prompt, Vocabulary, Writer
from deepseek.models.quantized import QuantizedLayer
from deepseek.models.table_model import TableModel
from deepseek.models.task_predictions import name_outputs, not_one_head, numbers_of
from deepseek.models.text_batches import tokenizer_of
from deepseek.models.text_binding import bind_text, has_tokenizer_of
from deepseek.models.zoo import build_model, name_of, timm_hints, timm_input_shape

GRAPHS = ("dynamic", "static")


class ModelEngine(nn.Module):
    """A model by name, with or without published weights.

    Args:
        architecture: a name of `list_models`, or `timm/NAME`.
        pretrained: start from published weights: `weights` if given, else a file in the folder
            named by `DEEPSEEK_WEIGHTS`, else the Hugging Face hub.
        weights: a local file to start from: `.safetensors` or a model file.
        num_classes: outputs; `None` learns them from the weights or, later, from the data (`bind`).
        graph: "dynamic" runs the module as it is; "static" compiles it at its first forward.
        allow_pickle: read `weights` from a pickled file (`.pt`, `.pth`), restricted to tensors.
        config: arguments of the architecture.

    Raises:
        ConfigError: if a name, an argument or a file is wrong, or weights cannot be fetched.
        CheckpointError: if the weights do not fit.

    Example:
        >>> engine = ModelEngine("resnet20", num_classes=10)
        >>> engine(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    module: nn.Module

    def __init__(
        self,
        architecture: str,
        *,
        pretrained: bool = False,
        weights: str | Path | None = None,
        num_classes: int | None = None,
        graph: str = "dynamic",
        allow_pickle: bool = False,
        **config: object,
    ) -> None:
        if isinstance(architecture, nn.Module):
            raise ConfigError(
                f"ModelEngine takes the name of a model, not a {type(architecture).__name__}",
                fix="ModelEngine.wrap(module), or give the module to the Trainer as it is",
            )
        check_choice(graph=(graph, GRAPHS))
        if num_classes is not None:
            check_positive(num_classes=num_classes)
        # A head that came with weights nobody asked the classes of is only lent: data replaces it,
        # or keeps the first rows of a decoder.
        head_is_lent = False
        if pretrained or weights is not None:
            path = None if weights is None else Path(weights)
            module, head_classes = build_pretrained(
                architecture, path, num_classes, config, allow_pickle=allow_pickle
            )
            head_is_lent = num_classes is None
            num_classes = head_classes
        else:
            module = build_model(architecture, num_classes, config)
        self._start(module, architecture, config, num_classes, graph)
        self._head_is_lent = head_is_lent

    def _start(
        self,
        module: nn.Module,
        architecture: str,
        config: dict,
        num_classes: int | None,
        graph: str,
        *,
        is_foreign: bool = False,
        spec: DataSpec | None = None,
        changes: tuple[dict, ...] = (),
    ) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.architecture = architecture
        if isinstance(module, Classifier):
            num_classes = module.config["num_classes"]
        self.num_classes = num_classes
        self.graph = graph
        self.spec = spec
        self.changes = changes
        """What was done to the modules since they were built, as `models.changes` reads it."""
        self._config = dict(config)
        self._is_foreign = is_foreign
        self._head_is_lent = False
        self._is_compiled = False
        self._prepares_inside = False

    @classmethod
    def _around(cls, module: nn.Module, architecture: str, config: dict, **known) -> "ModelEngine":
        engine = cls.__new__(cls)
        num_classes = known.pop("num_classes", None)
        engine._start(module, architecture, config, num_classes, "dynamic", **known)
        return engine

    @classmethod
    def wrap(cls, module: nn.Module, spec: DataSpec | None = None) -> "ModelEngine":
        """Return an engine around a module that exists; an engine is returned as it is.

        Args:
            module: one of our models, one of transformers, or any other module from inputs to
                outputs.
            spec: what it was trained on, if known; its classes must be the module's.
        """
        if isinstance(module, ModelEngine):
            engine = module
        elif isinstance(module, Classifier) and (name := name_of(module)):
            num_classes = module.config["num_classes"]
            engine = cls._around(module, name, module.config, num_classes=num_classes)
        else:
            kind = type(given_module(module))
            name = f"{kind.__module__}.{kind.__qualname__}"
            engine = cls._around(as_logits(module), name, {}, is_foreign=True)
        if spec is not None:
            engine.bind(spec)
        return engine

    @classmethod
    def load(cls, path: str | Path, module: nn.Module | None = None) -> "ModelEngine":
        """Return the engine that `save` wrote, on the CPU.

        Args:
            path: the model file.
            module: for a model that is not of the zoo: an object of its class, whose weights
                are replaced.

        Raises:
            CheckpointError: if the file is damaged, not a model file, or needs `module`.
        """
        content = read_model_file(path)
        args = {key: value for key, value in content.config.items() if key != "num_classes"}
        num_classes = content.config.get("num_classes")
        if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
            raise CheckpointError(
                f"{path} has num_classes={num_classes!r}, which is not a count",
                fix="save the model anew",
            )
        given = None if module is None else as_logits(module)
        built, is_foreign = build_from_file(path, content, args, num_classes, given)
        return cls._around(
            built, content.architecture, args, num_classes=num_classes, is_foreign=is_foreign,
            spec=content.spec, changes=content.changes,
        )  # fmt: skip

    @classmethod
    def around_program(
        cls, program: nn.Module, architecture: str, num_classes: int | None, spec: DataSpec
    ) -> "ModelEngine":
        """Return an engine around a converted model, which prepares its inputs by itself."""
        module = Divided(program, spec) if spec.tasks else program
        engine = cls._around(
            module, architecture, {}, num_classes=num_classes, is_foreign=True, spec=spec
        )
        engine._prepares_inside = True
        return engine

    def save(self, path: str | Path) -> None:
        """Write the model file: weights, architecture, config and spec, in one atomic step."""
        if self._prepares_inside:
            raise ConfigError(
                "a converted model has no weights to save",
                fix="copy its file, or save the original",
            )
        state = self.module.state_dict()
        content = ModelFile(self.architecture, self.config, self.spec, state, changes=self.changes)
        write_model_file(path, content)

    @property
    def config(self) -> dict:
        """Arguments that build the module again, `num_classes` among them; JSON-able."""
        if isinstance(self.module, Classifier):
            return self.module.config
        if self._is_foreign:
            return {}
        return {**self._config, "num_classes": self.num_classes}

    @property
    def hints(self) -> ParallelHints:
        """What the parts of `module` are for; empty for a foreign module."""
        if isinstance(self.module, Classifier):
            return self.module.hints
        return ParallelHints() if self._is_foreign else timm_hints(self.module)

    @property
    def is_foreign(self) -> bool:
        """Whether the module is the user's own, and not of the zoo."""
        return self._is_foreign

    @property
    def _makes_logits(self) -> bool:
        if isinstance(self.module, Classifier):
            return self.module.makes_logits
        return not self._is_foreign

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def place(self, device: torch.device) -> None:
        """Move what is not on `device` yet."""
        if any(t.device != device for t in (*self.parameters(), *self.buffers())):
            self.to(device)

    @property
    def num_parameters(self) -> int:
        """Number of weights, shared ones once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def bind(self, spec: DataSpec) -> None:
        """Take what a data set holds: keep its spec, check its images, build the head.

        Raises:
            ConfigError: if the model cannot take these images, or has a head for other classes.
        """
        if isinstance(self.module, TableModel):
            self.module.bind_features(spec, self.spec)
        elif isinstance(self.module, PretrainedLogits):
            self.module.bind(spec)
        elif not self._is_foreign:
            if spec.features is not None:
                raise ConfigError(
                    f"{self.architecture} does not take the rows of a table",
                    fix="use a model of tables, such as deepfm, or your own `TableModel`",
                )
            if "inputs" in spec.fields:
                self._check_input(spec.fields["inputs"].shape)
            bind_text(self.module, spec)
            if spec.tasks:
                self._bind_tasks(spec)
            elif num_outputs := spec.num_classes or int(spec.task == "sequence_regression"):
                keeps_tokens = isinstance(self.module, Decoder) and has_tokenizer_of(
                    self.spec, spec
                )
                self._bind_classes(num_outputs, self._head_is_lent or keeps_tokens)
        self.spec = spec

    def _bind_classes(self, num_classes: int, may_differ: bool) -> None:
        if num_classes == self.num_classes:
            return
        if self.num_classes is not None and not may_differ:
            raise ConfigError(
                f"the model has num_classes={self.num_classes}, the data {num_classes} classes",
                fix="leave num_classes out, or build the model with that of the data",
            )
        build_head(self.module, num_classes, is_lent=self._head_is_lent)
        self.num_classes, self._head_is_lent = num_classes, False

    def _bind_tasks(self, spec: DataSpec) -> None:
        if not isinstance(self.module, MultiHead):
            raise ConfigError(
                f"the data are of several tasks ({', '.join(spec.tasks)}), and"
                f" {self.architecture!r} has one head",
                fix="train MultiHead.around(model)",
            )
        self.module.bind_tasks(spec.tasks)

    def _check_input(self, shape: Sequence[int]) -> None:
        if isinstance(self.module, Classifier):
            takes = self.module.input_shape
        else:
            takes = timm_input_shape(self.module, self._config)
        check_input(self.architecture, takes, shape)

    def forward(self, inputs: Any) -> Any:
        """Return the outputs of the module; of a mapping that holds logits, these.

        Args:
            inputs: what the module takes; uint8 images are normalised as `spec` says, in the
                dtype of the computation. The features of a table are a dict of tensors.

        Raises:
            ConfigError: if there is no head yet, or the normalisation of uint8 images is unknown.
        """
        self.check_head()
        inputs = self.prepare(inputs)
        if self.graph == "static" and not self._is_compiled:
            self.module.compile()  # in place: names in the state dict stay as they are
            self._is_compiled = True
        outputs = self.module(inputs)
        return logits_of(outputs) if self._is_foreign else outputs

    def check_head(self) -> None:
        """Check that there is a head, if the model is one that has one.

        Raises:
            ConfigError: there is none yet.
        """
        if self.num_classes is None and self._makes_logits:
            raise missing_head(self.architecture)

    def prepare(self, inputs: Any) -> Any:
        """Return uint8 images normalised as `spec` says, anything else as it is.

        Raises:
            ConfigError: if the normalisation of uint8 images is unknown.
        """
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8 or self._prepares_inside:
            return inputs
        if self.spec is not None and self.spec.normalization is not None:
            return self.spec.normalization.apply(inputs, self.compute_dtype(inputs.device.type))
        if self._is_foreign:
            return inputs  # who knows what it does with them
        if self.spec is None:
            raise ConfigError(
                "uint8 images need a normalisation, and the model has no data spec",
                fix="give float images, or bind the spec of a data set: engine.bind(data.spec)",
            )
        return inputs.to(self.compute_dtype(inputs.device.type)).div_(255)

    def compute_dtype(self, device_type: str) -> torch.dtype:
        """Return the number format of inputs: that of autocast, or of the weights."""
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        # layers of 16 bits among others of 32 round their inputs themselves
        own = (part for part in self.module.modules() if not isinstance(part, QuantizedLayer))
        weights = (weight for part in own for weight in part.parameters(recurse=False))
        dtypes = (weight.dtype for weight in weights if weight.is_floating_point())
        return next(dtypes, torch.float32)

    def predict(self, x: object, top_k: int = 1, batch_size: int = 32) -> Any:
        """Say what pictures or texts are.

        Args:
            x: a tensor (C, H, W) or (B, C, H, W), a PIL image, a path, or a list of them. Pictures
                go through the evaluation transform of the data the model was trained on.
            top_k: number of classes in `Prediction.top`, >= 1.
            batch_size: samples computed at a time, >= 1.

        Returns:
            A `Prediction`; a number, of a model of numbers; of several tasks a dict with either
            for each. For a batch or a list, a list of them.
        """
        check_positive(top_k=top_k, batch_size=batch_size)
        batches, is_single = prediction.to_batches(x, self.spec, batch_size)
        names = self.spec.class_names if self.spec else ()
        found: list = []
        with evaluating(self), torch.inference_mode():
            for batch in batches:
                found += self.predict_batch(batch, names, top_k)
        return found[0] if is_single else found

    def predict_batch(self, batch: Tensor, class_names: tuple[str, ...], top_k: int) -> list:
        """Return what `predict` says of a batch; the mode is the caller's."""
        if isinstance(self.module, MultiHead | Divided) and self.spec is not None:
            values = {name: each.float().cpu() for name, each in self.outputs_of(batch).items()}
            return name_outputs(values, batch, self.spec, top_k)
        if self.spec is not None and self.spec.task == "sequence_regression":
            return numbers_of(self.outputs_of(batch).float().cpu())
        return prediction.name_probs(self.probs_of(batch), class_names, top_k)

    def probs_of(self, batch: Tensor) -> Tensor:
        """Return the probabilities of a batch (B, ...): (B, ..., K), float32, on the CPU.

        The mode is the caller's: `predict` lets the model be in `eval`.
        """
        outputs = self.outputs_of(batch)
        if not isinstance(outputs, Tensor):
            raise not_one_head(outputs)
        return outputs.float().softmax(-1).cpu()

    def outputs_of(self, batch: Tensor) -> Any:
        """Return the outputs of a batch (B, ...) from anywhere, where the module is."""
        on_device = batch.to(self.device)
        if on_device.is_floating_point():
            on_device = on_device.to(self.compute_dtype(on_device.device.type))
        return self(on_device)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int | None = None,
        *,
        stop: Sequence[str | int] | str | int = (),
        **sampling: Any,
    ) -> Generation | list[Generation]:
        """Continue prompts with a decoder; those of a list together, whatever their lengths.

        Args:
            prompts: text, token ids, or a list of either.
            max_new_tokens: of each prompt; by default as many as fit the context.
            stop: a token, or tokens, that end a text, by their text or id.
            **sampling: `temperature`, `top_k`, `top_p`, `seed` of `Sampling`.

        Returns:
            A `Generation`; for a list, a list of them.

        Raises:
            ConfigError: if the model is no decoder, or a prompt does not fit it.
        """
        return self._writer().generate(prompts, max_new_tokens, stop, sampling)

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int | None = None,
        *,
        stop: Sequence[str | int] | str | int = (),
        **sampling: Any,
    ) -> Iterator[str | int]:
        """Continue one prompt, and return each token as soon as it is drawn.

        Args:
            prompt: text, or token ids.
            max_new_tokens: as in `generate`.
            stop: as in `generate`.
            **sampling: as in `generate`.

        Returns:
            Text where the prompt is text, else token ids.
        """
        return self._writer().stream(prompt, max_new_tokens, stop, sampling)

    def _writer(self) -> Writer:
        if not isinstance(self.module, Decoder):
            raise ConfigError(
                f"{self.architecture!r} is no decoder, so it cannot generate",
                fix='use an architecture such as "gpt" or "llama"',
            )
        names = self.spec.class_names if self.spec else ()
        content = self.spec.tokenizer if self.spec else None
        vocabulary = Vocabulary(names, None if content is None else tokenizer_of(content))
        return Writer(self.module, vocabulary, compiles=self.graph == "static")

    def export(self, path: str | Path, **options: Any):
        """Write the model for another runtime, by the end of the path: `.pt2`, `.onnx`, ...

        Args:
            path: of the file.
            **options: those of `deepseek.deploy.export`, whose result is returned.
        """
        return importlib.import_module("deepseek.deploy").export(self, path, **options)

    def flops(self, input_shape: Sequence[int]) -> int:
        """Count the floating-point operations of one sample's forward, a multiply-add as two.

        Counted on the meta device: nothing is computed and no memory is needed.

        Args:
            input_shape: of one sample, such as (3, 224, 224).
        """
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        on_meta = {name: tensor.detach().to("meta") for name, tensor in state.items()}
        takes_tokens = isinstance(self.module, Classifier) and len(self.module.input_shape) == 1
        dtype = torch.int64 if takes_tokens else None
        inputs = torch.empty((1, *input_shape), dtype=dtype, device="meta")
        with evaluating(self.module), torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(self.module, on_meta, (inputs,))
        return counter.get_total_flops()

    def describe(self) -> str:
        """Return one line: architecture, parameters, classes, FLOPs where the input is known."""
        missing = "no head yet" if self._makes_logits else "features, no classes"
        if isinstance(self.module, MultiHead) and self.module.heads:
            missing = f"heads {', '.join(self.module.heads)}"
        if isinstance(self.module, TableModel):
            labels = () if self.module.layout is None else self.module.layout.labels
            missing = f"learns {', '.join(labels)}" if labels else "not built yet"
        classes = missing if self.num_classes is None else f"{self.num_classes} classes"
        parts = [self.architecture, f"{self.num_parameters / 1e6:.2f} M parameters"]
        if not self._is_foreign:
            parts.append(classes)
            if self.num_classes is not None and self.spec and "inputs" in self.spec.fields:
                flops = self.flops(self.spec.fields["inputs"].shape)
                parts.append(f"{flops / 1e9:.2f} GFLOPs per sample")
        return ", ".join(parts)
