"""The life of one container: pulled, created, probed, restarted with back-off, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rehearsal.kube import Obj, now_rfc3339
from rehearsal.runner import disorder, environment, pulls
from rehearsal.runner.environment import ConfigError
from rehearsal.runner.images import NOBODY, Program, image_texts, listening
from rehearsal.runner.probes import Prober, Target
from rehearsal.runner.process import Process, StartError, log_tail, run_inside
from rehearsal.runner.pulls import UNREACHABLE, Backoff
from rehearsal.runner.sandbox import CAPABILITIES
from rehearsal.runner.status import ContainerState

if TYPE_CHECKING:
    from rehearsal.runner.pods import PodWorker

log = logging.getLogger(__name__)

_NEVER = "1970-01-01T00:00:00Z"
_LOST = {"exitCode": 255, "reason": "Unknown"}


def dropped(spec: Obj) -> list[str]:
    """Capabilities that a container gives up, of those that `sandbox` can take from it."""
    given = ((spec.get("securityContext") or {}).get("capabilities") or {}).get("drop") or ()
    kept = ((spec.get("securityContext") or {}).get("capabilities") or {}).get("add") or ()
    return [name for name in CAPABILITIES if ("ALL" in given or name in given) and name not in kept]


class Container:
    """One container of a pod. `run` returns when it will not be started again; a cancelled `run` leaves a running
    process alone, which the pod then ends by `stop`."""

    def __init__(self, worker: PodWorker, state: ContainerState):
        self.worker, self.state = worker, state
        self.spec = state.spec
        self.image = str(self.spec["image"])
        self.program: Program = worker.kubelet.images.program(self.image)
        self.process: Process | None = None
        self.folder: Path = worker.folder / state.name
        self._override: tuple[int, str] | None = None
        self._pull_backoff, self._crash_backoff = Backoff(free=False), Backoff(free=True)
        self.changed = asyncio.Event()

    @property
    def name(self) -> str:
        return self.state.name

    def log_file(self, restart: int | None = None) -> Path:
        return self.folder / f"{self.state.restart_count if restart is None else restart}.log"

    def event(self, type_: str, reason: str, message: str) -> None:
        self.worker.event(type_, reason, message, self.name, self.state.init)

    def set_state(self, **state: Obj) -> None:
        self.state.state = dict(state)
        self.worker.touch()

    def wait_for(self, reason: str, message: str = "") -> None:
        self.state.ready = self.state.started = False
        self.set_state(waiting={"reason": reason} | ({"message": message} if message else {}))

    def lose(self) -> None:
        """What ran under an earlier runner died with it: say so, as a kubelet does of what it finds gone."""
        running = self.state.state.get("running")
        if running is not None:
            times = {"startedAt": running["startedAt"], "finishedAt": now_rfc3339()}
            ended = _LOST | times | ({"containerID": self.state.container_id} if self.state.container_id else {})
            self.state.state = {"terminated": ended}
        self.state.ready = self.state.started = False

    async def run(self) -> None:
        policy = self._policy()
        ended = self.state.state.get("terminated")
        # Adopted in a state that needs no run: a completed init container, a finished container of a Job.
        if ended is not None and not self._again(policy, ended["exitCode"]):
            return
        if ended is not None or self.state.last_state:
            self._restart()
        while True:
            await pulls.pull(self, self._pull_backoff)
            await disorder.held(self)
            ran = await self._run_once()
            code = self.state.exit_code
            assert code is not None
            if not self._again(policy, code):
                return
            await self._back_off(ran)
            self._restart()

    def _policy(self) -> str:
        if self.state.sidecar:
            return "Always"
        policy = str(self.worker.pod["spec"].get("restartPolicy", "Always"))
        # An init container that ended well is done, whatever the policy says about the pod.
        return "OnFailure" if self.state.init and policy == "Always" else policy

    @staticmethod
    def _again(policy: str, code: int) -> bool:
        return policy == "Always" or (policy == "OnFailure" and code != 0)

    def _restart(self) -> None:
        if "terminated" in self.state.state:
            self.state.last_state = {"terminated": self.state.state["terminated"]}
        self.state.restart_count += 1

    async def _back_off(self, ran: float) -> None:
        delay = self._crash_backoff.next(ran)
        if delay == 0:
            return
        self.state.last_state = {"terminated": self.state.state["terminated"]}
        meta = self.worker.pod["metadata"]
        pod = f"{meta['name']}_{meta['namespace']}({meta['uid']})"
        self.event("Warning", "BackOff", f"Back-off restarting failed container {self.name} in pod {pod}")
        words = f"back-off {_duration(delay)} restarting failed container={self.name} pod={pod}"
        self.wait_for("CrashLoopBackOff", words)
        await asyncio.sleep(delay)

    async def _run_once(self) -> float:
        """From creation to the end of one run; the seconds that it ran. The end stands in `state` then."""
        self.state.container_id = f"containerd://{secrets.token_hex(32)}"
        self._override = None
        await self._played()
        env, binds = await self._configuration()
        self.event("Normal", "Created", "Container created")
        started = now_rfc3339()
        loop = asyncio.get_running_loop()
        began = loop.time()
        argv = environment.command_line(self.spec, self.program.command, env)
        argv = listening(self.program, disorder.command(self, argv), self.worker.address)
        await self.worker.publish()
        if not self.program.processes or not argv:
            self._running(started)
            self.state.started = self.state.ready = True
            self.changed.set()
            self.worker.touch()
            await asyncio.Event().wait()
        try:
            spec = self.worker.sandbox_spec(self, argv, binds)
            self.process = await Process.start(spec, env, self.log_file(), self.worker.kubelet.r.python)
        except StartError as error:
            self.event("Warning", "Failed", f"Error: {error}")
            ended = {"exitCode": 128, "reason": "StartError", "message": str(error), "startedAt": _NEVER}
            self.set_state(terminated=ended | {"finishedAt": now_rfc3339(), "containerID": self.state.container_id})
            return 0.0
        (self.folder / "pid").write_text(str(self.process.pid))
        self.event("Normal", "Started", "Container started")
        self._running(started)
        watcher = self.process.exit_code
        watcher.add_done_callback(lambda task: self._ended(task, started))
        helpers = [asyncio.create_task(self._prober(self.process, env).run())]
        helpers.append(asyncio.create_task(disorder.end_when_away(self, self.process)))
        if (fault := disorder.crash(self)) is not None:
            helpers.append(asyncio.create_task(self._crash(self.process, fault)))
        try:
            await asyncio.shield(watcher)
        finally:
            for each in helpers:
                each.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        return loop.time() - began

    async def _played(self) -> None:
        """Return when there is something to play: a container that must run, and of which nobody says as what, would
        look healthy to all who wait for it."""
        if why := self.worker.kubelet.images.lacks(self.program, self.image, self.spec):
            log.warning("%s/%s: %s", self.worker.title, self.name, why)
            self.event("Warning", "Failed", f"Error: {why}")
            self.wait_for("CreateContainerError", why)
            await asyncio.Event().wait()
        if self.program is NOBODY:
            log.info("%s/%s: nothing runs in it, for no entry fits %s", self.worker.title, self.name, self.image)

    async def _configuration(self) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """Environment and binds; waits in CreateContainerConfigError until what they need exists."""
        pause = 1.0
        while True:
            try:
                env = await self.worker.environment(self)
                return env, self.worker.volumes.binds(self.spec, env)
            except ConfigError as error:
                self.event("Warning", "Failed", f"Error: {error}")
                self.wait_for("CreateContainerConfigError", str(error))
            except UNREACHABLE as error:
                log.warning("%s: configuration not read yet: %s", self.worker.title, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 10)

    def _running(self, started: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.changed.clear()
        self.state.ready = self.state.started = False
        self.set_state(running={"startedAt": started})

    def _ended(self, task: asyncio.Task[int], started: str) -> None:
        self.process = None
        code, reason = task.result(), ""
        if self._override is not None:
            code, reason = self._override
        ended: Obj = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error")}
        if message := self._termination_message(code):
            ended["message"] = message
        ended |= {"startedAt": started, "finishedAt": now_rfc3339(), "containerID": self.state.container_id}
        self.state.ready = self.state.started = False
        self.state.state = {"terminated": ended}
        self.changed.set()
        # A restart that comes at once is shown as the next running state alone, as a kubelet's status is.
        self.worker.touch(delay=0.05)
        log.info("%s/%s ended with %d", self.worker.title, self.name, code)

    def _termination_message(self, code: int) -> str:
        file = self.folder / "termination-log"
        text = file.read_text(errors="replace")[:4096] if file.exists() else ""
        if not text and code != 0 and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            text = log_tail(self.log_file())
        return text

    def _prober(self, process: Process, env: dict[str, str]) -> Prober:
        ports = {p["name"]: p["containerPort"] for p in self.spec.get("ports", []) if "name" in p}
        target = Target(self.worker.pod_ip, self.worker.address, process.pid, ports)

        def started() -> None:
            self.state.started = True
            self.changed.set()
            self.worker.touch()

        def ready(good: bool) -> None:
            if self.state.ready != good:
                self.state.ready = good
                self.worker.touch()

        async def kill(kind: str) -> None:
            self.event("Normal", "Killing", f"Container {self.name} failed {kind} probe, will be restarted")
            asyncio.get_running_loop().create_task(self._end(process, self.worker.grace(None)))

        def unhealthy(_: str, message: str) -> None:
            self.event("Warning", "Unhealthy", message)

        session = self.worker.kubelet.session
        return Prober(session, self.spec, target, started, ready, unhealthy, kill)

    async def _crash(self, process: Process, fault: dict[str, Any]) -> None:
        await asyncio.sleep(float(fault["after_s"]))
        self._override = (int(fault["exit_code"]), str(fault["reason"]))
        process.kill()

    async def stop(self, grace: float) -> None:
        """End it as a deletion does: preStop, SIGTERM, and SIGKILL after `grace` seconds."""
        process = self.process
        if process is None:
            if "running" in self.state.state:
                ended = {"exitCode": 0, "reason": "Completed", "startedAt": self.state.state["running"]["startedAt"]}
                self.state.ready = self.state.started = False
                self.set_state(terminated=ended | {"finishedAt": now_rfc3339()})
            return
        self.event("Normal", "Killing", f"Stopping container {self.name}")
        # An end that was asked for is no crash of the fault's.
        self._override = None
        await self._end(process, grace)

    async def _end(self, process: Process, grace: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        await self._pre_stop(process, grace)
        process.terminate()
        done, _ = await asyncio.wait([process.exit_code], timeout=max(deadline - loop.time(), 0))
        if not done:
            process.kill()
            await asyncio.wait([process.exit_code])
        # The recording of the end is a callback of the same task: let it run first.
        await asyncio.sleep(0)

    async def _pre_stop(self, process: Process, limit: float) -> None:
        """The container's preStop hook, for at most `limit` seconds: exec and sleep (httpGet is not played)."""
        hook = self.spec.get("lifecycle", {}).get("preStop", {})
        with contextlib.suppress(TimeoutError):
            if "sleep" in hook:
                await asyncio.wait([process.exit_code], timeout=min(limit, hook["sleep"]["seconds"]))
            elif "exec" in hook:
                code, said = await run_inside(process.pid, hook["exec"]["command"], limit)
                if code != 0:
                    words = f"PreStopHook failed: {said[:200]}"
                    self.event("Warning", "FailedPreStopHook", words)

    def image_binds(self) -> list[dict[str, Any]]:
        """The image's own files and the termination log, as binds. Raises StartError for a file that is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        binds: list[dict[str, Any]] = []
        for target, place in self.program.files.items():
            if not Path(place).exists():
                raise StartError(f'the image "{self.image}" has {target} from {place}, which does not exist')
            binds.append({"source": place, "target": target, "read_only": True})
        for target, text in disorder.files(self, image_texts(self.program, self.image)).items():
            source = self.folder / "image" / target.lstrip("/")
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(text)
            binds.append({"source": str(source), "target": target, "read_only": True})
        message = self.folder / "termination-log"
        message.write_text("")
        path = self.spec.get("terminationMessagePath", "/dev/termination-log")
        return [*binds, {"source": str(message), "target": path, "read_only": False}]


def _duration(seconds: float) -> str:
    """As Go prints it: 10s, 1m20s, 5m0s."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
