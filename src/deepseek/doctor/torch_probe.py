"""What torch says of itself, in a process of its own: `python -m deepseek.doctor.torch_probe`.

Importing a broken torch may raise, hang or kill the process. Each fact is a line of JSON that is
written at once, so that those before the accident are kept.
"""

import json
import sys
import traceback
import warnings


def main() -> None:
    """Print the facts."""
    say(python=".".join(map(str, sys.version_info[:3])))
    try:
        import torch
    except BaseException as error:
        say(error=_last_words(error), trace=traceback.format_exc()[-2000:])
        return
    say(
        torch=torch.__version__,
        file=torch.__file__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        nccl=_nccl_version(torch),
        threads=torch.get_num_threads(),
    )
    say(**_devices(torch))
    try:
        import torchvision
    except BaseException as error:
        say(torchvision_error=_last_words(error))
    else:
        say(torchvision=torchvision.__version__)
    say(is_complete=True)


def say(**facts: object) -> None:
    """Write a line of JSON."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _devices(torch) -> dict[str, object]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
        count = torch.cuda.device_count()
    facts: dict[str, object] = {"is_available": is_available, "device_count": count}
    if caught:
        facts["cuda_warning"] = str(caught[-1].message)[:600]
    if is_available:
        facts["devices"] = [torch.cuda.get_device_name(index) for index in range(count)]
        try:
            total = torch.ones(8, device="cuda").sum().item()
        except Exception as error:
            facts["cuda_error"] = _last_words(error)
        else:
            if total != 8:
                facts["cuda_error"] = f"the sum of eight ones on the device is {total}"
    return facts


def _nccl_version(torch) -> str | None:
    try:
        version = torch.cuda.nccl.version()
    except Exception:
        return None  # a build without NCCL
    return ".".join(map(str, version))


def _last_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1000]


if __name__ == "__main__":
    main()
