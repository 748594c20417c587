"""Clients that ask at once: throughput and latency of the service, with batches and one by one.

Every client keeps its connection and asks again as soon as it is answered. Beside ours, the same
model in LitServe, where it is installed (`pip install litserve`), at the same largest batch: it
waits for a batch to fill up, 5 ms here. All serve the same file on loopback, with the same threads.
Contestants take turns; each turn is a service of its own, warmed up for two seconds.

    python benchmarks/service.py                           200 clients, 20 s a turn
    python benchmarks/service.py --seconds 60 --rounds 1
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from deepseek.datasets import DataSpec
from deepseek.models import ModelEngine, VisionTransformer
from measure import markdown_table, report

WARM_S = 2.0
FIGURES = ("per_s", "p50_ms", "p99_ms", "cpu_ms")
MAX_BATCH = 32
LITSERVE = """
import sys
import litserve
import torch
from deepseek.models import ModelEngine

class API(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(int(sys.argv[3]))
        self.engine = ModelEngine.load(sys.argv[1]).eval()
    def decode_request(self, request):
        return torch.tensor(request["inputs"], dtype=torch.float32)
    def batch(self, inputs):
        return torch.stack(inputs)
    def predict(self, batch):
        with torch.inference_mode():
            return self.engine(batch).float().softmax(-1)
    def unbatch(self, output):
        return list(output)
    def encode_response(self, output):
        value, index = output.reshape(-1).max(0)
        return {"index": int(index), "prob": float(value)}

if __name__ == "__main__":
    api = API(max_batch_size=32, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(
        port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="error"
    )
"""


def save_model(path: Path, dim: int) -> None:
    """Write a small transformer of pictures of 8 x 8."""
    torch.manual_seed(0)
    names = [str(index) for index in range(10)]
    model = VisionTransformer(
        image_size=8, patch_size=2, num_layers=4, dim=dim, heads=4, channels=1, num_classes=10
    )
    field = {"shape": [1, 8, 8], "dtype": "float32"}
    spec = DataSpec.from_json(
        {
            "task": "classification", "fields": {"inputs": field}, "class_names": names,
            "class_counts": [1] * 10, "transform": None, "normalization": None,
        }
    )  # fmt: skip
    ModelEngine.wrap(model, spec).save(path)


# -- clients ---------------------------------------------------------------------------------


def make_request(port: int) -> bytes:
    """Return one request, whole."""
    sample = np.random.default_rng(0).normal(size=(1, 8, 8)).round(3).tolist()
    body = json.dumps({"inputs": sample}).encode()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask(port: int, request: bytes, until: float, times: list[float]) -> int:
    """Ask again and again; return how many requests failed."""
    failed = 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.perf_counter() < until:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            failed += b" 200 " not in head[:20]
            times.append(time.perf_counter() - began)
    except (OSError, asyncio.IncompleteReadError, StopIteration):
        failed += 1
    finally:
        writer.close()
    return failed


async def load(port: int, clients: int, seconds: float) -> tuple[list[float], int]:
    """Return the seconds of every request, and how many failed."""
    request, times = make_request(port), []
    until = time.perf_counter() + seconds
    failed = await asyncio.gather(*(ask(port, request, until, times) for _ in range(clients)))
    return times, sum(failed)


# -- services --------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(name: str, model: Path, port: int, threads: int) -> Iterator[int]:
    """Run a service until the context ends; its process id."""
    if name == "LitServe":
        script = model.with_name("litserve_app.py")
        script.write_text(LITSERVE, encoding="utf-8")
        command = [sys.executable, str(script), str(model), str(port), str(threads)]
    else:
        batch = MAX_BATCH if name == "deepseek" else 1
        command = [sys.executable, "-m", "deepseek.cli.main", "serve", str(model), "--port",
                   str(port), "--max-batch", str(batch), "--max-waiting", "4096"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not asyncio.run(_answers(port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} does not start: {' '.join(command)}")
            time.sleep(0.2)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _answers(port: int) -> bool:
    try:
        times, failed = await asyncio.wait_for(load(port, 1, 0.01), 5)
    except (OSError, TimeoutError):
        return False
    return bool(times) and not failed


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of those that it has started."""
    total, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if os.getpgid(int(path.parent.name)) == pid:
                total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def measure(name: str, model: Path, args: argparse.Namespace, port: int) -> dict:
    """Return what a service does in one turn."""
    with serving(name, model, port, args.threads) as pid:
        asyncio.run(load(port, args.clients, WARM_S))
        before, began = cpu_seconds(pid), time.perf_counter()
        times, failed = asyncio.run(load(port, args.clients, args.seconds))
        elapsed, cpu_s = time.perf_counter() - began, cpu_seconds(pid) - before
    milliseconds = 1e3 * np.array(times)
    return {
        "service": name, "per_s": len(times) / elapsed, "failed": failed,
        "cpu_ms": 1e3 * cpu_s / len(times),
        "p50_ms": float(np.quantile(milliseconds, 0.5)),
        "p99_ms": float(np.quantile(milliseconds, 0.99)),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--dim", type=int, default=192, help="width of the model")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    names = ["deepseek", "deepseek, one by one"]
    if importlib.util.find_spec("litserve") is not None:
        names.append("LitServe")
    turns: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.bin"
        save_model(model, args.dim)
        port = 18_080
        for number in range(args.rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                port += 1
                turns[name].append(measure(name, model, args, port))
    records = [
        {
            "service": name,
            **{key: median(turn[key] for turn in found) for key in FIGURES},
            "failed": sum(turn["failed"] for turn in found),
            "ratio": median(
                own["per_s"] / turn["per_s"]
                for own, turn in zip(turns["deepseek"], found, strict=True)
            ),
        }
        for name, found in turns.items()
    ]
    header = (
        "service", "requests/s", "ours is faster by", "p50 ms", "p99 ms", "CPU ms a request",
        "failed",
    )  # fmt: skip
    rows = [
        (
            r["service"], f"{r['per_s']:,.0f}", f"{r['ratio']:.2f}", f"{r['p50_ms']:.1f}",
            f"{r['p99_ms']:.1f}", f"{r['cpu_ms']:.2f}", str(r["failed"]),
        )
        for r in records
    ]  # fmt: skip
    notes = (
        f"{args.clients} clients, {args.seconds:g} s a turn, median of {args.rounds} turns; a ViT"
        f" of 4 layers of {args.dim}, 17 tokens; the clients share the machine."
    )
    report(args, records, markdown_table(header, rows), notes)


if __name__ == "__main__":
    main()
