"""Makes `tokenizer/`, the benchmark's own tokenizer: a small byte-level BPE that needs no network.

It only has to cut prompts of about the asked length and to be loadable offline: what is measured is counted by
the server. It is trained on the English text given, with every word of the word lists as one token (with and
without a space before it). Run it with the benchmark image's Python, which has `tokenizers` and `transformers`:

    python3 include/benchmarks/make_tokenizer.py --text TEXT [--words LIST]... [--size N]

The committed files were made from the Shakespeare text (public domain) that aiperf cuts its synthetic prompts of
(`aiperf/dataset/generator/assets/shakespeare.txt`). The output is the same for the same input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

END = "<|end|>"
REPEAT = 1000  # makes a listed word frequent enough to become one token


def main() -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="English text to train on")
    parser.add_argument("--words", type=Path, action="append", default=[], help="words that must be one token each")
    parser.add_argument("--size", type=int, default=3000, help="tokens in the vocabulary")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent / "tokenizer")
    arguments = parser.parse_args()

    words = sorted({w for path in arguments.words for w in path.read_text(encoding="utf-8").split()})
    lines = arguments.text.read_text(encoding="utf-8").splitlines()
    # A line break before the first word leaves it without a space, the second has one.
    lines += [f"{word} {word}" for word in words] * REPEAT

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=arguments.size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)

    split = [w for w in words for form in (w, f" {w}") if len(tokenizer.encode(form).ids) != 1]
    if split:
        print(f"not one token each: {', '.join(sorted(set(split)))}; raise --size", file=sys.stderr)
        return 1
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    special = {name: END for name in ("eos_token", "pad_token", "unk_token")}
    # No line breaks inside: the file goes into a ConfigMap, and whitespace would double it.
    written = {"tokenizer.json": json.loads(tokenizer.to_str()), "tokenizer_config.json": settings}
    written["special_tokens_map.json"] = special
    for name, content in written.items():
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{folder / name}: {len(text.encode())} bytes")
    sample = "\n".join(lines[: min(len(lines), 2000)])
    print(f"{len(sample) / len(tokenizer.encode(sample).ids):.2f} characters a token in the text's first lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
