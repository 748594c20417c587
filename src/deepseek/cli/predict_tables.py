"""`deepseek predict` with a model of tables: rows -> a score for each label.

Imported by the command when it runs: it brings torch.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path

import torch
import typer

from deepseek.datasets import ColumnSource, FeatureEncoder
from deepseek.datasets.column_source import Columns
from deepseek.datasets.feature_encoder import missing_feature_column
from deepseek.datasets.table_reading import TableOptions
from deepseek.deploy.scoring import write_table
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import each_evaluating
from deepseek.models.table_scores import features_of, table_scores

NO_RESULT = 3
"""Exit code where rows could not be read."""
ROWS_AT_ONCE = 4096


def predict_tables(
    engine: ModelEngine,
    paths: Sequence[Path],
    output: Path | None,
    context: Callable[[], AbstractContextManager],
    options: TableOptions,
    *,
    batch_size: int | None,
    top_k: int,
    strict: bool,
    as_json: bool,
) -> None:
    """Score the rows of tables, and print or write them.

    A row has `index`, its place from 0 on, and `LABEL_prob`, or `LABEL_value` of a number; or
    `error`.

    Args:
        engine: a model of tables.
        paths: files, or folders of them.
        output: file to write to; `None`: they are printed.
        context: entered around each batch.
        options: how files are read.
        batch_size: rows at a time; by default 4,096.
        top_k: classes of a sample; rows have none.
        strict: a row that cannot be read ends it; else it has an error.
        as_json: print JSON.

    Raises:
        ConfigError: `top_k` is given.
        DataError: a row cannot be read, and that is not allowed.
    """
    if top_k != 1:
        raise ConfigError(
            f"--top-k {top_k}, and rows have a score for each label", fix="leave it out"
        )
    sources = (ColumnSource(path, options) for path in paths)
    scorer = _RowScorer(engine, context, batch_size or ROWS_AT_ONCE, strict=strict)
    rows = each_evaluating(engine, chain.from_iterable(map(scorer.rows_of, sources)))
    if output is not None:
        write_table(output, rows)
        print(f"{output}: {scorer.count} rows, {scorer.num_errors} of them could not be read")
    elif as_json:
        print(json.dumps(list(rows)))
    else:
        for row in rows:
            shown = [f"{name} {row[name]:.4g}" for name in scorer.names if row[name] is not None]
            print(f"{row['index']:<8}  {row['error'] or '  '.join(shown)}")
    if scorer.num_errors:
        if output is None:
            typer.echo(f"{scorer.num_errors} rows could not be read", err=True)
        raise typer.Exit(NO_RESULT)


class _RowScorer:
    """Scores the rows of tables, one table after the other; counts them."""

    def __init__(
        self,
        engine: ModelEngine,
        context: Callable[[], AbstractContextManager],
        batch_size: int,
        *,
        strict: bool,
    ) -> None:
        spec = features_of(engine)
        self._engine, self._context = engine, context
        self._batch_size, self._strict = batch_size, strict
        self._encoder = FeatureEncoder(spec)
        self.names = [
            f"{name}_{'prob' if entry.kind == 'binary' else 'value'}"
            for name, entry in spec.label.items()
        ]
        self.count = self.num_errors = 0

    def rows_of(self, source: ColumnSource) -> Iterator[dict]:
        """Yield a dict for each row of a table."""
        wanted = self._encoder.spec.columns
        if lacking := [name for name in wanted if name not in source.columns]:
            raise missing_feature_column(lacking[0], dict.fromkeys(source.columns))
        for columns in source.chunks(wanted):
            size = len(next(iter(columns.values()), ()))
            for start in range(0, size, self._batch_size):
                rows = slice(start, start + self._batch_size)
                yield from self._score({name: each[rows] for name, each in columns.items()})

    def _score(self, columns: Columns) -> Iterator[dict]:
        size = len(next(iter(columns.values()), ()))
        try:
            scores = self._compute(columns)
        except DataError as error:
            if self._strict:
                raise
            if size > 1:  # which of them it is
                for at in range(size):
                    yield from self._score({n: each[at : at + 1] for n, each in columns.items()})
                return
            self.num_errors += 1
            yield self._row([None] * len(self.names), error.message)
            return
        for each in scores:
            yield self._row(each, None)

    def _compute(self, columns: Columns) -> list[list[float]]:
        batch = self._encoder.encode(columns).batch()
        with torch.inference_mode(), self._context():
            return table_scores(self._engine, batch).tolist()

    def _row(self, scores: Sequence[float | None], error: str | None) -> dict:
        self.count += 1
        named = dict(zip(self.names, scores, strict=True))
        return {"index": self.count - 1, **named, "error": error}
