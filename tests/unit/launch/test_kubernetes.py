"""Manifests: valid for Kubernetes and for us, and what is in them follows from the options."""

import copy
import itertools
from dataclasses import replace

import pytest
from ruamel.yaml import YAML

from deepseek.errors import ConfigError
from deepseek.launch.job import Job
from deepseek.launch.kubernetes import KINDS, manifests, to_yaml
from deepseek.launch.manifest_rules import find_problems
from deepseek.launch.pod import PodOptions
from deepseek.launch.workload import workloads

CORE = ("v1", "batch/v1", "networking.k8s.io/v1")
JOB = Job(("train", "cfg.yaml"), nproc=8, min_nodes=2, max_nodes=2, run_id="r", max_restarts=3,
          is_placed=True)  # fmt: skip
OPTIONS = PodOptions(name="bert", image="registry.io/team/train:1.2", gpus=8, memory="64Gi",
                     runs_size="100Gi")  # fmt: skip


def validate_core(made):
    """Check what is a core kind, also inside of other kinds, against the schema of Kubernetes."""
    validator = pytest.importorskip("kubernetes_validate")
    version = validator.latest_version()
    jobs = [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": entry.job}
        for entry in workloads(made)
    ]
    objects = [entry for entry in made if entry["apiVersion"] in CORE]
    for entry in [*objects, *jobs]:
        plain = YAML(typ="safe").load(to_yaml([entry]))
        validator.validate(plain, version, strict=True)


CONFIGURATIONS = [
    (kind, nodes, gpus, options, program)
    for (kind, nodes, gpus), (options, program) in itertools.product(
        itertools.product(KINDS, [(1, 1), (2, 2), (2, 4)], [0, 1, 8]),
        [
            ({}, ("train", "cfg.yaml")),
            ({"runs_claim": "shared", "data_claim": "images"}, ("train", "a.yaml", "x=1")),
            ({"runs_size": "1Ti", "egress": ("10.0.0.0/8",), "namespace": "ml"}, ("s.py", "--a")),
            ({"image": "r.io/x@sha256:" + "a" * 64, "user": 4711, "grace_s": 31}, ("-m", "mod")),
        ],
    )
]


@pytest.mark.parametrize(("kind", "nodes", "gpus", "options", "program"), CONFIGURATIONS)
def test_every_configuration_is_valid(kind, nodes, gpus, options, program):
    job = Job(program, nproc=gpus or 1, min_nodes=nodes[0], max_nodes=nodes[1], run_id="r",
              max_restarts=3, is_placed=True)  # fmt: skip
    made = manifests(
        job, PodOptions(**{"name": "net", "image": "x:1", "gpus": gpus, **options}), kind
    )
    assert [problem for problem in find_problems(made) if not problem.is_warning] == []
    validate_core(made)
    assert list(YAML(typ="safe").load_all(to_yaml(made))) == made


def test_there_are_about_a_hundred_configurations():
    assert len(CONFIGURATIONS) >= 100


