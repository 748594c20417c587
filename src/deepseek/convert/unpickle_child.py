"""The process that reads a pickled module: `python -m deepseek.convert.unpickle_child PATH FD`."""

import os
import resource
import sys
from pathlib import Path

import torch

from deepseek.convert.source import read_source
from deepseek.convert.system_calls import forbid_harm
from deepseek.convert.unpickle import describe
from deepseek.models.tensor_layout import bytes_of, encode_header, lay_out

_CPU_S = 300
_MIB = 1024**2


def main(path: Path, descriptor: int) -> None:
    """Read a pickle and write what is in it to an open file."""
    file_bytes = path.stat().st_size
    torch.set_num_threads(1)
    with open(path, "rb") as file:
        _limit(file_bytes)
        forbid_harm()
        content = torch.load(file, map_location="cpu", weights_only=False)
    source = read_source(content)
    metadata = describe(source.name, source.config, source.facts)
    # safetensors have no second names: tied tensors are written twice
    header = lay_out(source.state)
    with os.fdopen(descriptor, "wb") as out:
        out.write(encode_header({"__metadata__": metadata, **header}))
        for name in header:
            out.write(bytes_of(source.state[name]))


def _limit(file_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + 8 * file_bytes + 2048 * _MIB
    written = 4 * file_bytes + 64 * _MIB
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
