"""The runner on a real control plane of this file's own: etcd, API server, controllers, scheduler, KWOK and NGC.

Its own, because the runner is killed and started again here. A node is made by hand; KWOK makes it Ready.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rehearsal import config, faults, toolbox
from rehearsal.config import Rehearsal
from rehearsal.kube import Kube, NotFound, Obj, path_of
from tests.rehearsal.plane import Plane, standing

PARTS = {
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "cluster-setup", "kwok", "ngc", "runner",
}  # fmt: skip
NIM = "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3.3"
TIMING = {"image_pull": 0.1, "nim_start": 1, "nim_download": 0.2}
ALLOCATABLE = {"cpu": "48", "memory": "192Gi", "pods": "110", "nvidia.com/gpu": "4"}


#: Beside the committed entries: a program that is a file of this machine, and one that is not there.
MORE_IMAGES = """
- image: example.com/binary
  command: [/program, helm, version]
  files: {{/program: {controlplane}, /charts: "{{root}}/rehearsal/charts"}}
- image: example.com/missing
  command: [/program]
  files: {{/program: /no/such/program}}
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    images = tmp_path_factory.mktemp("images") / "images.yaml"
    more = MORE_IMAGES.format(controlplane=toolbox.controlplane_binary())
    images.write_text((config.ROOT / "rehearsal" / "images.yaml").read_text() + more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(config.IMAGES_ENV, str(images))
        with standing(tmp_path_factory.mktemp("plane"), PARTS, TIMING) as plane:
            yield plane


@pytest.fixture
def r(plane: Plane) -> Iterator[Rehearsal]:
    yield plane.r
    faults.clear(plane.r)


@pytest.fixture
async def kube(r: Rehearsal) -> AsyncIterator[Kube]:
    """A connection; the test has a node, the namespace's account, and the pull secret."""
    async with Kube.from_rehearsal(r) as kube:
        login = base64.b64encode(f"$oauthtoken:{r.ngc_key_file.read_text().strip()}".encode()).decode()
        config = json.dumps({"auths": {"nvcr.io": {"auth": login}}})
        await _apply(kube, node("one"))
        await _apply(
            kube,
            obj("v1", "Secret", "ngc-secret", type="kubernetes.io/dockerconfigjson", stringData={
                ".dockerconfigjson": config}),
        )  # fmt: skip
        await until(lambda: exists(kube, path_of("v1", "ServiceAccount", "default", "default")))
        yield kube
        for job in await kube.list("/apis/batch/v1/namespaces/default/jobs"):
            await kube.delete(
                path_of("batch/v1", "Job", "default", job["metadata"]["name"]), propagationPolicy="Background"
            )
        for pod in await kube.list("/api/v1/namespaces/default/pods"):
            # The Job's controller, or the pod's own end, may have been faster.
            with contextlib.suppress(NotFound):
                await kube.delete(path_of("v1", "Pod", "default", pod["metadata"]["name"]), gracePeriodSeconds=1)

        async def empty() -> bool:
            return not await kube.list("/api/v1/namespaces/default/pods")

        await until(empty)


def node(name: str) -> Obj:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"capacity": ALLOCATABLE, "allocatable": ALLOCATABLE}}  # fmt: skip


def obj(api_version: str, kind: str, name: str, **more: Any) -> Obj:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "default"}, **more}


def pod(name: str, script: str = "", *, labels: dict[str, str] | None = None, policy: str = "Always",
        container: Obj | None = None, **spec: Any) -> Obj:  # fmt: skip
    command = {"command": ["sh", "-c", script]} if script else {}
    main = {"name": "main", "image": "busybox:1", **command, **(container or {})}
    made = obj("v1", "Pod", name, spec={"containers": [main], "restartPolicy": policy, **spec})
    made["metadata"]["labels"] = labels or {}
    return made


def server(**container: Any) -> Obj:
    return {"name": "main", "image": "busybox:1",
            "command": ["sh", "-c", "exec python3 -m http.server -d /data -b $REHEARSAL_LISTEN 8080"],
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}, **container}  # fmt: skip


async def _apply(kube: Kube, made: Obj) -> None:
    path = path_of(made["apiVersion"], made["kind"], made["metadata"].get("namespace"), made["metadata"]["name"])
    await kube.patch(path, made, kind="apply", field_manager="test", force=True)


async def create(kube: Kube, *objects: Obj) -> None:
    for each in objects:
        await kube.create(path_of(each["apiVersion"], each["kind"], "default"), each)


