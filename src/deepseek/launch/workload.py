"""The pods that a list of manifests would create, whatever kind of object they stand in."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """A Job, or the template of one inside a JobSet or TrainingRuntime.

    Args:
        kind: of the object it stands in.
        name: of that object.
        job: the spec of the Job.
        labels: of its pods.
        pod: the spec of its pods.
        container: the container that trains; the first one.
        subdomain: under which pods find each other.
        first_host: name of the first pod, below the subdomain.
    """

    kind: str
    name: str
    job: dict
    labels: dict
    pod: dict
    container: dict
    subdomain: str | None
    first_host: str

    @property
    def where(self) -> str:
        """The workload in words."""
        return f"{self.kind} {self.name}"

    @property
    def gpus(self) -> object:
        """GPUs that a pod may use."""
        return at(self.container, "resources", "limits").get("nvidia.com/gpu", 0)

    def option(self, name: str) -> str | None:
        """Return what follows an option in the arguments of the container."""
        args = self.container.get("args") or []
        return str(args[args.index(name) + 1]) if name in args[:-1] else None


def at(value: object, *path: str) -> dict:
    """Return what is at `path` in nested mappings, or an empty mapping."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def workloads(manifests: list[dict]) -> Iterator[Workload]:
    """Yield every workload of the manifests."""
    for manifest in manifests:
        kind, name = manifest.get("kind", ""), at(manifest, "metadata").get("name", "")
        spec = at(manifest, "spec")
        if kind == "Job":
            subdomain = at(spec, "template", "spec").get("subdomain")
            yield _workload(kind, name, spec, {}, subdomain, f"{name}-0")
        elif kind == "JobSet":
            yield from _of_job_set(kind, name, spec)
        elif kind == "TrainingRuntime":
            yield from _of_job_set(kind, name, at(spec, "template", "spec"))


def workload_of_deployment(deployment: dict) -> Workload:
    """Return the pods of a Deployment; there is no Job around them."""
    name = at(deployment, "metadata").get("name", "")
    return _workload("Deployment", name, at(deployment, "spec"), {}, None, "")


def _of_job_set(kind: str, name: str, spec: dict) -> Iterator[Workload]:
    subdomain = at(spec, "network").get("subdomain", name)
    for entry in spec.get("replicatedJobs") or []:
        template = at(entry, "template")
        labels = at(template, "metadata", "labels")
        first = f"{name}-{entry.get('name')}-0-0"
        yield _workload(kind, name, at(template, "spec"), labels, subdomain, first)


def _workload(
    kind: str, name: str, job: dict, labels: dict, subdomain: str | None, first: str
) -> Workload:
    pod = at(job, "template", "spec")
    containers = pod.get("containers") or [{}]
    labels = {**labels, **at(job, "template", "metadata", "labels")}
    return Workload(kind, name, job, labels, pod, containers[0], subdomain, first)
