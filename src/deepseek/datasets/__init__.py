"""Layer 1: files -> batches."""

from deepseek.datasets.image_dataset import ImageDataset as ImageDataset
from deepseek.datasets.infer_spec import infer_spec as infer_spec
from deepseek.datasets.loader import DataLoader as DataLoader
from deepseek.datasets.normalization import Normalization as Normalization
from deepseek.datasets.spec import DataSpec as DataSpec
from deepseek.datasets.spec import FieldSpec as FieldSpec
from deepseek.datasets.token_dataset import TokenDataset as TokenDataset
