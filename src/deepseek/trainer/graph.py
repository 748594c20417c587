"""Forward pass and loss, operator by operator or captured as one graph: `graph=dynamic | static`.

Only full micro-batches are compiled. What has another shape (the end of an epoch, a batch halved
for lack of memory) would be compiled anew for the sake of a few steps: it runs operator by operator
instead, and is counted. Which way a batch goes is a function of its shape alone, so that a resumed
run takes the same way.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.memory.chunked_loss import chunked_loss
from deepseek.memory.head import Head
from deepseek.memory.policy import MemoryPolicy
from deepseek.models import ModelEngine
from deepseek.models.encoder import Encoder
from deepseek.models.table_model import inputs_of, shape_of_inputs
from deepseek.trainer.labelled import POSITIONS, labelled_positions
from deepseek.trainer.out_of_memory import is_out_of_memory
from deepseek.trainer.task import Batch, Task

MAX_GRAPHS = 1024
T = TypeVar("T")


class StepGraph:
    """Computes the summed loss of a micro-batch.

    Args:
        engine: the model.
        task: gives the loss.
        is_static: compile full micro-batches.
        loss: from logits and a micro-batch; the task's own by default.
        forward: from inputs to logits; the engine by default.
        memory: what is kept from forward to backward; everything by default.
        loss_chunks: parts that the tokens are cut into for logits and loss.
        head: that is left out then; `None` where another rank of a pipeline has it.
        labels_alone: leave the logits at tokens without a label out.
        compiles_loss: compile the loss of a part, of full micro-batches, where the rest is not.

    Attributes:
        compiles_loss: as long as it can be compiled.
        num_compiled, num_eager: micro-batches that went either way.
        num_graphs: compilations.
        compile_s: seconds that forward and backward took where they were compiled.
        sample_shape: of the inputs that are compiled, without the batch dim; `None`: any.
        on_other_shape: told, once per shape, of a micro-batch that is not compiled.
        on_compiled: told once of the loss of one that is, and of the micro-batch; or `None`.
        on_loss_uncompiled: told once why the loss of a part cannot be compiled.
    """

    def __init__(
        self,
        engine: ModelEngine,
        task: Task,
        *,
        is_static: bool,
        loss: Callable[[Tensor, Batch], Tensor] | None = None,
        forward: Callable | None = None,
        memory: MemoryPolicy | None = None,
        loss_chunks: int = 1,
        head: Head | None = None,
        labels_alone: bool = False,
        compiles_loss: bool = False,
    ) -> None:
        self._engine = engine
        self._loss_chunks, self._head = loss_chunks, head if loss_chunks > 1 else None
        self.labels_alone = labels_alone and loss_chunks == 1
        self.compiles_loss = compiles_loss and self._head is not None
        self.memory = memory or MemoryPolicy("off")
        self._forward = forward or engine
        self._prepare, self._loss_of = task.prepare, loss or task.loss
        self.is_static = is_static
        self.num_compiled = self.num_eager = self.num_graphs = 0
        self.compile_s = 0.0
        self.on_other_shape: Callable[[tuple[int, ...]], None] = lambda shape: None
        self.on_compiled: Callable[[Tensor, Batch], None] | None = None
        self.on_loss_uncompiled: Callable[[str], None] = lambda reason: None
        spec = engine.spec
        self.sample_shape = (
            spec.fields["inputs"].shape if spec and "inputs" in spec.fields else None
        )
        self._other_shapes: set[tuple[int, ...]] = set()
        self._compiled: dict[str, Callable[..., Tensor]] = {}
        self._compiled_shapes: set[tuple[int | str, ...]] = set()
        self._is_new = False  # a graph whose backward is not compiled yet

    def forward(self, batch: Batch, micro_batch_size: int) -> Tensor:
        """Return the loss summed over the items of a micro-batch, on its device.

        Args:
            batch: on the device.
            micro_batch_size: samples of a full one.

        Raises:
            ConfigError: the model cannot be captured as one graph, or there is no compiler.
        """
        if not self.is_static:
            loss = self._run(batch, self._compiles_loss_of(batch, micro_batch_size))
            return self._tell(loss, batch) if self.memory.compiles else loss
        shape = shape_of_inputs(inputs_of(batch))
        if not self._is_full(shape, micro_batch_size):
            self.num_eager += 1
            if shape not in self._other_shapes:
                self._other_shapes.add(shape)
                self.on_other_shape(shape)
            return self._run(batch)
        self.num_compiled += 1
        with self.memory.compiling():
            return self._tell(self._run_compiled(batch), batch)

    def _tell(self, loss: Tensor, batch: Batch) -> Tensor:
        tell = self.on_compiled
        if tell is not None and loss.requires_grad:
            self.on_compiled = None
            tell(loss, batch)
        return loss

    def _is_full(self, shape: tuple[int, ...], micro_batch_size: int) -> bool:
        is_whole = self.sample_shape is None or shape[1:] == self.sample_shape
        return is_whole and shape[0] == micro_batch_size

    def _compiles_loss_of(self, batch: Batch, micro_batch_size: int) -> bool:
        """Return whether the loss is compiled: by the shape alone, as a resumed run has it, too."""
        if not self.compiles_loss or self.sample_shape is None:
            return False
        return self._is_full(shape_of_inputs(inputs_of(batch)), micro_batch_size)

    def _run(self, batch: Batch, compiles_loss: bool = False) -> Tensor:
        with self.passing():
            outputs = self._outputs(batch)
            if compiles_loss:
                return self._loss_by_compiled_parts(outputs, batch)
            return self.loss_of_outputs(outputs, batch)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Return the context of a forward pass operator by operator, here or in a pipeline."""
        left_out = nullcontext() if self._head is None else self._head.left_out()
        with self.memory.saving(), left_out:
            yield

    def prepare(self, batch: Batch) -> Batch:
        """Return a micro-batch with all that `forward` looks for.

        On the host: a device would be waited for.
        """
        if "targets" not in batch:
            return batch
        batch = self._prepare(batch)
        if not self.labels_alone:
            return batch
        return {**batch, POSITIONS: labelled_positions(batch["targets"])}

    def _outputs(self, batch: Batch) -> Tensor:
        """Return what the model makes of a micro-batch: logits, or what a head left out takes."""
        if POSITIONS not in batch:
            return self._forward(inputs_of(batch))
        model = self._engine.module
        if not isinstance(model, Encoder):
            raise TypeError(f"{type(model).__name__} gives all logits or none")
        with model.logits_at(batch[POSITIONS]):
            return self._forward(batch["inputs"])

    def loss_of_outputs(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the summed loss of what the model made of a micro-batch within `passing`."""
        if self._head is not None:
            return self._loss_in_chunks(outputs, batch, self._loss_of_part)
        if POSITIONS in batch:
            targets = batch["targets"].flatten()[batch[POSITIONS]][None]
            return self._loss_of(outputs, {"targets": targets})
        return self._loss_of(outputs, batch)

    def _loss_in_chunks(
        self, hidden: Tensor, batch: Batch, loss_of_part: Callable[[Tensor, Batch], Tensor]
    ) -> Tensor:
        if self._head is None:
            raise RuntimeError("there is no head to leave out")
        shape = batch["targets"].shape if "targets" in batch else ()

        def loss_of(part: Tensor, tokens: slice) -> Tensor:
            cut = {n: v[:, tokens] if v.shape[:2] == shape[:2] else v for n, v in batch.items()}
            return loss_of_part(part, cut)

        return chunked_loss(hidden, self._head.parameters(), loss_of, self._loss_chunks)

    def _loss_of_part(self, hidden: Tensor, part: Batch) -> Tensor:
        return self._loss_of(self._head(hidden), part)  # pyright: ignore[reportOptionalCall]

    def _loss_by_compiled_parts(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the loss, part by part; as without compiling from now on where that fails."""
        shape, limit = (*hidden.shape, str(hidden.dtype)), nullcontext()
        if shape not in self._compiled_shapes:
            limit = torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS)
        try:
            with limit:
                loss = self._loss_in_chunks(hidden, batch, self._captured(self._loss_of_part))
            self._compiled_shapes.add(shape)
            return loss
        except Exception as error:  # what is wrong with the loss itself is raised again below
            if is_out_of_memory(error):
                raise
            # torch's first line names the backend, the next what it has said
            reason = " ".join(str(error).split("\n")[:2]) or type(error).__name__
        loss = self.loss_of_outputs(hidden, batch)
        self.compiles_loss = False
        self.on_loss_uncompiled(reason)
        return loss

    def _run_compiled(self, batch: Batch) -> Tensor:
        compute = partial(self._compute_captured, batch)
        shape = (*shape_of_inputs(inputs_of(batch)), torch.is_grad_enabled())
        if shape in self._compiled_shapes:
            return self._timed(compute)
        self._compiled_shapes.add(shape)
        # torch counts the compilations of this method, over all runs of the process: here each
        # is wanted, once
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            return self._timed(compute)

    def _compute_captured(self, batch: Batch) -> Tensor:
        """Return the loss by one graph; in parts by two: of the model, and of a part's loss."""
        if self._head is None:
            return self._captured(self._run_whole)(batch)
        with self._head.left_out():
            hidden = self._captured(self._outputs)(batch)
        return self._loss_in_chunks(hidden, batch, self._captured(self._loss_of_part))

    def _run_whole(self, batch: Batch) -> Tensor:
        return self.loss_of_outputs(self._outputs(batch), batch)

    def _captured(self, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        name = compute.__name__
        if name not in self._compiled:
            self._compiled[name] = torch.compile(
                compute, backend=self._compile, fullgraph=True, dynamic=False
            )
        return self._compiled[name]

    def forget_compiled(self) -> None:
        """Compile anew from now on, as `memory` says by then."""
        torch._dynamo.reset()
        self._compiled.clear()
        self._compiled_shapes.clear()

    def backward(self, loss: Tensor, *, retain_graph: bool) -> None:
        """Add the gradient of a loss that `forward` returned; compiles it at the first time.

        Raises:
            ConfigError: as `forward`.
        """
        if self._is_new:
            self._timed(loss.backward)
            self._is_new = False
        else:
            loss.backward(retain_graph=retain_graph)

    def _timed(self, compute: Callable[[], T]) -> T:
        from torch._dynamo.exc import TorchDynamoException  # 2 s, so not at import

        graphs, began = self.num_graphs, perf_counter()
        try:
            result = compute()
        except TorchDynamoException as error:
            if is_out_of_memory(error):
                raise
            raise _explained(error) from error
        if self._is_new or self.num_graphs > graphs:
            self.compile_s += perf_counter() - began
            self._is_new = True
        return result

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        self.num_graphs += 1
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)

    def summary(self) -> dict[str, float]:
        """Return the counts, for `summary.json`."""
        return {
            "num_graphs": self.num_graphs,
            "compile_s": self.compile_s,
            "num_compiled": self.num_compiled,
            "num_eager": self.num_eager,
        }

    def describe(self) -> str:
        """Return in words what was compiled and what was not."""
        parts = [
            f"{self.num_graphs} graph{'s' if self.num_graphs != 1 else ''} compiled in"
            f" {self.compile_s:.1f} s",
            f"{self.num_compiled:,} micro-batches ran compiled",
        ]
        if self.num_eager:
            parts.append(f"{self.num_eager:,} of other shapes operator by operator")
        return ", ".join(parts)


def _explained(error: Exception) -> ConfigError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    own = [line for line in lines if line.startswith('File "') and "/torch/" not in line]
    if "compiler" in str(error).lower() and shutil.which("g++") is None:
        return ConfigError(
            f"graph=static needs a C++ compiler, and there is none: {reason}",
            fix="install g++ (apt-get install g++), or set graph=dynamic",
        )
    return ConfigError(
        f"graph=static: the model cannot be captured as one graph: {reason}"
        + (f" ({own[-1]})" if own else ""),
        fix="set graph=dynamic, or take out what Python decides by a tensor's value",
    )
