"""Layer 2, model computation: batches -> outputs."""

from deepseek.models.center_detector import CenterDetector3D as CenterDetector3D
from deepseek.models.embedder import Embedder as Embedder
from deepseek.models.embedder import FeatureLayout as FeatureLayout
from deepseek.models.encoder import Encoder as Encoder
from deepseek.models.engine import ModelEngine as ModelEngine
from deepseek.models.gpt import GPT as GPT
from deepseek.models.growing_table import GrowingTable as GrowingTable
from deepseek.models.hints import ParallelHints as ParallelHints
from deepseek.models.imagenet_resnet import ImageNetResNet as ImageNetResNet
from deepseek.models.llama import Llama as Llama
from deepseek.models.multi_head import MultiHead as MultiHead
from deepseek.models.prediction import Prediction as Prediction
from deepseek.models.prompts import Generation as Generation
from deepseek.models.resnet import ResNet as ResNet
from deepseek.models.sliding_window import SlidingWindow as SlidingWindow
from deepseek.models.table_model import TableModel as TableModel
from deepseek.models.text_vectors import sentence_vectors as sentence_vectors
from deepseek.models.unet3d import UNet3D as UNet3D
from deepseek.models.vit import VisionTransformer as VisionTransformer
from deepseek.models.volume_detector import Centers as Centers
from deepseek.models.volume_detector import VolumeDetector as VolumeDetector
from deepseek.models.volume_predictor import WindowOptions as WindowOptions
from deepseek.models.volume_segmenter import VolumeSegmenter as VolumeSegmenter
from deepseek.models.zoo import list_models as list_models
