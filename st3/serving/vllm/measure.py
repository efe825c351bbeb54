"""What trimming brings in vLLM, on the packaged demo: `python -m st3.serving.vllm.measure`.

    python -m st3.serving.vllm.measure accuracy --output accuracy.json
    python -m st3.serving.vllm.measure speed --output speed.json     (or endurance)

With `--output`, the same command goes on where it was stopped. `accuracy` asks questions whose
answers are known, of an engine in this process. The others start servers of their own: `speed` asks
about pictures that differ, by 1, 8 and 32 callers at a time, first with cold caches and then again
with hot ones; `endurance` sends 1,000 requests, some broken and some whose callers hang up, and
looks at memory.
"""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from st3.demo.held_out import held_out, one_each
from st3.demo.packaging import PACKAGE
from st3.files import write_text
from st3.machine import describe_machine
from st3.proportion import interval
from st3.serving.load import Ask, data_url, question, run
from st3.serving.vllm.inside import Asker, inside
from st3.serving.vllm.server import NAME, Server, served

CONCURRENCY = (1, 8, 32)
PATIENT = 0.05  # seconds after which a caller hangs up who is of those that do


class What(StrEnum):
    """Which measurement."""

    accuracy = "accuracy"
    speed = "speed"
    endurance = "endurance"


def questions(scenes: int, seed: int = 0) -> list[tuple[Ask, str]]:
    """One about each of so many held-out scenes, of all tasks in turn, and the right answers."""
    found = []
    for one in one_each(scenes, seed):
        body = question(NAME, one.question.prompt, [data_url(one.picture)])
        found.append((Ask(body), one.question.answer))
    return found


def accuracy(asker: Asker, scenes: int = 120) -> dict[str, Any]:
    """How many questions, one about each scene, are answered to the letter, and the tokens."""
    asked = questions(scenes)
    answers = asker([ask for ask, _ in asked])
    right = sum(
        answer.text.strip() == known for answer, (_, known) in zip(answers, asked, strict=True)
    )
    low, high = interval(right, len(asked))
    tokens = sorted({answer.prompt_tokens or 0 for answer in answers})
    return {
        "asked": len(asked), "right": right, "low": low, "high": high,
        "lost": sum(answer.status != 200 for answer in answers),
        "errors": sorted({answer.error[:200] for answer in answers if answer.error}),
        "prompt_tokens": [tokens[0], tokens[-1]],
    }  # fmt: skip


def speed(server: Server, requests: int, longest: int = 24) -> Iterator[dict[str, Any]]:
    """A row for each number of callers: every request its own picture, then the same again."""
    for callers in CONCURRENCY:
        some = list(held_out(requests, callers, ("describe",)))
        asks = [
            Ask(question(NAME, one.question.prompt, [data_url(one.picture)], longest))
            for one in some
        ]
        run(server.url, asks[:callers], callers)  # warms up
        server.forget()
        for cache in ("cold", "hot"):
            yield {"cache": cache} | run(server.url, asks, callers).figures()


