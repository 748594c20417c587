"""Layer 2, model computation: batches -> outputs."""

from deepseek.models.hints import ParallelHints as ParallelHints
from deepseek.models.resnet import ResNet as ResNet
from deepseek.models.vit import VisionTransformer as VisionTransformer
