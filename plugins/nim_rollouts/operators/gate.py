"""The gate: each pod of the new revision answers for itself, and the model really talks. Short worker tasks."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.errors import GateFailed, GateUnmeasured, PortForwardFailed, SmokeTestFailed, TunnelFailed
from nim_rollouts.operators.base import Facts, Stage, StageOperator

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Object
    from nim_rollouts.clients.portforward import PodHttp, Response

# How often a pod is asked for what it does not answer, and how many seconds a chat completion may take.
_EXCHANGES = 2
COMPLETION_S = 120.0
PROMPT = "Name the planets of the solar system in one sentence."


class GateOperator(StageOperator):
    """Every pod: ready again and again over a window, the right model, no restart.

    :param successes: how many answers of 200 in a row
    :param interval_s: seconds between two
    """

    claim_scopes = ("deployment",)

    def __init__(self, *, successes: int = 5, interval_s: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.successes = successes
        self.interval_s = interval_s

    def run(self, stage: Stage) -> Facts:
        """Reads only. A failed exchange begins the row anew; the first answer that is not 200 ends it.

        :raises GateFailed: a pod was measured, and is not as it must be
        :raises GateUnmeasured: a pod could not be asked at all: nothing is known about it, so it is tried again
        """
        session = stage.session
        pods = revision_pods(stage)
        wanted = session.deployment.service.replicas
        if len(pods) < wanted:
            raise GateFailed(f"{len(pods)} of {wanted} pods of {session.names.service} are there",
                             reason="pods-missing", hint="Clear wait_service and the tasks after it")  # fmt: skip
        facts = []
        for pod in pods:
            self._refuse_restarts(stage, pod)
            name = pod["metadata"]["name"]
            with session.cluster.port_forward(session.names.namespace, name, session.deployment.service.port) as http:
                probes = self._ready_in_a_row(stage, name, http)
                models = _models(stage, http, name)
            if session.deployment.model not in models:
                raise GateFailed(
                    f"{name} serves {', '.join(models) or 'no model'}, not {session.deployment.model}",
                    reason="wrong-model",
                    hint="Correct model or image of the deployment",
                )
            facts.append({"pod": name, "uid": pod["metadata"]["uid"], "probes": probes, "models": models})
        self._same_pods(stage, pods)
        return {"pods": facts, "successes": self.successes, "interval_s": self.interval_s}

    def _ready_in_a_row(self, stage: Stage, pod: str, http: PodHttp) -> int:
        row, made, silent, limit = 0, 0, 0, self.successes * 4
        while row < self.successes:
            if made >= limit and not silent:
                raise GateUnmeasured(f"{pod} could not be asked {self.successes} times in a row in {limit} attempts")
            if made >= limit:
                raise GateFailed(f"{pod} did not answer {self.successes} times in a row within {limit} probes",
                                 reason="unsteady", hint="Look at the pod's log and at its restarts")  # fmt: skip
            made += 1
            try:
                answer = http.request("GET", "/v1/health/ready", timeout_s=10.0)
            except PortForwardFailed as error:
                stage.log.info("%s: %s, counting anew", pod, error.message)
                row = 0
                silent += not isinstance(error, TunnelFailed)
            else:
                if answer.status != 200:
                    raise GateFailed(
                        f"{pod} answers {answer.status} on /v1/health/ready although the service was ready",
                        reason="not-ready",
                        hint="Look at the pod's log",
                    )
                row += 1
            if row < self.successes:
                # The window is what is being measured: answers spread over time.
                time.sleep(self.interval_s)
        stage.log.info("%s: ready %d times in a row over %.0f s", pod, row, (row - 1) * self.interval_s)
        return made

    @staticmethod
    def _refuse_restarts(stage: Stage, pod: Object) -> None:
        """A restart since the run applied the service. Older ones belong to older runs."""
        applied = stage.session.facts("apply_service").get("applied_at")
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = ((container.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
            if int(container.get("restartCount") or 0) and _is_later(ended, applied):
                terminated = container["lastState"]["terminated"]
                raise GateFailed(
                    f"{pod['metadata']['name']} was restarted {container['restartCount']} times, last because of "
                    f"{terminated.get('reason')} (exit code {terminated.get('exitCode')})",
                    reason="restarted",
                    hint="Look at the log of the run before: kubectl logs --previous",
                )

    def _same_pods(self, stage: Stage, before: list[Object]) -> None:
        """Nobody was restarted or replaced during the window."""
        after = {pod["metadata"]["uid"]: pod for pod in revision_pods(stage)}
        for pod in before:
            now = after.get(pod["metadata"]["uid"])
            if now is None or _restarts(now) != _restarts(pod):
                raise GateFailed(f"{pod['metadata']['name']} was restarted or replaced while it was probed",
                                 reason="restarted", hint="Look at the pod's log and events")  # fmt: skip


class SmokeTestOperator(StageOperator):
    """One chat completion through a pod of the new revision, whose answer is checked."""

    def run(self, stage: Stage) -> Facts:
        """Reads only."""
        session = stage.session
        pods = revision_pods(stage)
        if not pods:
            raise SmokeTestFailed(f"there is no pod of {session.names.service}", hint="Clear wait_service")
        question = {
            "model": session.deployment.model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": 64,
            "temperature": 0,
        }
        began = time.monotonic()
        name = pods[0]["metadata"]["name"]
        with session.cluster.port_forward(session.names.namespace, name, session.deployment.service.port) as http:
            answer = _asked(stage, http, name, "POST", "/v1/chat/completions", question, timeout_s=COMPLETION_S)
            if answer is None:
                raise SmokeTestFailed(
                    f"{name} does not answer a chat completion of {question['max_tokens']} tokens, and its health does",
                    reason="completion-unanswered",
                    hint="Look at the pod's log: the server lives, the model does not get done",
                )
        seconds = round(time.monotonic() - began, 2)
        facts = check_completion(answer)
        stage.log.info("%s answered in %.2f s with %s tokens", name, seconds, facts["completion_tokens"])
        return {"pod": name, "seconds": seconds, **facts}


def check_completion(answer: Response) -> Facts:
    """The facts of a chat completion.

    :raises SmokeTestFailed: it is an error, empty, or without usage
    """
    if answer.status != 200:
        raise SmokeTestFailed(f"/v1/chat/completions answers {answer.status}: {answer.text[:200]}",
                              reason="completion-refused", hint="Look at the pod's log")  # fmt: skip
    try:
        body = answer.json()
        choice = body["choices"][0]
        text = choice["message"]["content"]
        tokens = int(body["usage"]["completion_tokens"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SmokeTestFailed(f"the answer is no chat completion: {type(error).__name__} {error}",
                              reason="completion-malformed", hint="Look at the pod's log") from error  # fmt: skip
    if not isinstance(text, str) or not text.strip() or tokens < 1:
        raise SmokeTestFailed("the completion is empty", reason="completion-empty", hint="Look at the pod's log")
    return {"completion_tokens": tokens, "finish_reason": choice.get("finish_reason"), "characters": len(text)}


def revision_pods(stage: Stage) -> list[Object]:
    """The pods of the wanted image that are not on their way out."""
    names, image = stage.session.names, stage.session.deployment.image.reference
    pods = stage.session.cluster.list("v1", "Pod", names.namespace, label_selector=f"app={names.service}")
    return [
        pod
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and any(container.get("image") == image for container in pod["spec"]["containers"])
    ]


def _asked(
    stage: Stage, http: PodHttp, pod: str, method: str, path: str, body: Any = None, *, timeout_s: float
) -> Response | None:
    """The pod's answer; None when it was asked again and again, answers for its health, and not this.

    :raises GateUnmeasured: it could not be asked, or answers nothing at all: the fault may lie on the way
    """
    for _ in range(_EXCHANGES):
        try:
            return http.request(method, path, body, timeout_s=timeout_s)
        except PortForwardFailed as error:
            stage.log.info("%s", error.message)
            failure = error
    if not isinstance(failure, TunnelFailed):
        try:
            http.request("GET", "/v1/health/ready", timeout_s=10.0)
            return None
        except PortForwardFailed as error:
            failure = error
    raise GateUnmeasured(f"{pod} could not be asked for {path}: {failure.message}")


def _models(stage: Stage, http: PodHttp, pod: str) -> list[str]:
    answer = _asked(stage, http, pod, "GET", "/v1/models", timeout_s=10.0)
    if answer is None:
        raise GateFailed(f"{pod} does not answer on /v1/models, and its health does",
                         reason="model-endpoint-unavailable", layer="model-endpoint",
                         hint="Look at the pod's log")  # fmt: skip
    try:
        return [str(one["id"]) for one in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        raise GateFailed(f"{pod} answers {answer.status} on /v1/models without a list of models",
                         reason="models-malformed", layer="model-endpoint",
                         hint="Look at the pod's log") from None  # fmt: skip


def _restarts(pod: Object) -> int:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return sum(int(container.get("restartCount") or 0) for container in statuses)


def _is_later(moment: str | None, than: str | None) -> bool:
    if not moment or not than:
        return bool(moment)
    return datetime.fromisoformat(moment) >= datetime.fromisoformat(than)
