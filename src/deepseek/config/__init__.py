"""Settings of a run: `model_config.yaml` or keyword arguments -> `RunConfig`.

All problems are reported at once. Imports pydantic and ruamel.yaml, never torch.
"""

from deepseek.config.data import DataConfig as DataConfig
from deepseek.config.loading import load_config as load_config
from deepseek.config.loading import read_config as read_config
from deepseek.config.located import ConfigFileError as ConfigFileError
from deepseek.config.model import ModelConfig as ModelConfig
from deepseek.config.multi_data import MultiDataConfig as MultiDataConfig
from deepseek.config.nodule_data import NoduleDataConfig as NoduleDataConfig
from deepseek.config.optimizer import OptimizerConfig as OptimizerConfig
from deepseek.config.run import RunConfig as RunConfig
from deepseek.config.run import resolve as resolve
from deepseek.config.schema import dump_config as dump_config
from deepseek.config.schema import json_schema as json_schema
from deepseek.config.table_data import TableDataConfig as TableDataConfig
from deepseek.config.text_data import TextDataConfig as TextDataConfig
from deepseek.config.trainer import TrainerConfig as TrainerConfig
from deepseek.config.trainer import TrainerSettings as TrainerSettings
from deepseek.config.validation import validate_settings as validate_settings
from deepseek.config.volume_data import VolumeDataConfig as VolumeDataConfig
