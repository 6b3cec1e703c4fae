"""The NIM server's stand-in: OpenAI's API, health, NIM's metrics, set latencies.

``python -m rehearsal.nim.server [--image REF] [--host 127.x] [--port N]``. Listens at once (live 200, ready 503),
serves after the start-up phases. SIGTERM: refuses what is new, drains, exit 0. Exit 1: cannot start, the log says why.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from rehearsal.nim import answers, engine, image, logs, metrics, openai, settings, startup

DRAIN_S = 20.0  # below the 30 s of grace that pods have by default
KV_TOKENS = 400_000  # tokens that the KV cache of the stand-in's "GPU" holds; only gpu_cache_usage_perc depends on it
MAX_BODY = 8 * 2**20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The state behind the endpoints."""

    def __init__(self, own: image.Image, names: Sequence[str], given: settings.Settings, log: logging.Logger) -> None:
        self.image, self.names, self.settings, self.log = own, list(names), given, log
        self.metrics = metrics.Metrics(names[0], given.slots, KV_TOKENS)
        self.engine = engine.Engine(given, self.metrics)
        self.errors = settings.ErrorRule(given.error_percent, settings.state_folder(os.environ))
        self.ordered = settings.Ordered(settings.state_folder(os.environ))
        self.drops = settings.Shares(given.drop_percent)
        self.profile: image.Profile | None = None
        self.draining = False
        self.created = int(time.time())

    @property
    def ready(self) -> bool:
        return self.profile is not None and not self.draining

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/v1/health/live", self.live),
                web.get("/v1/health/ready", self.health_ready),
                web.get("/v1/models", self.models),
                web.get("/v1/metadata", self.metadata),
                web.get("/v1/version", self.version),
                web.get("/v1/metrics", self.show_metrics),
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/completions", self.complete),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors in OpenAI's shape; before the start is over only health and metrics are answered."""
        try:
            if not self.ready and not request.path.startswith(("/v1/health/", "/v1/metrics")):
                raise openai.Refused(503, "ServiceUnavailableError", "the service is not ready")
            return await handler(request)
        except openai.Refused as refused:
            return web.json_response(refused.body(), status=refused.status)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            shaped = openai.Refused(error.status, error.reason.replace(" ", "") + "Error", error.reason)
            return web.json_response(shaped.body(), status=error.status)

    async def live(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "health.response", "message": "Service is live."})

    async def health_ready(self, _: web.Request) -> web.Response:
        ready = self.ready and not self.ordered.flapped()
        message = "Service is ready." if ready else "Service is not ready."
        return web.json_response({"object": "health.response", "message": message}, status=200 if ready else 503)

    async def models(self, _: web.Request) -> web.Response:
        if fault := self.ordered.get("models-endpoint"):
            raise openai.Refused(int(fault["status"]), "InternalServerError", "the list of models is not available")
        return web.json_response(openai.model_list(self.names, self.created, self.image.max_model_len))

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"release": self.image.tag or "latest", "api": "1.0.0"})

    async def metadata(self, _: web.Request) -> web.Response:
        assert self.profile is not None
        short = self.image.repository.rpartition("/")[2]
        info: dict[str, Any] = {
            "version": self.image.tag or "latest",
            "modelInfo": [
                {"shortName": f"{short}:{self.profile.description}", "modelUrl": f"ngc://{self.image.model}"}
            ],
            "selectedModelProfileId": self.profile.id,
        }
        return web.json_response(info)

    async def show_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text().encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, chat=True)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, chat=False)

    async def _infer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        ask = openai.parse(await request.read(), chat=chat)
        if ask.model not in self.names:
            raise openai.Refused(404, "NotFoundError", f"The model `{ask.model}` does not exist.", "model")
        prompt_tokens = answers.count_prompt_tokens(ask.texts)
        room = self.image.max_model_len - prompt_tokens
        if room < max(1, ask.max_tokens or 1):
            raise openai.invalid(
                f"This model's maximum context length is {self.image.max_model_len} tokens: "
                f"{prompt_tokens} in the prompt and {ask.max_tokens or 1} asked for are more"
            )
        if ask.stream and self.errors.hit():
            self.metrics.finish("error", 0.0, prompt_tokens, 0)
            raise openai.Refused(500, "InternalServerError", "the engine failed on this request")
        answer = answers.make(
            ask.texts,
            max_tokens=ask.max_tokens or room,
            min_tokens=ask.min_tokens,
            # Without a limit of its own an answer ends by nature, or it would fill the whole context.
            ignore_eos=ask.ignore_eos and ask.max_tokens is not None,
            stop=ask.stop,
        )
        frames = openai.Frames(chat=chat, identity=uuid.uuid4().hex, model=ask.model, created=int(time.time()))
        drop = ask.stream and self.drops.hit()
        async with self.engine.turn(prompt_tokens) as turn:
            try:
                if not ask.stream:
                    await turn.tokens(len(answer.pieces))
                    turn.finish(answer.finish_reason)
                    used = openai.usage(prompt_tokens, len(answer.pieces))
                    return web.json_response(frames.whole(answer.text, answer.finish_reason, used))
                return await self._stream(request, ask, answer, frames, turn, prompt_tokens, drop=drop)
            except (ConnectionError, asyncio.CancelledError):
                turn.finish("abort")  # the client has gone
                raise

    async def _stream(
        self,
        request: web.Request,
        ask: openai.Ask,
        answer: answers.Answer,
        frames: openai.Frames,
        turn: engine.Turn,
        prompt_tokens: int,
        *,
        drop: bool,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        last = len(answer.pieces) - 1
        used = openai.usage(prompt_tokens, len(answer.pieces)) if ask.include_usage else None
        for number, piece in enumerate(answer.pieces):
            await turn.token()
            if drop and number > last // 2:
                assert request.transport is not None
                request.transport.abort()
                raise ConnectionResetError("dropped in the middle, as set")
            if number < last:
                await response.write(frames.token(piece, first=number == 0, finish_reason=None))
            else:
                final = frames.token(piece, first=number == 0, finish_reason=answer.finish_reason)
                await response.write(final + frames.end(used))
        if last < 0:
            await response.write(frames.token("", first=True, finish_reason=answer.finish_reason) + frames.end(used))
        turn.finish(answer.finish_reason)
        await response.write_eof()
        return response


async def serve(server: Server, profiles: Sequence[image.Profile], host: str, port: int) -> int:
    """Listen, start, serve until SIGTERM or SIGINT; returns the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # handler_cancellation: a client that goes away gives its slot back at once.
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=1024)
    try:
        await site.start()
    except OSError as error:
        server.log.error("cannot listen on %s:%d: %s", host, port, error)
        await runner.cleanup()
        return 1
    server.log.info("Listening on http://%s:%d", host, port)
    starting = asyncio.create_task(startup.run(server.image, profiles, server.settings, server.log))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            try:
                server.profile = starting.result()
            except startup.CannotStart as error:
                server.log.error("%s", error)
                return 1
            server.log.info("Service is ready: %s", ", ".join(server.names))
            await stopping
        await _drain(server, site)
        return 0
    finally:
        starting.cancel()
        stopping.cancel()
        await runner.cleanup()


async def _drain(server: Server, site: web.TCPSite) -> None:
    """Accept nothing new and let the requests that run come to their end, for at most DRAIN_S seconds."""
    server.draining = True
    server.log.info("Shutting down: %d request(s) running", server.metrics.running + server.metrics.waiting)
    await site.stop()
    end = asyncio.get_running_loop().time() + DRAIN_S
    while server.engine.busy and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.05)
    server.log.info("Shut down")


def main(argv: Sequence[str] | None = None) -> int:
    env = os.environ
    parser = argparse.ArgumentParser(prog="python -m rehearsal.nim.server", description="the NIM server's stand-in")
    parser.add_argument("--image", default=env.get(image.IMAGE_ENV), help="repository:tag of the NIM image")
    parser.add_argument("--host", default=env.get("REHEARSAL_LISTEN") or "127.0.0.1")
    port = env.get("NIM_HTTP_API_PORT") or env.get("NIM_SERVER_PORT") or "8000"
    parser.add_argument("--port", type=int, default=port)
    arguments = parser.parse_args(argv)
    log = logs.setup("nim")
    if not arguments.image:
        parser.error(f"--image or {image.IMAGE_ENV} must name the NIM image")
    try:
        own = image.describe(arguments.image)
        profiles = image.own_profiles(own)
        names = (env.get("NIM_SERVED_MODEL_NAME") or env.get("NIM_MODEL_NAME") or own.model).split(",")
        server = Server(own, [n.strip() for n in names], settings.load(), log)
    except (image.ImageError, settings.SettingsError) as error:
        log.error("%s", error)
        return 1
    return asyncio.run(serve(server, profiles, arguments.host, arguments.port))


if __name__ == "__main__":
    sys.exit(main())
