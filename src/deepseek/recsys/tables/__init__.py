"""Embedding tables that grow with the ids they meet, and the optimizers of their rows."""

from deepseek.recsys.tables.growing_embedding import GrowingEmbedding as GrowingEmbedding
from deepseek.recsys.tables.row_optimizers import FTRL as FTRL
from deepseek.recsys.tables.row_optimizers import AdaGrad as AdaGrad
from deepseek.recsys.tables.row_optimizers import RowAdam as RowAdam
from deepseek.recsys.tables.row_optimizers import RowOptimizer as RowOptimizer
