"""State across time: checkpoints with a manifest and hashes, written atomically, without pickle."""

from deepseek.checkpoint.background import BackgroundSaver as BackgroundSaver
from deepseek.checkpoint.crew import Crew as Crew
from deepseek.checkpoint.manifest import verify as verify
from deepseek.checkpoint.optimizer_state import join_state as join_state
from deepseek.checkpoint.optimizer_state import split_state as split_state
from deepseek.checkpoint.random_state import RandomState as RandomState
from deepseek.checkpoint.store import Checkpoint as Checkpoint
from deepseek.checkpoint.store import CheckpointStore as CheckpointStore
from deepseek.checkpoint.store import load_checkpoint as load_checkpoint
from deepseek.checkpoint.store import open_checkpoint as open_checkpoint
from deepseek.checkpoint.store import verify_checkpoint as verify_checkpoint
from deepseek.checkpoint.stored_tensors import StoredTensors as StoredTensors
