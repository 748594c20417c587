"""The settings of a run and its parallel plan, checked before anything is begun."""

import torch

from deepseek.config import TrainerConfig, TrainerSettings, validate_settings
from deepseek.datasets import DataLoader, DataSpec
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.classifier import BlockModel
from deepseek.models.cut import KIND as PRUNED
from deepseek.models.gpt import GPT
from deepseek.parallel.plan import BatchFacts, Plan, facts_of, resolve_plan
from deepseek.parallel.world import processes
from deepseek.trainer.assembly import choose_batch_size
from deepseek.trainer.optimizer import Optimizer


def plan_run(
    config: TrainerConfig, engine: ModelEngine, spec: DataSpec, *, varies_in_length: bool = False
) -> Plan:
    """Return which rank does what; before any of them meets another.

    Args:
        config: settings of the run.
        engine: the model.
        spec: what the data hold.
        varies_in_length: whether a batch is only as long as the longest of its samples.

    Raises:
        ConfigError: the plan cannot work.
    """
    module = engine.module
    num_tokens = None
    if isinstance(module, BlockModel) and "inputs" in spec.fields:
        num_tokens = module.count_tokens(torch.empty((1, *spec.fields["inputs"].shape)))
    facts = facts_of(module, engine.hints, num_tokens)
    batch = BatchFacts(
        config.batch_size,
        config.grad_accum_steps,
        config.optimizer.lower(),
        config.precision,
        config.graph,
        config.keep_graph,
        config.sequence_length_ramp is not None,
        varies_in_length,
    )
    _, size = processes()
    plan = resolve_plan(config.parallel, size, facts, batch)
    if plan.tp > 1 and any(change.get("kind") == PRUNED for change in engine.changes):
        raise ConfigError(
            f"tp={plan.tp} and a pruned model: its blocks have heads and features of any number,"
            " which ranks cannot divide alike",
            fix="use dp or fsdp",
        )
    own = module.document_token if isinstance(module, GPT) else None
    if plan.cp > 1 and (spec.document_token is not None or own is not None):
        raise ConfigError(
            f"cp={plan.cp} and documents that do not see each other: ranks that divide a sequence"
            " know no documents",
            fix="set attend_across_documents to True, or cp to 1",
        )
    return plan


def configure(settings: TrainerSettings, optimizer: str | Optimizer, train_data) -> TrainerConfig:
    """Return the settings of a run from the arguments of `Trainer`.

    Raises:
        ConfigError: they are wrong, or contradict each other.
    """
    given: dict = dict(settings)
    if isinstance(optimizer, Optimizer):
        held = {"lr", "weight_decay", "momentum", "betas"}
        if twice := sorted(key for key in held & given.keys() if given[key] != "auto"):
            raise ConfigError(
                f"{', '.join(twice)} set beside an Optimizer recipe, which holds the like",
                fix="set them in the Optimizer, or name the optimizer as a string",
            )
        optimizer = optimizer.algorithm
    given["optimizer"] = optimizer
    given["batch_size"] = choose_batch_size(given.get("batch_size"), train_data)
    if given.get("max_steps") is not None or given.get("time_budget") is not None:
        given.setdefault("epochs", None)
    return validate_settings(TrainerConfig, given)


def check_evaluation(plan: Plan, loader: DataLoader) -> None:
    """Refuse a plan under which a model cannot be evaluated.

    Args:
        plan: of the run.
        loader: of the data that it would be evaluated on.

    Raises:
        ConfigError: the pipeline is a V, or takes batches of one length.
    """
    if plan.is_v_shaped:
        raise ConfigError(
            f"schedule={plan.settings.schedule} and an evaluation: torch's V has no forward pass"
            " alone",
            fix="use schedule=interleaved_zero_bubble, or leave the validation data out",
        )
    if plan.pp > 1 and loader.varies_in_length:
        raise ConfigError(
            f"pp={plan.pp}: stages send activations of one shape, and batches of the validation"
            " data differ in length",
            fix="give the validation data padding=sequence_length",
        )
