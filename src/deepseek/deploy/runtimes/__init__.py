"""Ways to run a model, each behind the same three functions: convert, open, what is missing."""

from deepseek.deploy.runtimes.runtime import Conversion as Conversion
from deepseek.deploy.runtimes.runtime import Execution as Execution
from deepseek.deploy.runtimes.runtime import Runtime as Runtime
from deepseek.registry import Registry

RUNTIMES: Registry[type[Runtime]] = Registry(
    "runtime",
    {
        "eager": "deepseek.deploy.runtimes.in_torch:Eager",
        "compiled": "deepseek.deploy.runtimes.in_torch:Compiled",
        "exported": "deepseek.deploy.runtimes.exported:Exported",
        "aoti": "deepseek.deploy.runtimes.exported:AheadOfTime",
        "onnxruntime": "deepseek.deploy.runtimes.onnx_runtime:OnnxRuntime",
        "openvino": "deepseek.deploy.runtimes.openvino:OpenVino",
        "executorch": "deepseek.deploy.runtimes.executorch:ExecuTorch",
        "tensorrt": "deepseek.deploy.runtimes.tensorrt:TensorRt",
    },
)