async def exists(kube: Kube, path: str) -> bool:
    try:
        await kube.get(path)
    except NotFound:
        return False
    return True


async def until(check: Callable[[], Awaitable[Any]], *, within: float = 30.0) -> Any:
    """The check's result as soon as it is true; fails after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not (result := await check()):
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.1)
    return result


async def status_of(kube: Kube, name: str) -> Obj:
    return dict((await kube.get(path_of("v1", "Pod", "default", name)))["status"])


async def reaches(kube: Kube, name: str, wanted: Callable[[Obj], Any], within: float = 30.0) -> Obj:
    """The pod's status once `wanted` is true of it."""
    status: Obj = {}

    async def look() -> bool:
        status.clear()
        status.update(await status_of(kube, name))
        return bool(wanted(status))

    try:
        await until(look, within=within)
    except AssertionError:
        pytest.fail(f"pod {name} did not get there: {json.dumps(status, indent=1)}")
    return status


def main_of(status: Obj) -> Obj:
    return dict(status.get("containerStatuses", [{}])[0])


def ready(status: Obj) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))


def phase(wanted: str) -> Callable[[Obj], bool]:
    return lambda status: status.get("phase") == wanted


def waiting(reason: str) -> Callable[[Obj], bool]:
    return lambda status: main_of(status).get("state", {}).get("waiting", {}).get("reason") == reason


async def kubectl(r: Rehearsal, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "kubectl", f"--kubeconfig={r.kubeconfig}", *arguments,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode or 0, out.decode()


async def events(kube: Kube, name: str) -> list[tuple[str, str]]:
    found = await kube.list("/api/v1/namespaces/default/events", field_selector=f"involvedObject.name={name}")
    return [(e["reason"], e["message"]) for e in found if e["reportingComponent"] == "kubelet"]


async def test_a_pod_with_everything(kube: Kube, r: Rehearsal) -> None:
    await _apply(kube, obj("v1", "Secret", "secret", stringData={"WORD": "mellon"}))
    await _apply(kube, obj("v1", "ConfigMap", "conf", data={"a.txt": "from the map"}))
    container = server(
        env=[{"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "WORD"}}}],
        volumeMounts=[{"name": "data", "mountPath": "/data"}, {"name": "conf", "mountPath": "/etc/conf-of-pod"}],
        livenessProbe={"exec": {"command": ["sh", "-c", 'test "$WORD" = mellon']}, "periodSeconds": 1},
    )
    prepare = {"name": "prepare", "image": "busybox:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}],
               "command": ["sh", "-c", "echo prepared > /data/index.html; echo done"]}  # fmt: skip
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "conf"}}]
    await create(
        kube, pod("web", container=container, labels={"app": "web"}, initContainers=[prepare], volumes=volumes)
    )
    await create(kube, obj("v1", "Service", "web", spec={"selector": {"app": "web"}, "ports": [
        {"port": 8000, "targetPort": "http"}]}))  # fmt: skip
    status = await reaches(kube, "web", ready)
    assert status["podIP"].startswith(r.pod_cidr.rpartition(".0.0")[0]) and status["initContainerStatuses"]
    assert main_of(status)["restartCount"] == 0 and main_of(status)["started"]
    # Logs, exec and port-forward go through the API server and KWOK.
    await until(lambda: logs_are(r, "web", "prepare", "done\n"))
    code, said = await kubectl(r, "exec", "web", "-c", "main", "--", "sh", "-c", "echo $WORD; cat /etc/conf-of-pod/*")
    assert (code, said) == (0, "mellon\nfrom the map")
    assert await forwarded(r, "web", 8080) == b"prepared\n"
    # From inside another pod, the Service's names lead there.
    tries = "for i in 1 2 3 4 5 6 7 8 9; do curl -sf $1 && return; sleep 0.3; done; exit 1"
    names = ("web", "web.default", "web.default.svc", "web.default.svc.cluster.local")
    script = f"get() {{ {tries}; }}; " + "; ".join(f"get http://{name}:8000/" for name in names)
    await create(kube, pod("client", script, policy="Never"))
    assert (await reaches(kube, "client", lambda s: s["phase"] in ("Succeeded", "Failed")))["phase"] == "Succeeded"
    await until(lambda: logs_are(r, "client", "main", "prepared\n" * 4))
    kinds = [reason for reason, _ in await events(kube, "web")]
    assert {"Pulled", "Created", "Started"} <= set(kinds)
    # Gone with its objects, its folder, its addresses.
    uid = (await kube.get(path_of("v1", "Pod", "default", "web")))["metadata"]["uid"]
    await kube.delete(path_of("v1", "Pod", "default", "web"), gracePeriodSeconds=5)
    await until(lambda: gone(kube, path_of("v1", "Pod", "default", "web")), within=6)
    await until(lambda: gone(kube, path_of("kwok.x-k8s.io/v1alpha1", "PortForward", "default", "web")))
    await until(lambda: _missing(r.path("pods") / uid))
    await kube.delete(path_of("v1", "Service", "default", "web"))


