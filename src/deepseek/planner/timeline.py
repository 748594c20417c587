"""What each pipeline rank does when: forward and backward passes of one step, and the waits.

Orders of passes are those of the papers named in `deepseek.planner.pipeline`. Zero-bubble schedules
split backward into gradients of inputs and of weights; a rank fills its waits with the latter, and
takes the former first: what the papers' hand-made orders do, found here by taking turns.
"""

from heapq import heappop, heappush
from typing import Literal, NamedTuple

from deepseek.planner.cluster import Cluster
from deepseek.planner.compute import recompute_s, time_block, time_head
from deepseek.planner.constants import CALIBRATION, Calibration
from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.pipeline import LOOPED
from deepseek.planner.prediction import Prediction
from deepseek.planner.shape import TransformerShape

Kind = Literal["forward", "backward", "weights", "communication", "optimizer", "host"]
SPLITS_BACKWARD = ("interleaved_zero_bubble", "zbv_zero_bubble")


class Pass(NamedTuple):
    """A box of the picture."""

    rank: int
    kind: Kind
    stage: int
    micro_batch: int
    start_s: float
    end_s: float


class StageTime(NamedTuple):
    """Seconds of a stage for one micro-batch, communication included."""

    forward_s: float
    backward_s: float


class Task(NamedTuple):
    """A pass before it has a time."""

    kind: Kind
    stage: int
    micro_batch: int


def place_stage(plan: ParallelPlan, stage: int) -> int:
    """Return the rank of a stage: in rounds, or there and back in a V."""
    turn, rank = divmod(stage, plan.pp)
    if plan.schedule == "zbv_zero_bubble" and turn % 2:
        return plan.pp - 1 - rank
    return rank


