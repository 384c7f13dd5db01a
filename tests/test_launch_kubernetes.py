"""scripts/launch/kubernetes: the manifest has fields that there are, and starts what it should.

The schema of MPIJob is told here in a few lines; the manifest was checked against the operator's
own, too (docs/launching.md).
"""

import os

import yaml
from absl import flags as absl_flags
from processes import ROOT

from flags import command_line

KUBERNETES = ROOT / "scripts" / "launch" / "kubernetes"
# Fields of MPIJob v2beta1 and of pods that the manifest may have, with the types of their values:
# those of the operator's CustomResourceDefinition, as far as they are of use here. A field that is
# not in it is dropped without a word by the server.
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "resources": {"limits": {"cpu": str, "memory": str, "nvidia.com/gpu": str}},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
REPLICAS = {
    "replicas": int,
    "restartPolicy": {"Never", "OnFailure"},  # The operator refuses others.
    "template": {
        "spec": {
            "terminationGracePeriodSeconds": int,
            "containers": [CONTAINER],
            "volumes": [VOLUME],
        }
    },
}
MPI_JOB = {
    "apiVersion": {"kubeflow.org/v2beta1"},
    "kind": {"MPIJob"},
    "metadata": {"name": str},
    "spec": {
        "slotsPerWorker": int,
        "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
        "runPolicy": {"cleanPodPolicy": {"None", "Running", "All"}, "backoffLimit": int},
        "mpiReplicaSpecs": {"Launcher": REPLICAS, "Worker": REPLICAS},
    },
}


def faults_of(value, schema, place=""):
    """One line for each value that is not as a schema says."""
    if isinstance(schema, dict) and isinstance(value, dict):
        for name, part in value.items():
            if name in schema:
                yield from faults_of(part, schema[name], f"{place}/{name}")
            else:
                yield f"{place}/{name}: there is no such field"
    elif isinstance(schema, list) and isinstance(value, list):
        for part in value:
            yield from faults_of(part, schema[0], place)
    elif isinstance(schema, set):
        if value not in schema:
            yield f"{place}: {value!r}"
    elif not isinstance(schema, type) or not isinstance(value, schema):
        yield f"{place}: {value!r}"


def test_a_fault_of_a_manifest_is_found():
    wrong = {"spec": {"slotPerWorker": 8, "mpiReplicaSpecs": {"Worker": {"replicas": "2"}}}}
    assert list(faults_of(wrong, MPI_JOB)) == [
        "/spec/slotPerWorker: there is no such field",
        "/spec/mpiReplicaSpecs/Worker/replicas: '2'",
    ]


def test_the_manifest_starts_the_trainer_on_all_slots():
    job = yaml.safe_load((KUBERNETES / "mpijob.yaml").read_text())
    assert list(faults_of(job, MPI_JOB)) == []
    launcher, worker = (job["spec"]["mpiReplicaSpecs"][name] for name in ("Launcher", "Worker"))
    assert launcher["replicas"] == 1  # The operator refuses others.
    (start,), (work,) = (each["template"]["spec"]["containers"] for each in (launcher, worker))
    assert start["image"] == work["image"]
    assert os.access(ROOT / start["command"][0], os.X_OK)
    options, flags = start["args"][: start["args"].index("--")], start["args"][3:]
    slots = job["spec"]["slotsPerWorker"]
    assert options == ["-np", str(slots * worker["replicas"])]
    assert work["resources"]["limits"]["nvidia.com/gpu"] == str(slots)
    config = command_line.parse(["trainer", *flags], absl_flags.FlagValues())
    mounts = {each["mountPath"]: each["name"] for each in work["volumeMounts"]}
    assert {config.data.data_dir, os.path.dirname(config.run.logdir), "/dev/shm"} == set(mounts)
    assert set(mounts.values()) == {each["name"] for each in worker["template"]["spec"]["volumes"]}


def test_the_image_is_made_by_setup_and_nothing_else():
    text = (KUBERNETES / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line for line in text.splitlines() if line.startswith("RUN ")]
    assert len(steps) == 2
    assert steps[1] == "RUN scripts/setup.sh $SETUP && rm -rf ~/.cache"
    assert "ARG SETUP=--gpu" in text
    assert "pip" not in text