def mixed(requests: int, broken: float = 0.02, leaving: float = 0.05) -> list[Ask]:
    """Requests of which some are broken and some callers hang up, spread evenly."""
    good = [ask for ask, _ in questions(40)]
    made = []
    every, away = round(1 / broken), round(1 / leaving)
    for number in range(requests):
        body = good[number % len(good)].body
        if number % every == 7 % every:
            made.append(Ask(_spoilt(body, number // every), broken=True))
        elif number % away == 3 % away:
            made.append(Ask(body, hang_up=PATIENT * (1 + number % 5)))
        else:
            made.append(Ask(body))
    return made


def _spoilt(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A request that cannot be answered: no picture, half of one, none there, or no messages."""
    text = {"type": "text", "text": "What is this?"}
    whole = body["messages"][0]["content"][0]["image_url"]["url"]
    urls = ("data:image/png;base64,aGVsbG8=", whole[:200], "data:image/png;base64,", "no://where")
    if number % 5 == 4:
        return {**body, "messages": "none"}
    shown = {"type": "image_url", "image_url": {"url": urls[number % 5]}}
    return {**body, "messages": [{"role": "user", "content": [shown, text]}]}


def endurance(server: Server, requests: int = 1000, concurrency: int = 32) -> dict[str, Any]:
    """Nothing may be lost, and memory may not grow.

    Memory after each fifth of the requests is that of all processes; the first fifth fills
    caches.
    """
    asks = mixed(requests)
    fifth = len(asks) // 5
    memory, answers = [server.memory()], []
    for begin in range(0, len(asks), fifth):
        answers += run(server.url, asks[begin : begin + fifth], concurrency).answers
        memory.append(server.memory())
    pairs = [*zip(asks, answers, strict=True)]
    staying = [answer for ask, answer in pairs if not ask.broken and ask.hang_up is None]
    refused = [answer for ask, answer in pairs if ask.broken]
    return {
        "requests": len(asks),
        "answered": sum(answer.status == 200 and bool(answer.text) for answer in staying),
        "of": len(staying),
        "hung_up": sum(answer.error == "hung up" for _, answer in pairs),
        "refused": sum(400 <= answer.status < 500 for answer in refused),
        "broken": len(refused),
        "statuses_of_broken": sorted({answer.status for answer in refused}),
        "alive": server.alive,
        "answers_again": run(server.url, asks[:1], 1).answers[0].status == 200,
        "memory_bytes": memory,
    }


def _settings(keep: float, method: str, positions: str) -> dict[str, Any] | None:
    if keep == 1:
        return None
    return {"keep": keep, "method": method, "positions": positions}


def main(
    what: Annotated[What, typer.Argument(help="Which measurement.")],
    keeps: Annotated[str, typer.Option(help="Shares of a picture's tokens; 1 is untrimmed.")] = (
        "1,0.5,0.25"
    ),
    methods: Annotated[str, typer.Option(help="A list; see docs/serving.md.")] = "divprune",
    positions: Annotated[str, typer.Option(help="A list.")] = "original,compact",
    requests: Annotated[
        int | None, typer.Option(min=1, help="[of speed 128, of endurance 1000]")
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Of accuracy: a question each.")] = 120,
    model: Annotated[str, typer.Option(help="A folder or Hub id. [the packaged demo]")] = "",
    eager: Annotated[bool, typer.Option(help="Nothing compiled by vLLM.")] = True,
    output: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Save it.")] = None,
) -> None:
    """Start servers, ask them, and print one JSON document; rows are printed as they come."""
    import vllm

    made = {
        "vllm": vllm.__version__,
        "eager": eager,
        "model": model or "demo",
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "st3.serving.vllm.measure", *sys.argv[1:]]),
    }
    document: dict[str, Any] = {
        what.value: [],
        "settings": made,
        "machine": describe_machine(None, None),
    }
    try:
        document = begun(output, document)
    except ValueError as error:
        typer.echo(f"st3: {error}", err=True)
        raise typer.Exit(1) from None
    rows = document[what.value]
    for settings in grid(keeps, methods, positions, what):
        row: dict[str, Any] = settings or {"keep": 1}
        if any(row.items() <= one.items() for one in rows):
            continue
        found = _measured(what, model or str(PACKAGE), settings, eager, scenes, requests)
        rows += [row | one for one in found]
        for one in found:
            print(json.dumps(row | one), file=sys.stderr, flush=True)
        if output is not None:
            write_text(output, _text(document))
    sys.stdout.write(_text(document))


def _measured(
    what: What, model: str, settings: Any, eager: bool, scenes: int, requests: int | None
) -> list[dict[str, Any]]:
    """Rows of one setting."""
    if what is What.accuracy:
        with inside(
            model, settings, dtype="bfloat16", max_model_len=2048, enforce_eager=eager
        ) as asker:
            return [accuracy(asker, scenes)]
    more = ["--dtype", "bfloat16", "--max-model-len", "2048"] + ["--enforce-eager"] * eager
    with served(model, settings, more) as server:
        if what is What.speed:
            return list(speed(server, requests or 128))
        return [endurance(server, requests or 1000)]


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def begun(output: Path | None, document: dict[str, Any]) -> dict[str, Any]:
    """What the same command has measured before, or the document as it is.

    Raises:
        ValueError: the file is of another command, model or vLLM.
    """
    if output is None or not output.exists():
        return document
    before: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    for name in ("command", "model", "eager", "vllm"):
        if (there := before["settings"].get(name)) != document["settings"][name]:
            raise ValueError(f"{output} is of another run, {name} {there!r}: give another --output")
    return before


def grid(keeps: str, methods: str, positions: str, what: What) -> Iterator[dict[str, Any] | None]:
    """Settings in turn, each once."""
    chosen: Sequence[str] = positions.split(",")
    if what is not What.accuracy:
        chosen = chosen[:1]
    before: list[Any] = []
    for keep in keeps.split(","):
        for method in methods.split(","):
            for where in chosen:
                settings = _settings(float(keep), method, where)
                if settings not in before:
                    before.append(settings)
                    yield settings


if __name__ == "__main__":
    typer.run(main)
