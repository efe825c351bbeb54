"""`st3 verify` as a user meets it: green on ten families, red where the engine is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import edit, slow, tiny_checkpoint
from families.checkpoints import save_checkpoint
from families.zoo import ZOO

from st3.engine import moved
from st3.engine.alive import Alive
from st3.engine.hooks import Hooks
from st3.engine.prefill import Prefill
from st3.engine.record import Record
from st3.engine.scoring import Scoring
from st3.methods import METHODS
from st3.methods.scorers import SCORERS
from st3.verification import choice, subject, verify

FAMILIES = [
    "llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl, qwen3", "mistral3", "glm4v",
    "gemma3", "llama4", "gemma4, shared keys", "lfm2_vl", "qwen3_5", "granite_docling",
]  # fmt: skip
FEW = ("--methods", "none,st3,fastv:k=1")
ROWS = {
    "method", "verdict", "why", "reference", "prefill_difference", "step_difference",
    "allowed_difference", "same_tokens", "kept_per_layer", "kept_last_step", "ties", "kv_bytes",
    "kv_counted_bytes", "as_it_was",
}  # fmt: skip
KEYS = {
    "verdict", "model", "family", "text_model", "weights", "dtype", "device", "layers", "prompt",
    "prompt_tokens", "visual_tokens", "new_tokens", "bound", "tie_tolerance", "rows", "notes",
    "machine",
}  # fmt: skip


def saved(name: str, folder: Path) -> Path:
    if not ZOO[name].known:
        pytest.skip(f"this transformers has no {ZOO[name].config}")
    ZOO[name].build().float().save_pretrained(folder)
    return folder


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A checkpoint without a processor."""
    return saved("llava", tmp_path / "llava")