@pytest.mark.parametrize("kind", KINDS)
def test_configuration_files_go_along(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "model:\n  architecture: vit  # ü\n"
    (tmp_path / "cfg.yaml").write_text(text, encoding="utf-8")
    made = manifests(JOB, OPTIONS, kind)
    assert find_problems(made) == []
    validate_core(made)
    loaded = list(YAML(typ="safe").load_all(to_yaml(made)))
    [config] = [entry for entry in loaded if entry["kind"] == "ConfigMap"]
    assert config["data"] == {"cfg.yaml": text}
    [workload] = workloads(made)
    assert workload.container["args"][-2:] == ["train", "/etc/deepseek/cfg.yaml"]


@pytest.mark.parametrize("word", ["./cfg.yaml", "runs/../cfg.yaml", "runs//cfg.yaml"])
def test_a_file_is_found_in_the_pod_however_its_path_is_written(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for folder in (tmp_path, tmp_path / "runs"):
        (folder / "cfg.yaml").write_text("name: mine\n")
    [workload] = workloads(manifests(replace(JOB, program=("train", word)), OPTIONS))
    assert workload.container["args"][-2:] == ["train", "/etc/deepseek/cfg.yaml"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "Bert"}, "--name=Bert is not 1 to 40"),
        ({"name": "b" * 41}, "is not 1 to 40"),
        ({"memory": "64GB"}, "--memory=64GB is not a number with Mi, Gi or Ti"),
        ({"shm": "0Gi"}, "--shm-size=0Gi"),
        ({"image": ""}, "--image='' is no name"),
        ({"grace_s": 30}, "--grace-s=30: a pod needs 30 s beyond"),
        ({"user": 0}, "--user=0: pods do not run as root"),
        ({"runs_claim": "a", "runs_size": "1Gi"}, "--runs-claim names a claim and --runs-size"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        manifests(JOB, PodOptions(**{"name": "net", "image": "x:1", **options}))
    assert words in str(caught.value)


def test_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="--kind=pod is none of job, jobset, trainjob"):
        manifests(JOB, OPTIONS, "pod")


def test_what_may_be_lost_is_warned_of():
    made = manifests(JOB, PodOptions(name="net", image="team/train", gpus=8, memory="64Gi"))
    problems = find_problems(made)
    assert all(problem.is_warning for problem in problems)
    assert {problem.where for problem in problems} == {
        "Job net: image=team/train",
        "Job net: volume runs",
    }


# -- seeded defects ---------------------------------------------------------------------------


class Made:
    """Manifests that a defect is put into."""

    def __init__(self, kind):
        self.all = copy.deepcopy(manifests(JOB, OPTIONS, kind))
        [workload] = workloads(self.all)
        self.job, self.pod, self.container = workload.job, workload.pod, workload.container
        self.template = self.job["template"]

    def object(self, kind):
        return next(entry for entry in self.all if entry["kind"] == kind)

    def job_set(self):
        found = [entry for entry in self.all if entry["kind"] in ("JobSet", "TrainingRuntime")]
        spec = found[0]["spec"]
        return spec["template"]["spec"] if "template" in spec else spec

    def set_arg(self, name, value):
        args = self.container["args"]
        args[args.index(name) + 1] = value


def delete(mapping, key):
    del mapping[key]


EVERY = {
    "GPU limit above the request": lambda made: made.container["resources"]["limits"].update(
        {"nvidia.com/gpu": 9}
    ),
    "GPU limit without request": lambda made: delete(
        made.container["resources"]["requests"], "nvidia.com/gpu"
    ),
    "half a GPU": lambda made: [
        made.container["resources"][side].update({"nvidia.com/gpu": 0.5})
        for side in ("limits", "requests")
    ],
    "memory without limit": lambda made: delete(made.container["resources"]["limits"], "memory"),
    "more processes than GPUs": lambda made: made.set_arg("--nproc", "16"),
    "restartPolicy Always": lambda made: made.pod.update(restartPolicy="Always"),
    "restartPolicy that does not exist": lambda made: made.pod.update(restartPolicy="Sometimes"),
    "restartPolicy OnFailure with podFailurePolicy": lambda made: made.pod.update(
        restartPolicy="OnFailure"
    ),
    "grace period shorter than a save": lambda made: made.pod.update(
        terminationGracePeriodSeconds=90
    ),
    "no grace period": lambda made: delete(made.pod, "terminationGracePeriodSeconds"),
    "root allowed": lambda made: delete(made.pod["securityContext"], "runAsNonRoot"),
    "user 0": lambda made: made.container["securityContext"].update(runAsUser=0),
    "group 0": lambda made: made.pod["securityContext"].update(runAsGroup=0),
    "privilege escalation": lambda made: delete(
        made.container["securityContext"], "allowPrivilegeEscalation"
    ),
    "privileged": lambda made: made.container["securityContext"].update(privileged=True),
    "capabilities kept": lambda made: delete(made.container["securityContext"], "capabilities"),
    "capability added": lambda made: made.container["securityContext"]["capabilities"].update(
        add=["IPC_LOCK"]
    ),
    "root file system writable": lambda made: made.container["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "no seccomp profile": lambda made: delete(made.pod["securityContext"], "seccompProfile"),
    "host network": lambda made: made.pod.update(hostNetwork=True),
    "host processes": lambda made: made.pod.update(hostPID=True),
    "host path": lambda made: made.pod["volumes"].append(
        {"name": "node", "hostPath": {"path": "/"}}
    ),
    "service account token": lambda made: delete(made.pod, "automountServiceAccountToken"),
    "secret in the manifest": lambda made: made.container["env"].append(
        {"name": "WANDB_API_KEY", "value": "abc"}
    ),
    "variable twice": lambda made: made.container["env"].append({"name": "HOME", "value": "/"}),
    "shm on disk": lambda made: made.pod["volumes"][0].update(emptyDir={}),
    "shm without limit": lambda made: delete(made.pod["volumes"][0]["emptyDir"], "sizeLimit"),
    "shm as large as the memory": lambda made: made.pod["volumes"][0]["emptyDir"].update(
        sizeLimit="64Gi"
    ),
    "shm not mounted": lambda made: made.container["volumeMounts"].pop(0),
    "tmp not mounted": lambda made: made.container["volumeMounts"].pop(1),
    "mount without volume": lambda made: made.pod["volumes"].pop(2),
    "config map that is not there": lambda made: made.pod["volumes"].append(
        {"name": "config", "configMap": {"name": "other"}}
    ),
    "claim for one node": lambda made: made.object("PersistentVolumeClaim")["spec"].update(
        accessModes=["ReadWriteOnce"]
    ),
    "no network policy": lambda made: made.all.remove(made.object("NetworkPolicy")),
    "network policy for other pods": lambda made: made.object("NetworkPolicy")["spec"].update(
        podSelector={"matchLabels": {"app": "other"}}
    ),
    "everyone let in": lambda made: made.object("NetworkPolicy")["spec"].update(ingress=[{}]),
    "other namespaces let in": lambda made: made.object("NetworkPolicy")["spec"]["ingress"][0][
        "from"
    ].append({"namespaceSelector": {}}),
    "nobody let in": lambda made: made.object("NetworkPolicy")["spec"].update(ingress=[]),
    "egress not restricted": lambda made: made.object("NetworkPolicy")["spec"].update(
        policyTypes=["Ingress"]
    ),
    "egress to everywhere": lambda made: made.object("NetworkPolicy")["spec"]["egress"].append({}),
    "no name look-up": lambda made: made.object("NetworkPolicy")["spec"]["egress"].pop(1),
    "fewer pods at a time than hosts": lambda made: made.job.update(parallelism=1),
    "more hosts for torchrun than pods": lambda made: made.set_arg("--nnodes", "4"),
    "pods without index": lambda made: delete(made.job, "completionMode"),
    "rendezvous at another pod": lambda made: made.set_arg("--rdzv-endpoint", "bert-9.bert:29500"),
    "user errors tried again": lambda made: made.job["podFailurePolicy"]["rules"].pop(0),
    "saved pods count as failures": lambda made: made.job["podFailurePolicy"]["rules"].pop(1),
    "drained nodes count as failures": lambda made: made.job["podFailurePolicy"]["rules"].pop(2),
    "policy for another container": lambda made: made.job["podFailurePolicy"]["rules"][0][
        "onExitCodes"
    ].update(containerName="main"),
    "no backoff limit": lambda made: delete(made.job, "backoffLimit"),
    "two namespaces": lambda made: made.object("NetworkPolicy")["metadata"].update(namespace="b"),
    "image without version": lambda made: made.container.update(image="team/train:latest"),
    "no image": lambda made: delete(made.container, "image"),
    "runs that go with the pod": lambda made: made.pod["volumes"][2].update(emptyDir={}),
    "name that is too long": lambda made: made.all[-1]["metadata"].update(name="b" * 60),
    "labels of the pods lost": lambda made: (
        made.template["metadata"]["labels"].clear()
        or made.object("NetworkPolicy")["spec"]["podSelector"].update(matchLabels={"x": "y"})
    ),
}
ONLY_JOB = {
    "no service": lambda made: made.all.remove(made.object("Service")),
    "service with an address": lambda made: delete(made.object("Service")["spec"], "clusterIP"),
    "service of another name": lambda made: made.object("Service")["metadata"].update(name="s"),
    "service for other pods": lambda made: made.object("Service")["spec"].update(
        selector={"app": "other"}
    ),
    "service for ready pods": lambda made: delete(
        made.object("Service")["spec"], "publishNotReadyAddresses"
    ),
    "service open to the world": lambda made: made.object("Service")["spec"].update(
        type="LoadBalancer"
    ),
}
JOB_SETS = {
    "field that does not exist": lambda made: made.job_set().update(failurePolicies={}),
    "action that does not exist": lambda made: made.job_set()["failurePolicy"]["rules"][0].update(
        action="Fail"
    ),
    "reason that does not exist": lambda made: made.job_set()["failurePolicy"]["rules"][0].update(
        onJobFailureReasons=["UserError"]
    ),
    "number as a word": lambda made: made.job_set()["failurePolicy"].update(maxRestarts="3"),
    "replicated job without name": lambda made: delete(made.job_set()["replicatedJobs"][0], "name"),
    "no replicated jobs": lambda made: delete(made.job_set(), "replicatedJobs"),
    "switch as a number": lambda made: made.job_set()["network"].update(enableDNSHostnames=1),
    "negative restarts": lambda made: made.job_set()["failurePolicy"].update(maxRestarts=-1),
    "version that does not exist": lambda made: made.all[-1].update(apiVersion="x.io/v9"),
}
TRAIN_JOBS = {
    "runtime that is not there": lambda made: made.all[-1]["spec"]["runtimeRef"].update(name="o"),
    "runtime of another kind": lambda made: made.all[-1]["spec"]["runtimeRef"].update(kind="Job"),
    "other number of nodes": lambda made: made.all[-1]["spec"]["trainer"].update(numNodes=3),
    "no nodes": lambda made: made.all[-1]["spec"]["trainer"].update(numNodes=0),
    "no runtime": lambda made: delete(made.all[-1]["spec"], "runtimeRef"),
}
DEFECTS = [
    (kind, name, seed)
    for kinds, defects in (
        (KINDS, EVERY),
        (("job",), ONLY_JOB),
        (("jobset", "trainjob"), JOB_SETS),
        (("trainjob",), TRAIN_JOBS),
    )
    for kind in kinds
    for name, seed in defects.items()
]


@pytest.mark.parametrize(
    ("kind", "seed"),
    [pytest.param(kind, seed, id=f"{kind}: {name}") for kind, name, seed in DEFECTS],
)
def test_seeded_defect_is_caught(kind, seed):
    made = Made(kind)
    assert find_problems(made.all) == []
    seed(made)
    assert find_problems(made.all) != []


def test_a_file_name_that_is_no_key_is_refused(tmp_path):
    config = tmp_path / "my config.yaml"
    config.write_text("name: x\n")
    with pytest.raises(ConfigError, match="no key of a config map") as caught:
        manifests(replace(JOB, program=("train", str(config))), OPTIONS)
    assert "rename the file" in str(caught.value)
