"""The shape of JobSet and Kubeflow Trainer objects, as far as we write them.

Written from the Go types jobset.x-k8s.io/v1alpha2 and trainer.kubeflow.org/v1alpha1. What is a
Job or a pod inside of them is left to a validator of the core kinds.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from deepseek.launch.problem import Problem
from deepseek.launch.workload import at
from deepseek.registry import did_you_mean


@dataclass(frozen=True)
class Field:
    """What a field may hold.

    Args:
        type: `str`, `int`, `bool`, `dict` or `list` (of mappings or strings, see `items`).
        fields: of a mapping, or of each item of a list of mappings; any where `None`.
        is_required: whether it must be there.
        choices: the values that are allowed.
        pattern: which a string has to match as a whole.
        low: the least number.
    """

    type: type
    fields: dict[str, "Field"] | None = None
    is_required: bool = False
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    low: int | None = None


METADATA = {
    "name": Field(str, is_required=True),
    "namespace": Field(str),
    "labels": Field(dict),
    "annotations": Field(dict),
}
JOB_TEMPLATE = {
    "metadata": Field(dict, {"labels": Field(dict), "annotations": Field(dict)}),
    "spec": Field(dict, is_required=True),
}
POLICY_RULE = {
    "name": Field(str, is_required=True, pattern=r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
    "action": Field(
        str,
        is_required=True,
        choices=(
            "FailJobSet",
            "RestartJobSet",
            "RestartJobSetAndIgnoreMaxRestarts",
            "RestartJob",
            "RestartJobAndIgnoreMaxRestarts",
        ),
    ),
    "onJobFailureReasons": Field(
        list,
        choices=(
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        ),
    ),
    "onJobFailureMessagePatterns": Field(list),
    "targetReplicatedJobs": Field(list),
}
JOB_SET_SPEC = {
    "replicatedJobs": Field(
        list,
        {
            "name": Field(str, is_required=True, pattern=r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"),
            "groupName": Field(str),
            "replicas": Field(int, low=0),
            "template": Field(dict, JOB_TEMPLATE, is_required=True),
        },
        is_required=True,
    ),
    "network": Field(
        dict,
        {
            "enableDNSHostnames": Field(bool),
            "subdomain": Field(str),
            "publishNotReadyAddresses": Field(bool),
        },
    ),
    "failurePolicy": Field(
        dict,
        {
            "maxRestarts": Field(int, low=0),
            "restartStrategy": Field(
                str, choices=("Recreate", "BlockingRecreate", "InPlaceRestart")
            ),
            "rules": Field(list, POLICY_RULE),
        },
    ),
    "successPolicy": Field(
        dict,
        {
            "operator": Field(str, is_required=True, choices=("All", "Any")),
            "targetReplicatedJobs": Field(list),
        },
    ),
    "suspend": Field(bool),
    "managedBy": Field(str),
    "ttlSecondsAfterFinished": Field(int, low=0),
}
RUNTIME_REF = {
    "name": Field(str, is_required=True),
    "apiGroup": Field(str, choices=("trainer.kubeflow.org",)),
    "kind": Field(str, choices=("TrainingRuntime", "ClusterTrainingRuntime")),
}
SPECS = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): JOB_SET_SPEC,
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): {
        "mlPolicy": Field(dict, {"numNodes": Field(int, low=1)}),
        "template": Field(
            dict, {"spec": Field(dict, JOB_SET_SPEC, is_required=True)}, is_required=True
        ),
    },
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): {
        "runtimeRef": Field(dict, RUNTIME_REF, is_required=True),
        "trainer": Field(
            dict,
            {
                "image": Field(str),
                "command": Field(list),
                "args": Field(list),
                "env": Field(list, {"name": Field(str, is_required=True), "value": Field(str)}),
                "numNodes": Field(int, low=1),
                "numProcPerNode": Field(int, low=1),
                "resourcesPerNode": Field(dict),
            },
        ),
        "suspend": Field(bool),
        "managedBy": Field(str),
        "activeDeadlineSeconds": Field(int, low=1),
    },
}
CORE = {
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "PersistentVolumeClaim"),
    ("batch/v1", "Job"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
}


def shape_problems(manifest: dict) -> Iterator[Problem]:
    """Yield what is unknown, missing or of the wrong type in an object that is not a core kind."""
    key = (str(manifest.get("apiVersion")), str(manifest.get("kind")))
    where = f"{key[1]} {at(manifest, 'metadata').get('name')}"
    if key in CORE:
        return
    if key not in SPECS:
        yield Problem(where, f"apiVersion {key[0]} has no such kind", "use a kind of `--kind`")
        return
    fields = {
        "apiVersion": Field(str),
        "kind": Field(str),
        "metadata": Field(dict, METADATA, is_required=True),
        "spec": Field(dict, SPECS[key], is_required=True),
    }
    yield from _mapping_problems(manifest, fields, where)


def _mapping_problems(value: dict, fields: dict[str, Field], where: str) -> Iterator[Problem]:
    for name, field in fields.items():
        if field.is_required and name not in value:
            yield Problem(f"{where}: {name}", "is missing", "add it")
    for name, entry in value.items():
        if name not in fields:
            yield Problem(f"{where}: {name}", "is no field", did_you_mean(str(name), fields))
        else:
            yield from _field_problems(entry, fields[name], f"{where}: {name}")


def _field_problems(value: object, field: Field, where: str) -> Iterator[Problem]:
    # bool is an int in Python, and not in YAML
    if not isinstance(value, field.type) or (field.type is int and isinstance(value, bool)):
        expected = field.type.__name__
        yield Problem(f"{where}={value!r}", f"is not of type {expected}", f"write a {expected}")
        return
    for entry in value if isinstance(value, list) else [value]:
        if field.choices and entry not in field.choices:
            yield Problem(
                f"{where}={entry!r}", "is not allowed", did_you_mean(str(entry), field.choices)
            )
        if field.pattern and not re.fullmatch(field.pattern, str(entry)):
            yield Problem(f"{where}={entry!r}", f"does not match {field.pattern}", "rename it")
        if field.low is not None and isinstance(entry, int) and entry < field.low:
            yield Problem(f"{where}={entry}", f"is below {field.low}", f"use at least {field.low}")
        if field.fields is not None and isinstance(entry, dict):
            yield from _mapping_problems(entry, field.fields, where)
        elif field.fields is not None:
            yield Problem(f"{where}={entry!r}", "is no mapping", "write fields and values")
