"""What a training will need, on paper: memory and time of a plan, before renting a GPU.

```
TransformerShape, Cluster, ParallelPlan   ->  predict  ->  Prediction     any plan, costed
TransformerShape, Cluster                 ->  search   ->  Candidates     all that fit, ranked
TransformerShape, Cluster  ->  choose_settings  ->  settings of a run that follow the best
```
Pure Python: nothing here needs torch.
"""

from deepseek.planner.cluster import Cluster as Cluster
from deepseek.planner.cluster import Gpu as Gpu
from deepseek.planner.cluster import Host as Host
from deepseek.planner.hardware import GPUS as GPUS
from deepseek.planner.hardware import find_gpu as find_gpu
from deepseek.planner.huggingface import shape_from_huggingface as shape_from_huggingface
from deepseek.planner.huggingface import shape_from_table as shape_from_table
from deepseek.planner.parallel_plan import ParallelPlan as ParallelPlan
from deepseek.planner.predict import predict as predict
from deepseek.planner.prediction import Prediction as Prediction
from deepseek.planner.presets import PRESETS as PRESETS
from deepseek.planner.presets import find_shape as find_shape
from deepseek.planner.run_settings import choose_settings as choose_settings
from deepseek.planner.search import Candidates as Candidates
from deepseek.planner.search import search as search
from deepseek.planner.search_space import SearchSpace as SearchSpace
from deepseek.planner.shape import TransformerShape as TransformerShape
