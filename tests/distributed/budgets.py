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


def predict(runs, run_dir):
    """Return, by run, policy, blocks that are recomputed, and what is said of predicted peaks."""
    found = {}
    for name, settings in runs.items():
        chosen = {"loggers": ["jsonl"], "max_steps": 2, "run_dir": run_dir / name, **settings}
        trainer = make_trainer(chosen)
        trainer.fit()
        lines = (trainer.folder.path / "events.jsonl").read_text().splitlines()
        events = [each for each in map(json.loads, lines) if each["kind"] == "memory_peak"]
        memory = trainer.assembly.step.graph.memory
        peak = trainer.footprint and trainer.footprint.peak
        log = (trainer.folder.path / "log.txt").read_text()
        found[name] = (memory.name, sorted(memory.recomputed), peak, events, log)
    return found
