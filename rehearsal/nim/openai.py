"""The OpenAI API's requests: checked, and turned into what the engine needs. Errors in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
COMPLETION_DEFAULT_TOKENS = 16  # OpenAI API reference: default of max_tokens at /v1/completions
MAX_STOPS = 16


class Refused(Exception):
    """A request that is not served: HTTP status, type and message of the answer."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


def invalid(message: str, param: str | None = None) -> Refused:
    return Refused(400, "BadRequestError", message, param)


@dataclass(frozen=True)
class Ask:
    """A request that can be served. Token counts are in tokens."""

    model: str
    texts: tuple[str, ...]
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse(raw: bytes, *, chat: bool) -> Ask:
    """Check a request body. Raises Refused (400) for what is malformed or of the wrong type."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise invalid("the body must be a JSON object")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("`model` is required and must be a string", "model")
    extension = body.get("nvext")
    if extension is not None and not isinstance(extension, dict):
        raise invalid("`nvext` must be an object", "nvext")
    _number(body, "temperature", 0, 2)
    _number(body, "top_p", 0, 1)
    if _integer(body, "n", 1) not in (None, 1):
        raise invalid("`n` above 1 is not supported", "n")
    stream = _flag(body, "stream")
    limit = _integer(body, "max_tokens", 1)
    if chat:
        newer = _integer(body, "max_completion_tokens", 1)
        limit = limit if newer is None else newer
    elif limit is None:
        limit = COMPLETION_DEFAULT_TOKENS
    least = _either(body, extension, "min_tokens", lambda b: _integer(b, "min_tokens", 0)) or 0
    if limit is not None and least > limit:
        raise invalid(f"`min_tokens` ({least}) must not be above the output limit ({limit})", "min_tokens")
    return Ask(
        model=model,
        texts=_messages(body) if chat else _prompt(body),
        max_tokens=limit,
        min_tokens=least,
        ignore_eos=bool(_either(body, extension, "ignore_eos", lambda b: _flag(b, "ignore_eos"))),
        stop=_stop(body),
        stream=stream,
        include_usage=_include_usage(body, stream),
    )


def _either(body: Mapping[str, Any], extension: Mapping[str, Any] | None, name: str, read: Any) -> Any:
    """A value of the body itself, else of NIM's extension object `nvext`."""
    return read(body) if body.get(name) is not None or extension is None else read(extension)


def _integer(body: Mapping[str, Any], name: str, least: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise invalid(f"`{name}` must be an integer of at least {least}", name)
    return value


def _number(body: Mapping[str, Any], name: str, least: float, most: float) -> None:
    value = body.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise invalid(f"`{name}` must be a number from {least:g} to {most:g}", name)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid(f"`{name}` must be true or false", name)
    return value


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("stop")
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values) or len(values) > MAX_STOPS:
        raise invalid(f"`stop` must be a string or a list of up to {MAX_STOPS} strings", "stop")
    return tuple(v for v in values if v)


def _include_usage(body: Mapping[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("`stream_options` is only allowed with `stream`: true", "stream_options")
    if not isinstance(options, dict):
        raise invalid("`stream_options` must be an object", "stream_options")
    return _flag(options, "include_usage")


def _messages(body: Mapping[str, Any]) -> tuple[str, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("`messages` is required and must be a list that is not empty", "messages")
    texts = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise invalid(f"`{where}.role` must be one of {', '.join(ROLES)}", where)
        texts.append(_content(message.get("content"), where, optional=message["role"] == "assistant"))
    return tuple(texts)


def _content(content: Any, where: str, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(p["text"] for p in content)
    raise invalid(f"`{where}.content` must be a string or a list of text parts", where)


def _prompt(body: Mapping[str, Any]) -> tuple[str, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise invalid("`prompt` is required: one string that is not empty", "prompt")
    return (prompt,)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


class Frames:
    """The texts of one answer, whole or as server-sent events; a token's event costs one `json.dumps` of its piece."""

    def __init__(self, *, chat: bool, identity: str, model: str, created: int) -> None:
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{identity}",
            "object": ("chat.completion" if chat else "text_completion"),
            "created": created,
            "model": model,
        }
        kind = "chat.completion.chunk" if chat else "text_completion"
        # The head without its closing brace, so that `choices` can be put behind it.
        self._event_head = {**self._head, "object": kind}
        self._open = "data: " + json.dumps(self._event_head)[:-1] + ', "choices": [{"index": 0, '

    def token(self, piece: str, *, first: bool, finish_reason: str | None) -> bytes:
        text = json.dumps(piece)
        if self._chat:
            role = '"role": "assistant", ' if first else ""
            part = f'"delta": {{{role}"content": {text}}}'
        else:
            part = f'"text": {text}'
        return f'{self._open}{part}, "logprobs": null, "finish_reason": {json.dumps(finish_reason)}}}]}}\n\n'.encode()

    def end(self, used: Mapping[str, int] | None) -> bytes:
        last = b""
        if used is not None:
            last = b"data: " + json.dumps({**self._event_head, "choices": [], "usage": used}).encode() + b"\n\n"
        return last + b"data: [DONE]\n\n"

    def whole(self, text: str, finish_reason: str, used: Mapping[str, int]) -> dict[str, Any]:
        part: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice], "usage": used}


def model_list(names: Sequence[str], created: int, max_model_len: int) -> dict[str, Any]:
    """The answer of /v1/models, in vLLM's form that NIM keeps: each entry its own root."""
    data = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "system",
            "root": name,
            "parent": None,
            "max_model_len": max_model_len,
        }
        for name in names
    ]
    return {"object": "list", "data": data}
