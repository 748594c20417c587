"""Layer 1: files -> batches."""

from deepseek.config.feature_file import dump_features as dump_features
from deepseek.config.feature_file import read_features as read_features
from deepseek.config.feature_file import write_features as write_features
from deepseek.config.features import FeatureSpec as FeatureSpec
from deepseek.datasets.column_source import ColumnSource as ColumnSource
from deepseek.datasets.feature_encoder import FeatureEncoder as FeatureEncoder
from deepseek.datasets.feature_fitting import fit_features as fit_features
from deepseek.datasets.feature_inference import infer_features as infer_features
from deepseek.datasets.image_dataset import ImageDataset as ImageDataset
from deepseek.datasets.infer_spec import infer_spec as infer_spec
from deepseek.datasets.interaction_dataset import InteractionDataset as InteractionDataset
from deepseek.datasets.joint_dataset import JointDataset as JointDataset
from deepseek.datasets.loader import DataLoader as DataLoader
from deepseek.datasets.multi_task_dataset import MultiTaskDataset as MultiTaskDataset
from deepseek.datasets.normalization import Normalization as Normalization
from deepseek.datasets.spec import DataSpec as DataSpec
from deepseek.datasets.spec import FieldSpec as FieldSpec
from deepseek.datasets.text_dataset import TextDataset as TextDataset
from deepseek.datasets.text_source import read_texts as read_texts
from deepseek.datasets.token_dataset import TokenDataset as TokenDataset
from deepseek.datasets.tokenizer import Tokenizer as Tokenizer
from deepseek.datasets.tokenizer import load_tokenizer as load_tokenizer
from deepseek.datasets.tokenizer import train_tokenizer as train_tokenizer
from deepseek.datasets.volume import Volume as Volume
from deepseek.datasets.volume_dataset import VolumeDataset as VolumeDataset
from deepseek.datasets.volume_file import read_volume as read_volume
