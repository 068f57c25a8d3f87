"""gke.sh: the manifest and the calls of kubectl."""

import json
import re
import subprocess

import pytest
import yaml

from tests.tpu_scripts.cloud import EVIL, SCRIPTS

TPU = ("--name=a", "--image=i", "--gke_accelerator=tpu-v5-lite-podslice")
TPU += ("--gke_topology=4x4", "--gke_chips=4")
GPU = ("--name=a", "--image=i", "--gke_accelerator=nvidia-h100-80gb", "--gke_chips=8")


def render(cloud, *words):
    return yaml.safe_load(cloud.run("gke.sh", "render", *words).stdout)


def parts(manifest):
    (workers,) = manifest["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return workers, job, pod, container


def test_tpus(cloud):
    words = (
        *TPU,
        "--gke_slices=2",
        "--bucket=b",
        "--spot",
        "--command=python train.py",
    )
    manifest = render(cloud, *words)
    workers, job, pod, container = parts(manifest)
    assert manifest["kind"] == "JobSet" and workers["replicas"] == 2
    assert job["parallelism"] == job["completions"] == 4  # 16 chips, 4 a host
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["bash", "-c", "python train.py"]
    assert {"name": "bucket", "mountPath": "/mnt/bucket"} in container["volumeMounts"]
    assert pod["volumes"][1]["csi"]["volumeAttributes"]["bucketName"] == "b"
    annotations = job["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"}


def test_gpus(cloud):
    manifest = render(cloud, *GPU, "--gke_hosts=2", "--command=x")
    _, job, pod, container = parts(manifest)
    assert "annotations" not in manifest["metadata"]
    assert job["parallelism"] == 2
    assert list(pod["nodeSelector"]) == ["cloud.google.com/gke-accelerator"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"] == "a-workers-0-0.a:1234"
    assert environment["JAX_NUM_PROCESSES"] == "2"
    assert [v["name"] for v in pod["volumes"]] == ["shm"]


def test_a_manifest_has_no_rests_of_the_template(cloud):
    text = cloud.run("gke.sh", "render", *TPU, "--command=x").stdout
    assert "#if" not in text and not re.search(r"@\w+@", text)


def expanded(word):
    """What Kubernetes makes of a word of a command without known variables."""
    return word.replace("$$", "$")


def test_every_argument_arrives(cloud):
    _, _, _, container = parts(render(cloud, *TPU, "--", *EVIL))
    assert [expanded(word) for word in container["command"]] == EVIL


def test_launch_and_dry_run_are_the_same(cloud):
    words = ("launch", *TPU, "--bucket=b", "--", *EVIL)
    printed = cloud.run("gke.sh", "launch", "--dry_run", *words[1:]).stdout
    assert not cloud.calls
    cloud.run("gke.sh", *words)
    assert cloud.of("kubectl") == [["apply", "-f", "-"]]
    manifest = (cloud.state / "manifest.yaml").read_text()
    subprocess.run(["sh", "-c", printed], check=True, env=cloud.environment())
    assert cloud.of("kubectl")[1] == ["apply", "-f", "-"]
    assert (cloud.state / "manifest.yaml").read_text() == manifest
    assert json.dumps(yaml.safe_load(manifest))


def test_other_verbs(cloud):
    for words in (
        ["status"],
        ["logs", "--follow"],
        ["logs", "--worker=all"],
        ["delete"],
    ):
        cloud.run("gke.sh", *words, "--name=a")
    space, pods = "--namespace=default", "--selector=jobset.sigs.k8s.io/jobset-name=a"
    assert cloud.of("kubectl") == [
        ["get", "jobset", "a", space],
        ["get", "pods", space, pods],
        [
            *["logs", space, f"{pods},batch.kubernetes.io/job-completion-index=0"],
            *["--tail=50", "--follow"],
        ],
        ["logs", space, pods, "--tail=50", "--prefix", "--max-log-requests=1000"],
        ["delete", "jobset", "a", space, "--ignore-not-found"],
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--name=a"], "no value for image, gke_accelerator, gke_chips"),
        ([*TPU, "--gke_topology="], "no value for gke_topology"),
        ([*TPU, "--gke_topology=16"], "gke_topology '16' is no topology"),
        ([*TPU, "--gke_chips=3"], "has 16 chips, not a multiple of gke_chips=3"),
        ([*TPU, "--gke_chips=0"], "gke_chips must be positive"),
        ([*TPU, "--gke_hosts=two"], "gke_hosts must be a whole number, not 'two'"),
        ([*TPU, "--name=A"], "name 'A' is no name for Kubernetes"),
        ([*GPU, "--gke_slices=2"], "gke_slices is for TPUs"),
        ([*TPU], "nothing to run"),
    ],
)
@pytest.mark.parametrize("verb", ["render", "launch"])
def test_wrong_input_is_one_line(cloud, verb, words, expected):
    result = cloud.run("gke.sh", verb, *words, code=2)
    assert expected in result.stderr and result.stderr.count("\n") == 1
    assert not result.stdout and not cloud.calls


def test_what_a_failing_pod_does(cloud):
    manifest = render(cloud, *TPU, "--command=x")
    _, job, pod, _ = parts(manifest)
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"


def test_the_image_copies_what_is_there():
    root = SCRIPTS.parent
    for line in re.findall(
        r"^COPY (.*) \S+$", (SCRIPTS / "Dockerfile").read_text(), re.M
    ):
        for name in line.split():
            assert (root / name).exists(), name
