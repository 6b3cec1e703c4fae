"""What the stand-in answers: words of a fixed list, each one token, chosen by the prompt alone.

The same request always gets the same answer. Every piece is a word with a space before it (the first without),
and the benchmark's tokenizer knows each of them as one token, so client and server count alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# The stand-in has no tokenizer: this is what the benchmark's makes of English text, so both count about alike.
CHARACTERS_PER_TOKEN = 3.4


@cache
def words() -> tuple[str, ...]:
    return tuple((Path(__file__).resolve().parent / "words.txt").read_text(encoding="utf-8").split())


def count_prompt_tokens(texts: Sequence[str]) -> int:
    """An estimate, at least 1."""
    return max(1, round(sum(map(len, texts)) / CHARACTERS_PER_TOKEN))


@dataclass(frozen=True)
class Answer:
    """The pieces (a token each) and why it ends: `stop` or `length`."""

    pieces: tuple[str, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def make(
    texts: Sequence[str], *, max_tokens: int, min_tokens: int = 0, ignore_eos: bool = False, stop: Sequence[str] = ()
) -> Answer:
    """The answer to a prompt: 24 to 87 tokens by nature, bent by min_tokens, ignore_eos, max_tokens and stop."""
    seed = zlib.crc32("\n".join(texts).encode())
    natural = 24 + seed % 64
    wanted = max_tokens if ignore_eos else max(natural, min_tokens)
    reason = "length" if ignore_eos or wanted > max_tokens else "stop"
    vocabulary = words()
    start, step = seed % len(vocabulary), 1 + 2 * (seed // 64 % 8)
    chosen = [vocabulary[(start + i * step) % len(vocabulary)] for i in range(min(wanted, max_tokens))]
    pieces = [w if i == 0 else " " + w for i, w in enumerate(chosen)]
    return _cut(pieces, stop, reason)


def _cut(pieces: list[str], stop: Sequence[str], reason: str) -> Answer:
    """End before the first stop text, which may begin in the middle of a piece."""
    text = "".join(pieces)
    found = min((at for at in (text.find(s) for s in stop) if at >= 0), default=-1)
    if found < 0:
        return Answer(tuple(pieces), reason)
    kept: list[str] = []
    for piece in pieces:
        if found <= 0:
            break
        kept.append(piece[:found])
        found -= len(piece)
    return Answer(tuple(kept), "stop")
