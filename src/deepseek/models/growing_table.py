"""The interface of tables that grow while a model learns, and keep their optimizer in their rows.

Their tensors are no parameters or buffers: they have another size every day, stay in the memory of
the host, and are updated by the table itself. Whoever steps the other weights steps them:

```
loss.backward()
optimizer.step()
for table in growing_tables(model).values():
    table.step()                                # or drop_gradients(), where a step is skipped
```
`state_dict` has them all the same, and `load_state_dict` takes any size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn


class GrowingTable(nn.Module, ABC):
    """A table from ids to vectors that has rows for the ids it has met."""

    @abstractmethod
    def step(self, now: int | None = None) -> int:
        """Update the rows by the gradients of the backward passes since the last step.

        Args:
            now: the time by a clock that does not go back, in any unit; by default steps count.

        Returns:
            The number of rows updated.
        """

    @abstractmethod
    def share_gradients(self, gather: Callable[[Tensor], Tensor], factor: float) -> None:
        """Add up the gradients since the last step over ranks, so that each takes the same step.

        Args:
            gather: returns the rows of the tensors of all ranks, those of rank 0 first.
            factor: what the sums are multiplied by.
        """

    @abstractmethod
    def sum_of_squares(self) -> Tensor:
        """Return the squared L2 norm of the gradient of all rows since the last step, a scalar."""

    @abstractmethod
    def scale_gradients(self, factor: float) -> None:
        """Multiply the gradients since the last step; the next thing must be the step."""

    @abstractmethod
    def drop_gradients(self) -> None:
        """Forget the gradients since the last step."""


def growing_tables(module: nn.Module) -> dict[str, GrowingTable]:
    """Return the tables of a model that grow, by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, GrowingTable)}
