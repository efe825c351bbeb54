"""Serve a trimmed model and ask it over HTTP, as any client of OpenAI's API would.

    pip install 'st3[serve]'
    python docs/examples/serve.py                      # the demo model, about the bundled picture
    python docs/examples/serve.py --model 7b --picture photo.jpg --prompt "What is on the table?"

It starts `st3 serve` on a free port, asks once, prints what was kept, and stops the server as
a service manager would. Standard library only, so that what goes over the wire can be seen.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from st3 import demo


def main() -> None:
    """Start, ask, stop."""
    parser = argparse.ArgumentParser(description="Start st3 serve, ask it, stop it.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--method", default="st3")
    parser.add_argument("--picture", type=Path, default=demo.PICTURE)
    parser.add_argument("--prompt", default="How many objects are there?")
    given = parser.parse_args()

    command = [sys.executable, "-m", "st3_cli", "serve", "--port", "0", "--json"]
    command += ["--model", given.model, "--method", given.method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            where = started(server)
            answer = ask(where, given.picture, given.prompt)
        finally:
            server.send_signal(signal.SIGTERM)  # it finishes what runs
    usage = answer["usage"]
    print(answer["choices"][0]["message"]["content"])
    print(f"{usage['kept_prompt_tokens']} of {usage['prompt_tokens']} prompt tokens kept")


def started(server: subprocess.Popen[str]) -> dict[str, Any]:
    """What `st3 serve --json` prints once it listens: `url`, `model`, `method`."""
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if line.startswith("}"):
            found: dict[str, Any] = json.loads(said)
            return found
    sys.exit("the server did not start: what it said stands above")


def ask(where: dict[str, Any], picture: Path, prompt: str) -> dict[str, Any]:
    """One chat completion about a picture, which goes along as data."""
    data = base64.b64encode(picture.read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": prompt},
    ]
    body = {
        "model": where["model"],
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 64,
    }
    request = urllib.request.Request(
        f"{where['url']}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


if __name__ == "__main__":
    main()
