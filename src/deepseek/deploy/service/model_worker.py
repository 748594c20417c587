"""The process of a model: it opens one file, and computes what comes through its channel.

Started by `ModelProcess`, with the number of an open socket. It ends when the other end of the
socket does.
"""

import gc
import signal
import socket
import sys
import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from deepseek.deploy.service.frames import receive, send
from deepseek.errors import DeepSeekError
from deepseek.launch.tied import watch_parent

if TYPE_CHECKING:
    from deepseek.deploy.service.batching import Batcher, Waiting
    from deepseek.deploy.service.served_model import ServedModel


def main(descriptor: int, parent: int) -> None:
    """Open the model that the first frame names, then answer a batch with its probabilities.

    Args:
        descriptor: of the socket.
        parent: process id of the service.
    """
    # the service ends it: Ctrl-C and a signal to the group are for the service
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    watch_parent(parent, signal.SIGKILL)  # stuck in a batch, it does not see the socket close
    channel = socket.socket(fileno=descriptor)
    with suppress(EOFError, ConnectionError):
        _serve(channel)


def _serve(channel: socket.socket) -> None:
    source = channel.makefile("rb")
    order, _ = receive(source)
    import torch

    from deepseek.deploy.artefact import sha256
    from deepseek.deploy.service.batching import Batcher
    from deepseek.deploy.service.served_model import ModelSettings, ServedModel

    settings = ModelSettings.from_json(order)
    torch.set_num_threads(settings.threads)
    try:
        with warnings.catch_warnings(record=True) as found:
            digest = sha256(settings.path)
            model = ServedModel.open(settings)
    except DeepSeekError as error:
        kind = type(error).__name__
        send(channel, {"error": error.message, "fix": error.fix or "", "kind": kind})
        return
    except Exception as error:  # whatever a runtime does with a file; the service says which
        said = f"{settings.path} cannot be opened: {type(error).__name__} {error}"
        send(channel, {"error": said, "fix": "export it again", "kind": ""})
        return
    said = [str(each.message) for each in found if each.category is UserWarning]
    send(channel, {"facts": model.facts.to_json(), "warnings": said, "digest": digest})
    # volumes may be large, and their windows are a batch already
    max_batch = 1 if model.takes_volumes else settings.max_batch
    batcher = Batcher(max_batch=max_batch, target_s=settings.target_s, pad=model.pad)
    threading.Thread(target=_read, args=(source, batcher), daemon=True).start()
    gc.collect()
    gc.freeze()  # modules and the model are no garbage: a search of them holds requests up
    while batch := batcher.take():
        _compute(channel, model, batcher, batch)


def _read(source: BinaryIO, batcher: "Batcher") -> None:
    """Take samples while the model computes, so that none has to be waited for afterwards."""
    try:
        while True:
            head, samples = receive(source)
            if samples is not None:
                batcher.add(head["id"], samples, head["expires"])
    except (EOFError, OSError):
        batcher.close()


def _compute(
    channel: socket.socket, model: "ServedModel", batcher: "Batcher", batch: list["Waiting"]
) -> None:
    """Answer a batch; where it fails, each sample alone: one may be what the others suffer from."""
    head = {"ids": [each.request for each in batch], "at": [each.row for each in batch]}
    began = time.perf_counter()
    try:
        rows = model.compute(batcher.stack(batch))
    except Exception as error:  # any model may do anything; the next batch is another
        if len(batch) > 1:
            for each in batch:
                _compute(channel, model, batcher, [each])
            return
        send(channel, {**head, "error": str(error) or type(error).__name__})
        return
    seconds = time.perf_counter() - began
    batcher.clock.note(len(batch), seconds)
    if rows.ndim == 3 and model.pad is not None:  # outputs of tokens, and of what fills rows up
        head["lengths"] = [len(each.sample) for each in batch]
    send(channel, {**head, "seconds": seconds}, rows)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
