"""The stand-in's two listeners: AWS (moto behind the EKS extension) and the API server's token webhook."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

# Read by moto when its models are imported: without it no policy of AWS's own can be attached.
os.environ.setdefault("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

from rehearsal.aws import moto_gaps  # noqa: E402
from rehearsal.aws.again import Again  # noqa: E402
from rehearsal.aws.eks import EksExtension, WsgiApp, signed_for  # noqa: E402
from rehearsal.aws.eks_cluster import ApiServer  # noqa: E402
from rehearsal.aws.eks_state import Clusters  # noqa: E402
from rehearsal.aws.refusals import Ordered, Refusing  # noqa: E402
from rehearsal.aws.webhook import TokenWebhook  # noqa: E402

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer

log = logging.getLogger("rehearsal.aws")


class AwsStandIn:
    """Both servers, each in threads of its own. A port of 0 takes a free one; `close` ends them within a second.

    `refusing`: the settings of the fault `aws-error` while it is ordered.
    """

    def __init__(
        self,
        api: ApiServer,
        port: int,
        webhook_port: int,
        host: str = "127.0.0.1",
        refusing: Ordered = lambda: None,
    ) -> None:
        # moto looks at it where it calls itself.
        os.environ["MOTO_PORT"] = str(port)
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        moto_gaps.close()
        moto: WsgiApp = DomainDispatcherApplication(create_backend_app)
        clusters = Clusters()
        aws = Again(Refusing(EksExtension(moto, clusters, api), refusing))
        self._aws = _listen(host, port, _with_health(aws))
        hosts = {f"{name}:{self.port}" for name in (host, "localhost")}
        self._webhook = _listen(host, webhook_port, TokenWebhook(moto, clusters, hosts))
        self._threads = [threading.Thread(target=s.serve_forever, daemon=True) for s in (self._aws, self._webhook)]

    @property
    def port(self) -> int:
        return int(self._aws.server_port)

    @property
    def webhook_port(self) -> int:
        return int(self._webhook.server_port)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        log.info("AWS on 127.0.0.1:%d, token webhook on 127.0.0.1:%d", self.port, self.webhook_port)

    def close(self) -> None:
        for server in (self._aws, self._webhook):
            server.shutdown()
            server.server_close()


def _listen(host: str, port: int, app: WsgiApp) -> BaseWSGIServer:
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):  # type: ignore[misc]
        """One log line a request: what was asked of which service, and the answer's status."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            signature = signed_for(self.headers.get("Authorization", ""))
            service = signature[2] if signature else "-"
            target = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            # A query may hold a presigned signature; the path alone is enough to follow what happens.
            path = getattr(self, "path", "-").partition("?")[0]
            level = logging.DEBUG if path == "/healthz" else logging.INFO
            log.log(level, "%s %s %s %s %s", service, getattr(self, "command", "-"), path, target or "-", int(code))

    return make_server(host, port, app, threaded=True, request_handler=Handler)


def _with_health(app: WsgiApp) -> WsgiApp:
    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == "/healthz" and "HTTP_AUTHORIZATION" not in environ:
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
            return [b"ok"]
        return app(environ, start_response)

    return serve
