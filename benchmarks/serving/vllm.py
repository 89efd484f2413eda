"""Answers of an exported model from a vLLM server, beside those of transformers.

    python -m benchmarks.serving.vllm --hf runs/quickstart/llava/hf --data validation.jsonl \
        --image-folder images --vllm "/opt/vllm/bin/vllm"

The server is started with the directory, and asked over HTTP as its users do: chat messages with
images in them. So its own reading of configuration, processor, template and weights is compared.
Each side answers greedily, in the same dtype.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import mimetypes
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.exact_match import Sample, prepare
from evaluation.generation import answer, load
from evaluation.query import IMAGE_PLACEHOLDER, Query

START_SECONDS = 600


def main() -> None:
    options = _options()
    samples = prepare(options.data, options.image_folder, options.limit)
    started = time.perf_counter()
    with served(options) as url:
        print(f"server ready        {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        found = [ask(url, options, sample.query) for sample in samples]
        seconds = time.perf_counter() - started
    model, processor = load(options.hf, dtype=getattr(torch, options.dtype))
    started = time.perf_counter()
    queries = [sample.query for sample in samples]
    wanted = answer(model, processor, queries, options.max_new_tokens, batch_size=1)
    own_seconds = time.perf_counter() - started
    same = sum(one == two for one, two in zip(found, wanted, strict=True))
    print(f"equal answers       {same} of {len(samples)}")
    print(f"correct, vLLM       {_correct(samples, found)} of {len(samples)}, {seconds:.1f} s")
    print(
        f"correct, transformers {_correct(samples, wanted)} of {len(samples)}, {own_seconds:.1f} s"
    )
    for sample, one, two in zip(samples, found, wanted, strict=True):
        if one != two:
            print(f"  {sample.sample_id}: vLLM {one!r}, transformers {two!r}")
    sys.exit(0 if same == len(samples) else 1)


def _correct(samples: Sequence[Sample], answers: Sequence[str]) -> int:
    return sum(sample.truth == text for sample, text in zip(samples, answers, strict=True))


@contextlib.contextmanager
def served(options: argparse.Namespace) -> Iterator[str]:
    """Start the server, wait until it answers, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [*shlex.split(options.vllm), "serve", str(options.hf), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", options.dtype, *shlex.split(options.arguments)]
    with options.log.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(url, process, options.log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_SECONDS):
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}; see {log}")
        with contextlib.suppress(OSError):  # refused, closed or too slow
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(1)
    sys.exit(f"the server did not answer for {START_SECONDS} s; see {log}")


def ask(url: str, options: argparse.Namespace, query: Query) -> str:
    """Return the server's answer to a query."""
    images = iter(query.images)
    messages = [
        {"role": one["role"], "content": _parts(one["content"], images)} for one in query.messages
    ]
    body = {
        "model": str(options.hf),
        "messages": messages,
        "temperature": 0,
        "max_completion_tokens": options.max_new_tokens,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)["choices"][0]["message"]["content"].strip()


def _parts(content: str, images: Iterator[Any]) -> list[dict[str, Any]]:
    """Cut a message at its images, as OpenAI's protocol has it; newlines are the template's."""
    parts: list[dict[str, Any]] = []
    for text in re.split(f"({re.escape(IMAGE_PLACEHOLDER)}\n?)", content):
        if text.startswith(IMAGE_PLACEHOLDER):
            path = Path(next(images))
            kind = mimetypes.guess_type(path.name)[0]
            encoded = base64.b64encode(path.read_bytes()).decode()
            parts.append(
                {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{encoded}"}}
            )
        elif text:
            parts.append({"type": "text", "text": text})
    return parts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hf", type=Path, required=True, help="exported directory")
    parser.add_argument("--data", type=Path, required=True, help="LLaVA JSON or JSONL")
    parser.add_argument("--image-folder", type=Path, required=True)
    parser.add_argument("--vllm", default="vllm", help="command that starts vLLM")
    parser.add_argument("--arguments", default="", help="more for `vllm serve`")
    parser.add_argument("--limit", type=int, default=100, help="questions")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--log", type=Path, default=Path("vllm.log"), help="of the server")
    return parser.parse_args()


if __name__ == "__main__":
    main()
