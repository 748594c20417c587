"""Runs under a budget of memory, to be run by `run_ranks`."""

import json

from tests.distributed.measured_steps import make_trainer

from deepseek.errors import ConfigError


def refuse_bytes(layouts, memory, run_dir):
    """Return what a run of each layout is refused with."""
    found = {}
    for layout in layouts:
        settings = {"parallel": layout, "memory": memory, "run_dir": run_dir / layout}
        try:
            make_trainer(settings).fit()
        except ConfigError as error:
            found[layout] = error.message
    return found


def predict(settings, run_dir):
    """Return policy, blocks that are recomputed, and what is said of the predicted peak."""
    trainer = make_trainer({"loggers": ["jsonl"], "max_steps": 2, "run_dir": run_dir, **settings})
    trainer.fit()
    lines = (trainer.folder.path / "events.jsonl").read_text().splitlines()
    events = [each for each in map(json.loads, lines) if each["kind"] == "memory_peak"]
    memory, log = trainer.assembly.step.graph.memory, (run_dir / "log.txt").read_text()
    peak = trainer.footprint and trainer.footprint.peak
    return memory.name, sorted(memory.recomputed), peak, events, log
