"""Models in and out: PyTorch, Hugging Face, timm and torchvision weights <-> `ModelEngine`."""

from deepseek.convert.conversion import Conversion as Conversion
from deepseek.convert.conversion import convert as convert
from deepseek.convert.conversion import deepseek_to_pytorch as deepseek_to_pytorch
from deepseek.convert.conversion import pytorch_to_deepseek as pytorch_to_deepseek
from deepseek.convert.export import deepseek_to_huggingface as deepseek_to_huggingface
from deepseek.convert.export import write_state_dict as write_state_dict
from deepseek.convert.recognition import family_names as family_names
from deepseek.convert.report import Report as Report
from deepseek.convert.verification import verify_conversion as verify_conversion
