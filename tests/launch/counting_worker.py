"""Count steps together until a file says that it is enough; go on from where the file left off.

`counting_worker.py FOLDER [PACE_S]`: rank 0 writes FOLDER/state.json (as a training writes its
checkpoint) and one line per step to FOLDER/steps.jsonl; FOLDER/enough ends the job.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

folder = Path(sys.argv[1])
pace_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.1
state = folder / "state.json"
dist.init_process_group("gloo", timeout=timedelta(seconds=8))
rank, world_size = dist.get_rank(), dist.get_world_size()
step = torch.tensor([json.loads(state.read_text())["step"] if state.exists() else 0])
dist.broadcast(step, 0)
count, is_enough = int(step), False
while not is_enough:
    votes = torch.tensor([1, int(rank == 0 and (folder / "enough").exists())])
    dist.all_reduce(votes)
    is_enough = bool(votes[1])
    count += 1
    if rank == 0:
        new = folder / f"state.{os.getpid()}"
        new.write_text(json.dumps({"step": count}))
        new.rename(state)
        line = {"step": count, "world_size": int(votes[0]), "time_s": time.time()}
        line |= {"pid": os.getpid(), "host": os.environ.get("TEST_HOST")}
        line |= {"run": os.environ["TORCHELASTIC_RUN_ID"]}
        with (folder / "steps.jsonl").open("a") as steps:
            steps.write(json.dumps(line) + "\n")
    time.sleep(pace_s)
dist.destroy_process_group()
