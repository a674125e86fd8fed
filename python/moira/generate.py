"""`python -m moira.generate MODEL_DIR --prompt "..."`: the command line of text.py's functions."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from moira.text import Options, Unusable, generate, stream
from moira.tools import Failed


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"error MOE-0101: {message}; see python -m moira.generate --help", file=sys.stderr)
        sys.exit(1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m moira.generate", description="Continues text with a model directory that has tokenizer.json.")
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("--prompt", action="append", required=True, help="text to continue; several give a batch")
    parser.add_argument("--max-new-tokens", type=int, default=Options.max_new_tokens)
    parser.add_argument("--temperature", type=float, help="draw from softmax(logits / TEMPERATURE) instead of taking the likeliest token")
    parser.add_argument("--top-k", type=int, help="with --temperature: draw from the TOP_K likeliest tokens")
    parser.add_argument("--top-p", type=float, help="with --temperature: draw from the likeliest tokens whose probabilities sum to TOP_P")
    parser.add_argument("--seed", type=int, help="of the draws")
    parser.add_argument("--ignore-eos", action="store_true", help="go on past stop tokens")
    parser.add_argument("--mesh", help="how many ranks, and what they split, e.g. ep=2")
    parser.add_argument("--dtype", default=Options.dtype, help="f32 or bf16")
    parser.add_argument("--device", default=Options.device, choices=("host", "cuda"))
    parser.add_argument("--cache", help="directory of compiled plans (default: ~/.cache/moira)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. One prompt's text is printed as it is made, several prompts' when all are whole, a line `[row] text` each."""
    fields = vars(_parse(arguments))
    model, prompts = fields.pop("model"), fields.pop("prompt")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # tokens may be characters that a terminal lacks
    try:
        if len(prompts) == 1:
            for _, text in stream(model, prompts, **fields):
                print(text, end="", flush=True)
            print()
        else:
            for row, text in enumerate(generate(model, prompts, **fields)):
                print(f"[{row}] {text}")
    except Unusable as error:
        print(error, file=sys.stderr)
        return error.code
    except Failed as failed:
        print(failed.finished.err.rstrip(), file=sys.stderr)
        code = failed.finished.code
        return code if code > 0 else 128 - code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on; Python would try once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


if __name__ == "__main__":
    sys.exit(main())