async def _missing(folder: Path) -> bool:
    return not folder.exists()


async def gone(kube: Kube, path: str) -> bool:
    return not await exists(kube, path)


async def logs_are(r: Rehearsal, name: str, container: str, wanted: str) -> bool:
    return (await kubectl(r, "logs", name, "-c", container))[1] == wanted


async def forwarded(r: Rehearsal, name: str, port: int) -> bytes:
    """What the pod's web server answers through `kubectl port-forward`."""
    forward = await asyncio.create_subprocess_exec(
        "kubectl", f"--kubeconfig={r.kubeconfig}", "port-forward", "--address=127.0.0.1", f"pod/{name}", f":{port}",
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert forward.stdout
        line = await asyncio.wait_for(forward.stdout.readline(), 15)
        local = int(line.split()[2].rpartition(b":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = await asyncio.wait_for(reader.readexactly(length), 10)
        writer.close()
        return body
    finally:
        forward.terminate()
        await forward.wait()


async def test_a_crash_loop(kube: Kube, r: Rehearsal) -> None:
    await create(kube, pod("crash", "echo run; exit 3"))
    status = main_of(await reaches(kube, "crash", waiting("CrashLoopBackOff")))
    uid = (await kube.get(path_of("v1", "Pod", "default", "crash")))["metadata"]["uid"]
    words = f"back-off 10s restarting failed container=main pod=crash_default({uid})"
    assert status["state"]["waiting"]["message"] == words
    # The first restart comes at once, the second has to wait.
    assert status["restartCount"] == 1 and status["lastState"]["terminated"]["exitCode"] == 3
    assert status["lastState"]["terminated"]["reason"] == "Error"
    assert (await status_of(kube, "crash"))["phase"] == "Running"
    said = await until(lambda: _event(kube, "crash", "BackOff"))
    assert said == f"Back-off restarting failed container main in pod crash_default({uid})"


async def _event(kube: Kube, name: str, reason: str) -> str | None:
    return next((message for kind, message in await events(kube, name) if kind == reason), None)


async def test_what_cannot_be_created_says_why_and_starts_when_it_can(kube: Kube) -> None:
    await create(
        kube,
        pod("config", "sleep 100", container={"envFrom": [{"secretRef": {"name": "late"}}]}),
        pod("mount", "cat /s/a; sleep 100", container={"volumeMounts": [{"name": "s", "mountPath": "/s"}]},
            volumes=[{"name": "s", "secret": {"secretName": "late"}}]),
        pod("program", policy="Never", container={"command": ["no-such-program"]}),
    )  # fmt: skip
    status = await reaches(kube, "config", waiting("CreateContainerConfigError"))
    assert main_of(status)["state"]["waiting"]["message"] == 'secret "late" not found'
    assert await until(lambda: _event(kube, "mount", "FailedMount")) == (
        'MountVolume.SetUp failed for volume "s" : secret "late" not found')  # fmt: skip
    assert waiting("ContainerCreating")(await status_of(kube, "mount"))
    status = await reaches(kube, "program", phase("Failed"))
    assert main_of(status)["state"]["terminated"]["reason"] == "StartError"
    await create(kube, obj("v1", "Secret", "late", stringData={"a": "b"}))
    for name in ("config", "mount"):
        await reaches(kube, name, ready)
    await kube.delete(path_of("v1", "Secret", "default", "late"))


async def test_an_image_of_which_nobody_says_what_runs(kube: Kube) -> None:
    """A container without anything to run looks well; one that must run something may not."""
    probe = {"httpGet": {"path": "/", "port": 80}}
    await create(
        kube,
        pod("plain", container={"image": "example.com/plain:1"}),
        pod("told", container={"image": "example.com/told:1", "readinessProbe": probe}),
    )
    message = main_of(await reaches(kube, "told", waiting("CreateContainerError")))["state"]["waiting"]["message"]
    assert 'fits the image "example.com/told:1", whose container has readinessProbe' in message
    assert await until(lambda: _event(kube, "told", "Failed")) == f"Error: {message}"
    await reaches(kube, "plain", ready)
    assert phase("Pending")(await status_of(kube, "told"))


async def test_an_images_files_are_those_of_this_machine(kube: Kube, r: Rehearsal) -> None:
    """A program too, which is no text; and what is missing is told by name."""
    binary = {"image": "example.com/binary:1"}
    await create(
        kube,
        pod("binary", policy="Never", container=binary),
        pod("folder", policy="Never", container={**binary, "command": ["sh", "-c", "ls /charts; echo x > /charts/y"]}),
        pod("missing", policy="Never", container={"image": "example.com/missing:1"}),
    )
    await reaches(kube, "binary", phase("Succeeded"))
    assert "v4." in (await kubectl(r, "logs", "binary"))[1]
    await reaches(kube, "folder", phase("Failed"))
    said = (await kubectl(r, "logs", "folder"))[1]
    assert "karpenter" in said and "Read-only" in said
    ended = main_of(await reaches(kube, "missing", phase("Failed")))["state"]["terminated"]
    assert ended["reason"] == "StartError" and "/no/such/program, which does not exist" in ended["message"]


async def test_a_refused_image(kube: Kube, r: Rehearsal) -> None:
    bad = NIM.replace("1.3.3", "9.9.9")
    secret = [{"name": "ngc-secret"}]
    await create(
        kube,
        pod("tag", container={"image": bad}, imagePullSecrets=secret),
        pod("key", container={"image": NIM.replace("1.3.3", "1.3.2")}, imagePullSecrets=[{"name": "nothing"}]),
    )
    first = main_of(await reaches(kube, "tag", waiting("ErrImagePull")))
    assert first["state"]["waiting"]["message"].endswith(f"{bad}: not found")
    later = main_of(await reaches(kube, "tag", waiting("ImagePullBackOff")))["state"]["waiting"]["message"]
    assert later == f'Back-off pulling image "{bad}": ErrImagePull: {first["state"]["waiting"]["message"]}'
    refused = main_of(await reaches(kube, "key", waiting("ImagePullBackOff")))["state"]["waiting"]["message"]
    assert refused.endswith("401 Unauthorized")
    assert await until(lambda: _event(kube, "key", "FailedToRetrieveImagePullSecret"))


async def test_grace_and_its_end(kube: Kube) -> None:
    await create(kube, pod("stubborn", "trap '' TERM; echo up; while true; do sleep 0.2; done"))
    await reaches(kube, "stubborn", ready)
    began = time.monotonic()
    await kube.delete(path_of("v1", "Pod", "default", "stubborn"), gracePeriodSeconds=2)
    await until(lambda: gone(kube, path_of("v1", "Pod", "default", "stubborn")))
    assert 1.5 < time.monotonic() - began < 6


async def test_a_deadline(kube: Kube) -> None:
    await create(kube, pod("late", "sleep 100", activeDeadlineSeconds=2, terminationGracePeriodSeconds=1))
    status = await reaches(kube, "late", phase("Failed"))
    assert status["reason"] == "DeadlineExceeded"
    assert status["message"] == "Pod was active on the node longer than the specified deadline"


async def test_liveness_restarts(kube: Kube) -> None:
    probe = {"exec": {"command": ["sh", "-c", "exit 1"]}, "periodSeconds": 1, "failureThreshold": 2}
    await create(kube, pod("sick", "sleep 100", container={"livenessProbe": probe}, terminationGracePeriodSeconds=1))
    status = main_of(await reaches(kube, "sick", lambda s: main_of(s).get("restartCount") == 1))
    assert status["lastState"]["terminated"]["exitCode"] == 143
    assert ("Killing", "Container main failed liveness probe, will be restarted") in await events(kube, "sick")


@pytest.mark.slow
async def test_ordered_faults(kube: Kube, r: Rehearsal) -> None:
    faults.order(r, "cache-job-fails", pods=1)
    faults.order(r, "crash-loop", after_s=1.0)
    secret = [{"name": "ngc-secret"}]
    template = {"spec": {"restartPolicy": "Never", "imagePullSecrets": secret, "containers": [
        {"name": "main", "image": NIM, "command": ["sh", "-c", "exit 0"]}]}}  # fmt: skip
    await create(kube, obj("batch/v1", "Job", "download", spec={"backoffLimit": 2, "template": template}))
    environment = [{"name": "NGC_API_KEY", "value": "x"}, {"name": "NIM_CACHE_PATH", "value": "/tmp/none"}]
    await create(kube, pod("nim", container={"image": NIM, "env": environment}, imagePullSecrets=secret))
    status = main_of(await reaches(kube, "nim", waiting("CrashLoopBackOff")))
    assert status["lastState"]["terminated"]["exitCode"] == 137
    assert status["lastState"]["terminated"]["reason"] == "OOMKilled"
    job = path_of("batch/v1", "Job", "default", "download")

    async def complete() -> bool:
        done = (await kube.get(job)).get("status", {})
        return done.get("succeeded") == 1 and done.get("failed") == 1

    await until(complete)


async def test_an_operator_that_is_away_is_held_down_until_the_order_ends(kube: Kube, r: Rehearsal) -> None:
    image = "nvcr.io/nvidia/cloud-native/k8s-nim-operator:v3.1.2"
    await create(kube, pod("operator", "sleep 1000", container={"image": image}), pod("bystander", "sleep 1000"))
    await reaches(kube, "operator", ready)
    faults.order(r, "operator-away")
    status = main_of(await reaches(kube, "operator", waiting("CrashLoopBackOff")))
    assert status["lastState"]["terminated"]["exitCode"] == 137
    await create(kube, pod("second", "sleep 1000", container={"image": image}))
    await reaches(kube, "second", waiting("CreateContainerError"))
    faults.clear(r, "operator-away")
    assert main_of(await reaches(kube, "operator", ready))["restartCount"] == 1
    await reaches(kube, "second", ready)
    assert main_of(await status_of(kube, "bystander"))["restartCount"] == 0


async def test_a_pull_can_be_refused_although_the_node_had_the_image(kube: Kube, r: Rehearsal) -> None:
    secret = [{"name": "ngc-secret"}]
    container = {"image": NIM, "command": ["sh", "-c", "sleep 1000"]}
    await create(kube, pod("before", container=container, imagePullSecrets=secret))
    await reaches(kube, "before", ready)
    faults.order(r, "pull-refused", status=403)
    await create(kube, pod("after", container=container, imagePullSecrets=secret))
    refused = main_of(await reaches(kube, "after", waiting("ErrImagePull")))["state"]["waiting"]["message"]
    assert refused.endswith("403 Forbidden")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_new_runner_goes_on_where_the_old_one_ended(kube: Kube, plane: Plane, number: signal.Signals) -> None:
    """No process outlives a runner; the next says so and starts again what is to run, once."""
    await create(
        kube,
        pod("service", "sleep 345678", terminationGracePeriodSeconds=1),
        pod("task", "sleep 345678", policy="Never"),
        pod("finished", "exit 0", policy="Never"),
        pod("goes", "sleep 345678", terminationGracePeriodSeconds=1),
    )
    for name in ("service", "task", "goes"):
        await reaches(kube, name, ready)
    await reaches(kube, "finished", phase("Succeeded"))
    plane.end("runner", number)
    await until(lambda: _count("sleep\x00345678", 0))
    await kube.delete(path_of("v1", "Pod", "default", "goes"))
    # Not in a thread: a part is told to end when the thread that started it does (prctl's PDEATHSIG).
    plane.start()
    status = main_of(await reaches(kube, "service", lambda s: main_of(s)["restartCount"] == 1 and ready(s)))
    assert status["lastState"]["terminated"]["exitCode"] == 255
    status = await reaches(kube, "task", phase("Failed"))
    assert main_of(status)["state"]["terminated"]["reason"] == "Unknown" and main_of(status)["restartCount"] == 0
    assert (await status_of(kube, "finished"))["phase"] == "Succeeded"
    await until(lambda: gone(kube, path_of("v1", "Pod", "default", "goes")))
    assert await _count("sleep\x00345678", 1)


async def _count(command: str, wanted: int) -> bool:
    """Whether exactly so many processes of this machine have this command line."""
    found = 0
    for folder in Path("/proc").iterdir():
        try:
            found += folder.name.isdigit() and (folder / "cmdline").read_text().rstrip("\0") == command
        except OSError:
            continue
    return found == wanted


async def test_pods_of_a_node_that_is_gone(kube: Kube) -> None:
    await _apply(kube, node("two"))
    await create(kube, pod("there", "sleep 456789", nodeName="two"), pod("pause", container={"image": "none"}))
    await reaches(kube, "there", ready)
    await reaches(kube, "pause", ready)
    await kube.delete("/api/v1/nodes/two")
    await until(lambda: _count("sleep\x00456789", 0))
    await kube.delete(path_of("v1", "Pod", "default", "there"), gracePeriodSeconds=0)
    await until(lambda: gone(kube, path_of("v1", "Pod", "default", "there")))
