"""Vectors for ids that nobody counted beforehand: rows come with ids, and go when they are unused.

No two ids share a row, unless they are too rare to have one: those have row 0 together. The first
vector of an id is a function of the id and a seed; what a table holds therefore does not depend on
the rows that ids came to have, and a table that was saved and loaded goes on bit for bit.

Shapes: N ids, E numbers of a vector, L ids with a row, S numbers of an optimizer's state.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from deepseek.errors import CheckpointError, ConfigError
from deepseek.models.checks import check_positive
from deepseek.models.growing_table import GrowingTable
from deepseek.recsys.tables.admission import SeenCounts
from deepseek.recsys.tables.mixing import mix, uniform
from deepseek.recsys.tables.removals import Removals
from deepseek.recsys.tables.row_optimizers import RowOptimizer
from deepseek.recsys.tables.row_store import RowStore

_NUM_COUNTERS = 1 << 18
_DTYPES = {"weight": torch.float32, "optimizer_state": torch.float32}


class GrowingEmbedding(GrowingTable):
    """A table from ids to vectors, one row for each id it has met while learning.

    ```
    table(ids)       int64 (...) -> (..., E); in training mode, ids that are new get rows
    loss.backward()
    table.step()     the rows of the ids go down, by the sum of each id's gradients
    ```

    Args:
        dim: E.
        optimizer: what a step does; `None`: the table is only read.
        admit_after: how often an id is met before it has a row of its own: from the end of the
            step on in which it was met for the last of these times.
        max_ids: above so many after a step, the least recently used eighth goes; `None`: never.
        scale: standard deviation of the first vectors.
        seed: of the first vectors, and of the hash of ids.
        capacity: rows there is memory for at the beginning; it doubles.

    Attributes:
        clock: the time of the last step.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(
        self,
        dim: int,
        optimizer: RowOptimizer | None = None,
        *,
        admit_after: int = 1,
        max_ids: int | None = None,
        scale: float = 0.01,
        seed: int = 0,
        capacity: int = 1024,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, admit_after=admit_after, capacity=capacity)
        if max_ids is not None:
            check_positive(max_ids=max_ids)
        self.dim, self.optimizer, self.max_ids = dim, optimizer, max_ids
        self.scale, self.seed, self.admit_after = scale, seed, admit_after
        self.clock = 0
        self._state_size = optimizer.state_size(dim) if optimizer is not None else 0
        self._key = key = int(mix(torch.tensor(seed, device="cpu")))
        self._store = self._new_store(capacity)
        self._seen = SeenCounts(_NUM_COUNTERS, key) if admit_after > 1 else None
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._summed: tuple[Tensor, Tensor] | None = None  # rows with gradients, and their sums
        self._met: list[tuple[Tensor, Tensor]] = []  # rare ids since the last step, and how often
        self._removals = Removals()

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"{self.dim}, num_ids={len(self)}, optimizer={self.optimizer}"

    def __len__(self) -> int:
        return self._store.num_ids

    @property
    def nbytes(self) -> int:
        """Memory of rows, optimizer, ids, times and index; counters of rare ids aside."""
        return self._store.nbytes

    # -- look up and learn -------------------------------------------------------------------

    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... E"]:
        """Return the vectors of ids, on their device; those without a row have the shared one."""
        learns = self.training and self.optimizer is not None and torch.is_grad_enabled()
        flat = _checked(ids).detach().reshape(-1).cpu()
        rows = self._find_or_add(flat) if learns else self._store.find(flat)
        vectors = self._store.values[:, : self.dim].index_select(0, rows)
        if learns:
            vectors.requires_grad_()
            self._pending.append((rows, vectors))
            self._summed = None
        return vectors.view(*ids.shape, self.dim).to(ids.device)

    def step(self, now: int | None = None) -> int:
        """Update the rows by the gradients of the backward passes since the last step.

        Args:
            now: the time by a clock that does not go back, in any unit; by default steps count.

        Returns:
            The number of rows updated.
        """
        rows, sums = self._sums()
        self._pending.clear()
        self._summed = None
        return self._take_step(rows, sums, now)

    def sum_of_squares(self) -> Float[Tensor, ""]:
        """Return the squared L2 norm of the gradient of all rows since the last step."""
        return self._sums()[1].square().sum()

    def scale_gradients(self, factor: float) -> None:
        """Multiply the gradients since the last step; the next thing must be the step."""
        self._sums()[1].mul_(factor)

    @torch.no_grad()
    def share_gradients(self, gather: Callable[[Tensor], Tensor], factor: float) -> None:
        """Add up the gradients of all ranks, so that each takes the same step.

        Args:
            gather: returns the rows of the tensors of all ranks, those of rank 0 first.
            factor: what the sums are multiplied by.
        """
        rows, sums = self._sums()
        if self._seen is None:
            met = torch.cat([rows.new_zeros(0), *(each for each, _ in self._pending)]).unique()
            self._find_or_add(gather(self._store.ids[met]))
            found, sums = self._store.find(gather(self._store.ids[rows])), gather(sums)
        else:
            ids, times = map(gather, _sum_times(self._met))
            self._met = [(ids, times)]
            has_row = rows > 0  # the others are in row 0, which is the row of no id
            found = self._store.find(gather(self._store.ids[rows[has_row]]))
            shared = gather(sums[~has_row])
            found = torch.cat([found.new_zeros(len(shared)), found])
            sums = torch.cat([shared, gather(sums[has_row])])
        self._summed = _sum_rows(found, sums * factor)

    @torch.no_grad()
    def _sums(self) -> tuple[Tensor, Tensor]:
        """Return the rows that have gradients since the last step, and the sum of each."""
        if self._summed is None:
            given = [(rows, it.grad) for rows, it in self._pending if it.grad is not None]
            rows = [torch.zeros(0, dtype=torch.int32), *(each for each, _ in given)]
            gradients = [torch.zeros(0, self.dim), *(each for _, each in given)]
            self._summed = _sum_rows(torch.cat(rows), torch.cat(gradients))
        return self._summed

    def drop_gradients(self) -> None:
        """Forget the gradients since the last step, and that rare ids were met."""
        self._pending.clear()
        self._summed = None
        self._met.clear()

    @torch.no_grad()
    def learn(
        self, ids: Int[Tensor, "N"], gradients: Float[Tensor, "N E"], now: int | None = None
    ) -> int:
        """Take a step with gradients that come from elsewhere; ids that are new get rows.

        Args:
            ids: the same one may be there several times.
            gradients: of each.
            now: as in `step`.

        Returns:
            The number of rows updated.

        Raises:
            ConfigError: the table is only read, or these are no gradients of its ids.
        """
        if self.optimizer is None:
            raise ConfigError(
                "a table without an optimizer was to learn",
                fix="give GrowingEmbedding an optimizer, for example AdaGrad(lr=0.05)",
            )
        if gradients.shape != (len(ids), self.dim):
            raise ConfigError(
                f"gradients of shape {tuple(gradients.shape)} were given for {len(ids)} ids of"
                f" dim={self.dim}",
                fix=f"give a gradient of {self.dim} numbers for each id",
            )
        return self._take_step(*_sum_rows(self._find_or_add(_checked(ids)), gradients), now)

    def _take_step(self, rows: Tensor, sums: Tensor, now: int | None) -> int:
        """Update rows by the sums of their gradients, admit ids, and keep to `max_ids`."""
        self.clock = self.clock + 1 if now is None else max(self.clock, now)
        self._update(rows, sums)
        if self._seen is not None:
            ids, times = _sum_times(self._met)
            self._met.clear()
            is_frequent = self._seen.add(ids, times) >= self.admit_after
            self._add(ids[is_frequent & (self._store.find(ids) == 0)])
        if self.max_ids is not None and len(self) > self.max_ids and not self._pending:
            self.expire(keep=self.max_ids - self.max_ids // 8)
        return len(rows)

    def _find_or_add(self, ids: Tensor) -> Tensor:
        rows = self._store.find(ids)
        places = (rows == 0).nonzero()[:, 0]
        if not len(places):
            return rows
        missing = ids[places]
        new, times = missing.unique(return_counts=True)
        if self._seen is not None:
            self._met.append((new, times))
            return rows
        self._add(new)
        rows[places] = self._store.find(missing)
        return rows

    def _add(self, ids: Tensor) -> None:
        """Give rows to different ids that have none."""
        if len(ids):
            self._write(self._store.add(ids, self.clock), self._first_vectors(ids))

    def _first_vectors(self, ids: Tensor) -> Tensor:
        return uniform(ids, self.dim, self._key).mul_(math.sqrt(3) * self.scale)

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, : self.dim], values[:, self.dim :]

    def _write(self, rows: Tensor, vectors: Tensor, state: Tensor | None = None) -> None:
        """Write rows, with the state that is given or the one that theirs begins with."""
        values = torch.empty(len(rows), self.dim + self._state_size)
        values[:, : self.dim] = vectors
        if state is not None:
            values[:, self.dim :] = state
        elif self.optimizer is not None:
            self.optimizer.begin(*self._parts(values))
        self._store.values.index_copy_(0, rows, values)

    @torch.no_grad()
    def _update(self, rows: Tensor, sums: Tensor) -> None:
        """Take the optimizer's step with the sums of the gradients of rows."""
        if self.optimizer is None or not len(rows):
            return
        values = self._store.values.index_select(0, rows)
        self.optimizer.update(*self._parts(values), sums)
        self._store.values.index_copy_(0, rows, values)
        self._store.used.index_fill_(0, rows, self.clock)

    # -- expire ------------------------------------------------------------------------------

    def expire(
        self, *, before: int | None = None, keep: int | None = None
    ) -> Int[Tensor, "removed"]:
        """Give up the rows of ids not used for long, state and all; they begin anew if they return.

        Rows that are left move together, and the memory of the others goes back. Counts of rare
        ids are halved.

        Args:
            before: the ids whose last step was before this time.
            keep: all but so many, used last; of those used at the same time the smaller ids go.

        Returns:
            The ids given up, in order.

        Raises:
            ConfigError: gradients wait for a step.
        """
        if self._pending:
            raise ConfigError(
                "rows cannot be given up while gradients wait for a step",
                fix="call step() or drop_gradients() first",
            )
        rows = self._store.rows()
        used = self._store.used[rows]
        goes = torch.zeros(len(rows), dtype=torch.bool)
        if before is not None:
            goes |= used < before
        if keep is not None and len(rows) > keep:
            goes[used.argsort(stable=True)[: len(rows) - keep]] = True
        if self._seen is not None:
            self._seen.age()
        removed = self._store.ids[rows[goes]]
        self._store.remove(rows[goes])
        self._removals.note(self.clock, removed, len(self))
        self.clock += 1  # what is saved from now on is known to be without them
        return removed

    # -- snapshots and deltas ----------------------------------------------------------------

    def delta(self, since: int, *, with_optimizer: bool = False) -> dict[str, Tensor]:
        """Return what changed since a time: rows written, ids given up.

        Args:
            since: `clock` of the table when the copy was up to date.
            with_optimizer: for a copy that goes on learning.

        Returns:
            Tensors for `apply_delta` of a copy, as a safetensors file holds them.

        Raises:
            ConfigError: what was given up at that time is not known any more.
        """
        if since < self._removals.complete_from:
            raise ConfigError(
                f"what was given up since time {since} is not known, only since"
                f" {self._removals.complete_from}",
                fix="copy the whole table: state_dict()",
            )
        rows = self._store.rows()
        content = self._content(rows[self._store.used[rows] >= since])
        if not with_optimizer:
            content.pop("optimizer_state", None)
        removed = self._removals.since(since)
        return {**content, "removed": removed, "since": torch.tensor(since)}

    def apply_delta(self, delta: Mapping[str, Tensor]) -> None:
        """Become what the table was that made a delta.

        Raises:
            CheckpointError: it begins after the time of this table, or is no delta for it.
        """
        delta = self._readable(delta)
        self._check(delta, ("removed", "since"))
        if int(delta["since"]) > self.clock:
            raise CheckpointError(
                f"a delta since time {int(delta['since'])} does not fit a table of time"
                f" {self.clock}: changes between them are missing",
                fix="apply the deltas in order, or load a whole table",
            )
        gone = self._store.find(delta["removed"])
        self._store.remove(gone[gone != 0].long())
        self._removals.note(self.clock, delta["removed"], len(self))
        self._take(delta)

    def _content(self, rows: Tensor) -> dict[str, Tensor]:
        values = self._store.values[torch.cat([rows.new_zeros(1), rows])]
        content = {
            "ids": self._store.ids[rows],
            "used": self._store.used[rows],
            "weight": values[:, : self.dim].clone(),  # the shared row first
            "clock": torch.tensor(self.clock),
        }
        if self._state_size:
            content["optimizer_state"] = values[:, self.dim :].clone()
        return content

    def _take(self, content: Mapping[str, Tensor]) -> None:
        ids = content["ids"]
        rows = self._store.find(ids).long()
        rows[rows == 0] = self._store.add(ids[rows == 0], self.clock)
        self._write(
            torch.cat([rows.new_zeros(1), rows]), content["weight"], content.get("optimizer_state")
        )
        self._store.used[rows] = content["used"]
        self.clock = int(content["clock"])

    def _check(self, content: Mapping[str, Tensor], more: tuple[str, ...] = ()) -> None:
        """Raise `CheckpointError` unless these are rows of such a table."""
        wanted = {"ids", "used", "weight", "clock", *more}
        if self._state_size:
            wanted.add("optimizer_state")
        problem = None
        if content.keys() != wanted:
            problem = f"it holds {', '.join(sorted(content))}, not {', '.join(sorted(wanted))}"
        else:
            ids = content["ids"]
            shapes = {
                "ids": (len(ids),), "used": (len(ids),), "clock": (),
                "weight": (len(ids) + 1, self.dim),
                "optimizer_state": (len(ids) + 1, self._state_size),
            }  # fmt: skip
            for name, shape in shapes.items():
                if name in content and tuple(content[name].shape) != shape:
                    problem = f"{name} is {tuple(content[name].shape)}, not {shape}"
            for name, tensor in content.items():
                dtype = _DTYPES.get(name, torch.int64)
                if tensor.dtype != dtype:
                    problem = f"{name} is of {tensor.dtype}, not {dtype}"
            if problem is None and bool((ids[1:] <= ids[:-1]).any()):
                problem = "its ids are not in order"
            elif problem is None and bool((content["used"] < 0).any()):
                problem = "a time is negative"
        if problem is not None:
            raise CheckpointError(
                f"this is not the content of {self}: {problem}",
                fix="build the table with the dim and the optimizer that it was saved with",
            )

    def _new_store(self, capacity: int) -> RowStore:
        """Return a store without ids, whose shared row is of zeros."""
        store = RowStore(self.dim + self._state_size, max(2, capacity), self._key)
        if self.optimizer is not None:
            self.optimizer.begin(*self._parts(store.values[:1]))
        return store

    # -- state -------------------------------------------------------------------------------

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        content = self._content(self._store.rows())
        if self._seen is not None:
            content["seen"] = self._seen.counters.clone()
        destination.update({prefix + name: tensor for name, tensor in content.items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        content = {
            name.removeprefix(prefix): tensor.cpu()
            for name, tensor in state_dict.items()
            if name.startswith(prefix)
        }
        seen = content.pop("seen", None)
        content = self._readable(content)
        self._check(content)
        if self._seen is not None:
            if seen is None or seen.shape != self._seen.counters.shape:
                raise CheckpointError(
                    f"there are no counts of rare ids for admit_after={self.admit_after}",
                    fix="build the table with the admit_after that it was saved with",
                )
            self._seen.counters.copy_(seen)
        self.drop_gradients()
        self._store = self._new_store(len(content["ids"]) + 1)
        self._take(content)
        self._removals = Removals(self.clock)

    def _readable(self, content: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return content without the optimizer's part, where this table has none."""
        skipped = () if self._state_size else ("optimizer_state",)
        return {name: tensor for name, tensor in content.items() if name not in skipped}


def _sum_rows(rows: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows once each, int64 (U,), and the sums of their gradients, float32 (U, E)."""
    if not len(rows):
        return rows.long(), gradients.float()
    # a stable order, so that sums are always taken in the same one
    ordered, order = rows.sort(stable=True)
    is_first = torch.ones(len(rows), dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = is_first.nonzero()[:, 0]
    sums = embedding_bag(order, gradients.float(), starts, mode="sum")
    return ordered[starts].long(), sums


def _sum_times(met: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return ids once each, int64 (U,), and how often they were met, int64 (U,)."""
    if not met:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    ids, places = torch.cat([ids for ids, _ in met]).unique(return_inverse=True)
    times = torch.cat([times for _, times in met])
    return ids, torch.zeros_like(ids).index_add_(0, places, times)


def _checked(ids: Tensor) -> Tensor:
    if ids.dtype != torch.int64:
        raise ConfigError(
            f"ids of dtype {ids.dtype} were given to a table of int64 ids",
            fix="give ids.long(); texts are hashed by encoding: open of the feature spec",
        )
    return ids
