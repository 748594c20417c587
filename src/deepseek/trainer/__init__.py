"""Layer 3, optimisation and scheduling: when and how a step is taken."""

from deepseek.trainer.callbacks import BestModel as BestModel
from deepseek.trainer.callbacks import Callback as Callback
from deepseek.trainer.callbacks import EarlyStopping as EarlyStopping
from deepseek.trainer.cross_validation import choose_folds as choose_folds
from deepseek.trainer.cross_validation import cross_validate as cross_validate
from deepseek.trainer.distillation import Distillation as Distillation
from deepseek.trainer.dry_run import DryRun as DryRun
from deepseek.trainer.dry_run import dry_run as dry_run
from deepseek.trainer.evaluation import evaluate_model as evaluate_model
from deepseek.trainer.finish import RUN_OUTPUTS as RUN_OUTPUTS
from deepseek.trainer.history import History as History
from deepseek.trainer.loggers import LOGGERS as LOGGERS
from deepseek.trainer.loggers import Logger as Logger
from deepseek.trainer.lr_range import LRRange as LRRange
from deepseek.trainer.lr_range import lr_range_test as lr_range_test
from deepseek.trainer.metrics import Mean as Mean
from deepseek.trainer.metrics import Metric as Metric
from deepseek.trainer.multi_task import MultiTask as MultiTask
from deepseek.trainer.optimizer import OPTIMIZERS as OPTIMIZERS
from deepseek.trainer.optimizer import Optimizer as Optimizer
from deepseek.trainer.regression import RegressionTask as RegressionTask
from deepseek.trainer.schedule import SCHEDULES as SCHEDULES
from deepseek.trainer.schedule import Schedule as Schedule
from deepseek.trainer.segmentation import SegmentationTask as SegmentationTask
from deepseek.trainer.task import TASKS as TASKS
from deepseek.trainer.task import ClassificationTask as ClassificationTask
from deepseek.trainer.task import LanguageModellingTask as LanguageModellingTask
from deepseek.trainer.task import Task as Task
from deepseek.trainer.token_classification import (
    TokenClassificationTask as TokenClassificationTask,
)
from deepseek.trainer.trainer import Trainer as Trainer
from deepseek.trainer.weighting import WEIGHTINGS as WEIGHTINGS
from deepseek.trainer.weighting import Weighting as Weighting
