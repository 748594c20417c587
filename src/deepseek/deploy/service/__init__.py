"""A model as a service: HTTP in, predictions out, in batches."""

from deepseek.deploy.service.protection import Limits as Limits
from deepseek.deploy.service.server import ServiceSettings as ServiceSettings
from deepseek.deploy.service.server import serve as serve
from deepseek.deploy.service.shelf import Pace as Pace