def time_stages(
    model: TransformerShape,
    cluster: Cluster,
    plan: ParallelPlan,
    prediction: Prediction,
    cal: Calibration = CALIBRATION,
) -> list[StageTime]:
    """Return the seconds of every stage, first to last."""
    kind = (plan.precision, plan.attention, plan.sequence_parallel, plan.is_fused)
    block = time_block(model, cluster.gpu, plan.micro_batch_size, plan.tp, plan.cp, kind, cal)
    tokens = plan.micro_batch_size * model.context_length / plan.cp
    head = time_head(model, cluster.gpu, tokens, plan.tp, plan.precision, plan.is_loss_fused, cal)
    num_stages = plan.pp * plan.virtual_stages
    each, extra = divmod(model.num_layers, num_stages)
    first = (num_stages - extra) // 2
    times = prediction.time_s
    most = -(-model.num_layers // num_stages) * plan.virtual_stages
    # Half of the sums of a block are forward; recomputation and its sums are backward.
    sums_s = (times["tp"] + times["cp"]) / plan.num_micro_batches / most
    send_s = times["pp"] / plan.num_micro_batches / plan.virtual_stages / 2
    stages = []
    for stage in range(num_stages):
        layers = each + (first <= stage < first + extra)
        forward_s = layers * (block.forward_s + sums_s / 2) + send_s
        backward_s = layers * (block.backward_s + recompute_s(block, plan) + sums_s / 2) + send_s
        if stage == num_stages - 1:
            forward_s, backward_s = forward_s + head[0], backward_s + head[1]
        stages.append(StageTime(forward_s, backward_s))
    return stages


def list_tasks(plan: ParallelPlan, rank: int) -> list[Task]:
    """Return the passes of `rank` in the order of the schedule; backward is one pass."""
    pp, stages, count = plan.pp, plan.virtual_stages, plan.num_micro_batches
    if plan.schedule in LOOPED and stages > 1:
        group = count if plan.schedule == "looped_bfs" else pp
        order = [
            (turn * pp + rank, micro_batch)
            for begin in range(0, count, group)
            for turn in range(stages)
            for micro_batch in range(begin, min(begin + group, count))
        ]
        forward = [Task("forward", stage, mb) for stage, mb in order]
        backward = [Task("backward", _mirror(stage, pp, stages), mb) for stage, mb in order]
        warm = 2 * (pp - rank - 1) + (stages - 1) * pp + 1
        warm = len(forward) if plan.schedule == "looped_bfs" else warm
    else:
        forward = [Task("forward", rank, mb) for mb in range(count)]
        backward = [Task("backward", rank, mb) for mb in range(count)]
        warm = count if plan.schedule == "gpipe" else pp - rank
    warm = min(warm, len(forward))
    tasks = forward[:warm]
    for at in range(len(backward)):
        tasks.append(backward[at])
        tasks += forward[warm + at : warm + at + 1]
    return tasks


def _mirror(stage: int, pp: int, stages: int) -> int:
    """The stage of the same rank that is as far from the end as `stage` is from the start."""
    turn, rank = divmod(stage, pp)
    return (stages - 1 - turn) * pp + rank


def draw_up(
    model: TransformerShape, cluster: Cluster, plan: ParallelPlan, prediction: Prediction
) -> list[Pass]:
    """Return every pass of a step with its times in seconds, and what comes after them."""
    stages = time_stages(model, cluster, plan, prediction)
    if plan.schedule in SPLITS_BACKWARD and plan.pp > 1:
        passes = _take_turns(plan, stages)
    else:
        passes = _follow_orders(plan, stages)
    end_s = max(entry.end_s for entry in passes)
    ends: tuple[tuple[Kind, float], ...] = (
        ("communication", prediction.time_s["dp"]),
        ("optimizer", prediction.time_s["optimizer"]),
        ("host", prediction.time_s["host"]),
    )
    for kind, seconds in ends:
        if kind == "host" and not seconds:
            continue
        passes += [Pass(rank, kind, 0, 0, end_s, end_s + seconds) for rank in range(plan.pp)]
        end_s += seconds
    return passes


def _needs(task: Task, num_stages: int) -> Task | None:
    """The pass whose result `task` takes; `None` for data."""
    kind, stage, micro_batch = task
    if kind == "forward":
        return Task("forward", stage - 1, micro_batch) if stage else None
    if kind == "weights":
        return Task("backward", stage, micro_batch)
    if stage == num_stages - 1:
        return Task("forward", stage, micro_batch)
    return Task("backward", stage + 1, micro_batch)


def _follow_orders(plan: ParallelPlan, stages: list[StageTime]) -> list[Pass]:
    """Run each rank's tasks in their order, each as soon as what it needs is there."""
    queues = [list_tasks(plan, rank) for rank in range(plan.pp)]
    at, free_s = [0] * plan.pp, [0.0] * plan.pp
    done_s: dict[Task, float] = {}
    passes: list[Pass] = []
    waiting = True
    while waiting:
        waiting = False
        for rank, queue in enumerate(queues):
            while at[rank] < len(queue):
                task = queue[at[rank]]
                need = _needs(task, len(stages))
                if need is not None and need not in done_s:
                    break
                start_s = max(free_s[rank], done_s[need] if need is not None else 0.0)
                seconds = getattr(stages[task.stage], f"{task.kind}_s")
                free_s[rank] = done_s[task] = start_s + seconds
                passes.append(Pass(rank, *task, start_s, free_s[rank]))
                at[rank] += 1
                waiting = True
    return passes


def _take_turns(plan: ParallelPlan, stages: list[StageTime]) -> list[Pass]:
    """Run on each rank what is ready: gradients of inputs, forward while memory lasts, weights."""
    places = [place_stage(plan, stage) for stage in range(len(stages))]
    own = [[stage for stage, at in enumerate(places) if at == rank] for rank in range(plan.pp)]
    turns = _Turns(plan, len(stages))
    free_s = [0.0] * plan.pp
    passes: list[Pass] = []
    events = [(0.0, rank) for rank in range(plan.pp)]
    while events:
        now_s, rank = heappop(events)
        if free_s[rank] > now_s:
            continue
        task = turns.choose(own[rank], rank, now_s)
        if task is None:
            continue
        time = stages[task.stage]
        # Gradients of inputs and of weights take about half of backward each.
        back_s = time.backward_s / 2 if plan.puts_off_weights else time.backward_s
        free_s[rank] = end_s = now_s + (time.forward_s if task.kind == "forward" else back_s)
        turns.note(task, end_s)
        if task.kind == "backward" and not plan.puts_off_weights:
            turns.note(task._replace(kind="weights"), end_s)
        passes.append(Pass(rank, *task, now_s, end_s))
        for stage in {task.stage, max(task.stage - 1, 0), min(task.stage + 1, len(stages) - 1)}:
            heappush(events, (end_s, places[stage]))
        heappush(events, (end_s, rank))
    return passes


class _Turns:
    """What has been done of each stage, and what is next."""

    def __init__(self, plan: ParallelPlan, num_stages: int) -> None:
        self.plan, self.num_stages = plan, num_stages
        self.done_s: dict[Task, float] = {}
        self.next = {kind: [0] * num_stages for kind in ("backward", "forward", "weights")}

    def choose(self, stages: list[int], rank: int, now_s: float) -> Task | None:
        """The most urgent pass of `stages` that can start now; late stages come first."""
        for kind in ("backward", "forward", "weights"):
            for stage in reversed(stages):
                task = Task(kind, stage, self.next[kind][stage])
                if task.micro_batch < self.plan.num_micro_batches and self._can_start(
                    task, rank, now_s
                ):
                    return task
        return None

    def _can_start(self, task: Task, rank: int, now_s: float) -> bool:
        if task.kind == "forward":
            held = task.micro_batch - self.next["weights"][task.stage]
            if held >= self._most_held(rank):
                return False
        need = _needs(task, self.num_stages)
        return need is None or self.done_s.get(need, float("inf")) <= now_s

    def _most_held(self, rank: int) -> int:
        """Micro-batches of a stage in flight."""
        plan = self.plan
        if plan.schedule == "zbv_zero_bubble":
            return plan.pp
        return -(-(2 * (plan.pp - rank - 1) + 1) // plan.virtual_stages) + plan.pp

    def note(self, task: Task, end_s: float) -> None:
        """`task` will be done at `end_s`."""
        self.done_s[task] = end_s
        self.next[task.kind][task.stage] += 1
