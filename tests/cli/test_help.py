"""What `--help` says: in words, and readable on a narrow terminal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import typer

from st3_cli import benchmark, commands, method_options, options, workload_options

COMMANDS = (
    "run", "profile", "attention-map", "sweep", "verify", "evaluate", "benchmark", "methods",
    "models", "env",
)  # fmt: skip
CHOICES = [options.Device, options.Dtype, options.Attention, options.Compiler, options.Quantization,
           workload_options.Weights, benchmark.SuiteName,
           method_options.Annealing]  # fmt: skip


def parameters(command: str) -> list[Any]:
    group: Any = typer.main.get_command(commands.app)
    return list(group.commands[command].params)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_word_is_broken(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    text = st3_(command, "--help").out
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    words = set(re.findall(r"[\w-]+", text))
    for parameter in parameters(command):
        assert {name for name in parameter.opts if name.startswith("--")} <= words
        for kind in CHOICES:
            if options.one_of(kind) in (getattr(parameter, "help", None) or ""):
                assert {choice.value for choice in kind} <= words


def test_every_choice_is_in_a_help_text() -> None:
    texts = [getattr(p, "help", None) or "" for name in COMMANDS for p in parameters(name)]
    for kind in CHOICES:
        assert any(options.one_of(kind) in text for text in texts), kind


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_words(command: str) -> None:
    """No symbol stands for what an option is: each help text has some words, none a lone letter."""
    for parameter in parameters(command):
        text = getattr(parameter, "help", None) or ""
        assert not re.match(r"(S|P|R|C|tau)[.,]", text), parameter.name
        assert len(text.split()) >= 2, parameter.name


def test_scorers_and_methods_can_be_found(st3_: Any) -> None:
    for command in ("run", "profile", "attention-map", "sweep", "verify", "evaluate"):
        assert "st3 methods" in " ".join(st3_(command, "--help").out.split()), command
    shown = st3_("methods")
    assert shown.err == ""
    from st3.methods.scorers import SCORERS

    assert all(name in shown.out for name in SCORERS)


@pytest.mark.parametrize("width", [60, 80])
def test_lists_break_between_words(st3_: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    from st3_cli import console

    monkeypatch.setattr(console.out, "width", width)
    words = set(st3_("methods").out.replace(",", " ").split())
    assert {"prune_ratio=0.5", "final_keep=auto", "annealing=cosine", "withdrawal:"} <= words


def test_models_are_those_that_are_proven(st3_: Any) -> None:
    from st3.families.examples import EXAMPLES
    from st3.families.proven import PROVEN
    from st3.inference.presets import PRESETS

    assert {*EXAMPLES} <= {*PROVEN}
    done = st3_("models", "--json")
    document = json.loads(done.out)
    assert {one["family"]: tuple(one["text_models"]) for one in document["families"]} == PROVEN
    assert {*document["names"]} == {*PRESETS} - {"demo", "small"}
    shown = st3_("models")
    assert all(name in shown.out for name in ("qwen3_vl_moe", "qwen2.5-vl-7b"))
    assert "docs/models.md" in shown.err


def test_models_fit_a_terminal(st3_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from st3_cli import console

    monkeypatch.setattr(console.out, "width", 80)
    words = set(st3_("models").out.split())
    assert {"qwen2_5_omni_thinker", "mistralai/Mistral-Small-3.1-24B-Instruct-2503"} <= words


def test_evaluates_help_fits_a_screen(st3_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert st3_("evaluate", "--help").out.count("\n") <= 50