def found(result: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document, and its rows by the name of their method."""
    document = json.loads(result.out)
    return document, {row["method"].partition(":")[0]: row for row in document["rows"]}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_is_green(st3_: Any, tmp_path: Path, name: str) -> None:
    result = st3_("verify", saved(name, tmp_path / "model"), *FEW, "--json")
    document, rows = found(result)
    assert [row["verdict"] for row in rows.values()] == ["green"] * 3, document["rows"]
    assert result.code == 0
    assert document["weights"] == "checkpoint"
    recurrent = name in ("lfm2_vl", "qwen3_5")
    oracle = "compaction oracle" if recurrent else "masked oracle"
    assert [row["reference"] for row in rows.values()] == ["stock", oracle, oracle]
    assert rows["none"]["same_tokens"]
    assert rows["st3"]["kept_per_layer"][-1] < document["visual_tokens"]


@pytest.mark.parametrize("name", ["llava", "lfm2_vl"])
def test_positions_without_gaps_have_their_oracle(
    st3_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Both oracles count anew what entered; and an engine that keeps the gaps is red."""
    folder = saved(name, tmp_path / "model")
    specs = "divprune:keep=5,positions=compact,tau=6,dpp:keep=30%,positions=compact"
    document, _ = found(st3_("verify", folder, "--methods", specs, "--json"))
    assert [row["verdict"] for row in document["rows"]] == ["green"] * 2, document["rows"]
    monkeypatch.setattr(moved, "compacts", lambda plan: False)
    document, _ = found(st3_("verify", folder, "--methods", specs, "--json"))
    assert [row["verdict"] for row in document["rows"]] == ["red"] * 2


def test_every_method_of_the_registry(st3_: Any, tmp_path: Path) -> None:
    """With a processor of its own; a tau that twelve tokens reach; figures that agree."""
    result = st3_("verify", tiny_checkpoint(tmp_path / "model"), "--json")
    document, rows = found(result)
    assert result.code == 0
    assert list(rows) == list(METHODS)
    assert document.keys() == KEYS
    for name, row in rows.items():
        assert row.keys() == ROWS
        if name == "evs":
            assert row["verdict"] == "not measured"
            assert "still" in row["why"]
            continue
        assert row["verdict"] == "green"
        assert row["as_it_was"]
        assert row["kv_bytes"] == row["kv_counted_bytes"]
        assert row["prefill_difference"] < row["allowed_difference"]
        assert row["step_difference"] < row["allowed_difference"]
        anneals = name in ("vta", "st3", "random", "uniform")
        assert ("tau=9" in row["method"]) == anneals
        assert (row["kept_last_step"][-1] == 0) == (anneals or name == "vtw")
    assert "its own processor" in document["prompt"]
    assert rows["none"]["kept_per_layer"] == [64] * 6


def test_every_scorer(st3_: Any, llava: Path) -> None:
    assert {*choice.SCORERS} == {*SCORERS}
    specs = ",".join(f"pvtp:scorer={name}" for name in SCORERS)
    document, _ = found(st3_("verify", llava, "--methods", specs, "--json"))
    assert {row["verdict"] for row in document["rows"]} == {"green"}
    kept = [row["kept_per_layer"] for row in document["rows"]]
    assert kept == kept[:1] * len(SCORERS)


def _reversed(self: Scoring, now: Alive) -> torch.Tensor:
    """The most important visual tokens go."""
    order = torch.stack(list(self._recent.values())).sum(0).masked_fill(~now.visual, float("inf"))
    return order.argsort(dim=1, stable=True)


def _late(self: Record, tokens: int) -> None:
    """Annealing a step late."""
    self.generated += tokens == 1
    assert self.cache is not None
    schedule = self.plan.schedule
    for group in self.plan.groups if schedule.anneals else ():
        left = [schedule.count(group.first, n, self.generated - 1) for n in self.prompt.visual]
        for layer in self.cache.trimmed(group.first, group.last):
            layer.evict(left)
    self.record_bytes(new=tokens)


def _generous(self: Record, new: int = 0, honest: Any = Record.record_bytes) -> None:
    """A byte too much is reported."""
    honest(self, new)
    self.kv_bytes[-1] += 1


def _careless(self: Hooks, tidy: Any = Hooks.remove) -> None:
    """A hook stays on the last layer."""
    self._handles.pop()
    tidy(self)


def _heavy(self: Hooks, tidy: Any = Hooks.remove) -> None:
    """A weight is another in the end."""
    tidy(self)
    with torch.no_grad():
        self.decoder.norm.weight.mul_(1 + 1e-6)


@pytest.mark.parametrize(
    ("place", "rule", "broken", "red", "words"),
    [
        (Scoring, "ranking", _reversed, {"vta", "st3", "fastv"}, "keeps other visual tokens"),
        (Record, "step", _late, {"st3", "vta"}, "in decode, first in step"),
        (Record, "record_bytes", _generous, {"none", "vta", "st3", "fastv"}, "KV bytes"),
        (Hooks, "remove", _careless, {"none", "vta", "st3", "fastv"}, "not as it was: the hooks"),
        (Hooks, "remove", _heavy, {"none", "vta", "st3", "fastv"}, "not as it was: the parameter"),
    ],
)
def test_a_broken_rule_is_red(
    st3_: Any,
    monkeypatch: pytest.MonkeyPatch,
    llava: Path,
    place: Any,
    rule: str,
    broken: Any,
    red: set[str],
    words: str,
) -> None:
    monkeypatch.setattr(place, rule, broken)
    result = st3_("verify", llava, "--methods", "none,vta,st3,fastv:k=1", "--json")
    _, rows = found(result)
    assert result.code == 1
    assert {name for name, row in rows.items() if row["verdict"] == "red"} == red
    assert all(words in rows[name]["why"] for name in red), [row["why"] for row in rows.values()]
    last = result.err.splitlines()[-1]
    assert f"red in {len(red)} of 4" in last
    assert all(name in last for name in red)


def test_a_rule_of_states_is_red(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The compaction oracle sees it, too."""
    monkeypatch.setattr(Scoring, "ranking", _reversed)
    result = st3_("verify", saved("qwen3_5", tmp_path / "model"), *FEW, "--json")
    assert result.code == 1
    _, rows = found(result)
    assert [row["verdict"] for row in rows.values()] == ["green", "red", "red"]


def test_what_an_engine_raises_is_red(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, llava: Path
) -> None:
    monkeypatch.setattr(Prefill, "_thin", lambda self, hidden: hidden[:, :7])
    result = st3_("verify", llava, *FEW)
    assert result.code == 1
    assert "it failed: " in " ".join(result.out.split())


def test_what_trims_nothing_is_not_measured(st3_: Any, llava: Path) -> None:
    result = st3_("verify", llava, "--methods", "none,vta:tau=5000", "--json")
    _, rows = found(result)
    assert result.code == 0
    assert rows["vta"]["verdict"] == "not measured"
    assert "it trims none of 16 visual tokens in 6 layers and 12 new tokens" in rows["vta"]["why"]
    alone = st3_("verify", llava, "--methods", "vta:tau=5000")
    assert alone.code == 1
    assert "nothing could be measured" in alone.err


def test_a_shape_without_weights(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from st3_cli import console

    monkeypatch.setattr(console.out, "width", 80)
    page = tmp_path / "report.md"
    result = st3_("verify", "qwen3-vl-8b", *FEW, "--output", page)
    assert result.code == 0
    assert "random weights, float32 on cpu" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "tiny random model" in result.err
    assert "| st3:tau=9 | green |" in page.read_text(encoding="utf-8")


def test_the_hub_id_of_a_shape_needs_no_hub(st3_: Any) -> None:
    result = st3_("verify", "Qwen/Qwen3-VL-8B-Instruct", "--random", "--methods", "none")
    assert result.code == 0
    assert "random weights" in result.out


def test_what_does_not_fit_becomes_random(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, llava: Path
) -> None:
    monkeypatch.setattr(verify, "free_memory", lambda device: 1000)
    document, _ = found(st3_("verify", llava, *FEW, "--json"))
    assert document["verdict"] == "green"
    assert document["weights"] == "random"
    assert "does not fit (it needs about " in document["notes"][0]
    assert "1 kB are free" in document["notes"][0]
    forced, _ = found(st3_("verify", llava, *FEW, "--random", "--json"))
    assert forced["weights"] == "random"


@pytest.mark.parametrize("dtype", ["bfloat16", *slow("float16")])
def test_half_precision(st3_: Any, llava: Path, dtype: str) -> None:
    result = st3_("verify", llava, "--dtype", dtype, "--json")
    document, _ = found(result)
    assert document["dtype"] == dtype
    assert result.code == 0, document["rows"]


def test_one_line_says_what_is_wrong(st3_: Any, tmp_path: Path, llava: Path) -> None:
    refused = tmp_path / "mllama"
    refused.mkdir()
    from transformers import MllamaConfig

    MllamaConfig().save_pretrained(refused)
    without = tmp_path / "without"
    without.mkdir()
    edit(without, "config.json", **json.loads((llava / "config.json").read_text(encoding="utf-8")))
    for name, code, words in (
        (refused, 1, "st3 cannot trim a model of the family 'mllama'"),
        (tmp_path / "nowhere", 1, "there is no folder"),
        (without, 1, "has no weights"),
        ("hello", 1, "unknown model 'hello'"),
    ):
        result = st3_("verify", name, *FEW)
        assert result.code == code
        assert words in result.err
        assert len(result.err.splitlines()) == 1
        assert result.out == ""
    assert st3_("verify", llava, "--methods", "").code == 1
    wrong = st3_("verify", llava, "--methods", "st4")
    assert wrong.code == 1
    assert "did you mean st3" in wrong.err
    deep = st3_("verify", llava, "--methods", "fastv:k=16")
    assert deep.code == 2
    assert "K must lie in 1..5 for 6 layers" in deep.err


def test_without_a_prompt_there_is_nothing_to_verify(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, llava: Path
) -> None:
    from st3.verification import prompts

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("no pictures today")

    monkeypatch.setattr(prompts, "_processed", fail)
    monkeypatch.setattr(prompts, "_encoded", fail)
    result = st3_("verify", llava, *FEW)
    assert result.code == 1
    assert "no prompt with a picture could be made for this model" in result.err
    assert "no pictures today" in result.err


def test_a_prompt_without_a_picture_measures_no_look_at_the_tower(
    st3_: Any, monkeypatch: pytest.MonkeyPatch, llava: Path
) -> None:
    """Where noise takes the place of the encoded picture, the engine is not to blame."""
    from st3.verification import prompts

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("no pictures today")

    monkeypatch.setattr(prompts, "_processed", fail)
    result = st3_("verify", llava, "--methods", "divprune,fastervlm,pvtp:scorer=scope", "--json")
    document, rows = found(result)
    assert document["prompt"].startswith("noise in place of the encoded picture")
    assert result.code == 0
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "divprune": "green", "fastervlm": "not measured", "pvtp": "not measured",
    }  # fmt: skip
    assert rows["fastervlm"]["why"] == "it looks at the tower, and no picture was taken"


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "smolvlm"])
def test_its_own_processor_comes_first(st3_: Any, tmp_path: Path, name: str) -> None:
    """However many visual tokens the smallest picture makes."""
    place = save_checkpoint(name, tmp_path / "model")
    document, rows = found(st3_("verify", place, *FEW, "--json"))
    assert document["verdict"] == "green"
    assert document["prompt"].startswith("its own processor, a picture of noise")
    assert document["visual_tokens"] > 640
    assert document["notes"] == []
    assert rows["st3"]["kept_per_layer"][-1] < document["visual_tokens"]


def test_a_processor_that_makes_no_prompt_is_told(st3_: Any, tmp_path: Path) -> None:
    place = save_checkpoint("qwen2_5_vl", tmp_path / "model")
    (place / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    result = st3_("verify", place, "--methods", "none", "--json")
    document, _ = found(result)
    assert document["prompt"].startswith("the family's image processor, a picture of noise")
    (note,) = document["notes"]
    assert note.startswith("Its own processor makes no prompt that this model takes:")
    assert "chat_template.jinja is broken in line 1" in note


def test_random_models_attend_unevenly() -> None:
    """Else every oracle would be right whatever is dropped."""
    from st3.inference.presets import known_config

    model, question, _ = subject.tiny_model(
        known_config("qwen2.5-vl-7b"), device="cpu", dtype=torch.float32, seed=0
    )
    model.set_attn_implementation("eager")
    with torch.no_grad():
        rows = model(**question.inputs, output_attentions=True).attentions
    visual = question.visual[0]
    for layer in rows[:4]:
        scores = layer[0, :, -1].mean(0)[visual]
        assert float(scores.std() / scores.mean()) > 0.1
