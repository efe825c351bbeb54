"""Methods from outside the package: the guide's, files that are wrong, and other packages'."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import greedy, prompts, tiny_llava

import st3
from st3.methods import make_method, own, parse_methods
from st3.methods.own import offered, split_spec

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "adding-a-method.md"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The guide's file, as it stands there."""
    text = GUIDE.read_text(encoding="utf-8")
    (code, *_) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "anew.py"
    path.write_text(code, encoding="utf-8")
    return path


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installed packages with entry points: one good, one broken, one with a name of st3's."""
    folder = tmp_path / "site"
    info = folder / "others-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: others\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[st3.methods]\nhalf = good_method:Half\nlame = bad_method:Lame\nst3 = good_method:Half\n"
        "thing = good_method:dataclass\n",
        encoding="utf-8",
    )
    (folder / "good_method.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from st3.methods.peers import FastV\n"
        "@dataclass(frozen=True)\nclass Half(FastV):\n"
        "    '''Half of FastV.'''\n    name: ClassVar[str] = 'half'\n",
        encoding="utf-8",
    )
    (folder / "bad_method.py").write_text("import not_there_at_all\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    offered.cache_clear()
    yield folder
    offered.cache_clear()
    for name in ("good_method", "bad_method"):
        sys.modules.pop(name, None)


def test_the_guide_is_short_and_makes_uniform_anew(mine: Path) -> None:
    assert len(mine.read_text(encoding="utf-8").splitlines()) <= 40
    model, inputs = tiny_llava(), prompts("ttItttt", "tItIttttt")
    kept, said = [], []
    kind = own.find_own(f"{mine}:Anew")
    assert kind is not None
    for method, more in (
        ("uniform", {}), (f"{mine}:Anew", {}), (kind, {}), (make_method(kind, stride=2), None),
    ):  # fmt: skip
        given = {} if more is None else {"stride": 2}
        with st3.trim(model, method, **given) as session:
            said.append(greedy(model, inputs, 5).sequences.tolist())
        kept.append([[session.kept(n, row, t) for n in range(1, 11)] for row in (0, 1)
                     for t in (0, 4)])  # fmt: skip
    assert kept[0] == kept[1] == kept[2] == kept[3]
    assert said[0] == said[1] == said[2] == said[3]


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("fastv:k=2,r=50%", ("fastv", "k=2,r=50%")),
        ("./a.py:Mine:keep=1", ("./a.py:Mine", "keep=1")),
        ("./a.py:Mine,keep=1", ("./a.py:Mine", "keep=1")),
        ("./a.py:keep=1", ("./a.py", "keep=1")),
        ("a.py:Mine:fast,k=2", ("a.py:Mine", "fast,k=2")),
        (r"C:\methods\a.py:Mine", (r"C:\methods\a.py:Mine", "")),
        ("pvtp:scorer=./a.py:Mine", ("pvtp", "scorer=./a.py:Mine")),
        ("./a.py:Mine:scorer=b.py:X", ("./a.py:Mine", "scorer=b.py:X")),
        ("a.pyx:Mine", ("a.pyx", "Mine")),
    ],
)
def test_specs(spec: str, want: tuple[str, str]) -> None:
    assert split_spec(spec) == want


def test_in_a_list_and_by_the_file_alone(mine: Path) -> None:
    found = parse_methods(f"none,{mine}:tau=9,stride=2,{mine}:Anew,tau=5")
    assert [getattr(x, "tau", None) for x in found.values()] == [None, 9, 5]
    assert {x.name for x in found.values()} == {"none", "anew"}


def test_a_choice_before_the_decoder_is_an_order_for_others(tmp_path: Path) -> None:
    """Named as one of st3's scorers is, which it is not."""
    path = tmp_path / "loud.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from st3.methods.greedy import ranked\n"
        "from st3.methods.selecting import Chosen, Selecting\n"
        "@dataclass(frozen=True)\nclass Loud(Selecting):\n    '''Loud.'''\n"
        "    name: ClassVar[str] = 'uniform'\n"
        "    needs: ClassVar[tuple[str, ...]] = ('features',)\n"
        "    def choose(self, view):\n"
        "        loud = view.features.float().norm(dim=-1)\n"
        "        return Chosen(ranked(loud, view.valid, view.most))\n",
        encoding="utf-8",
    )
    model, inputs = tiny_llava(), prompts("ttItttt")
    features = model.model.get_image_features(
        pixel_values=inputs["pixel_values"], return_dict=True
    ).pooler_output[0]
    best = features.norm(dim=-1).argsort(descending=True).tolist()
    with st3.trim(model, f"{path}:Loud", keep=5) as session:
        greedy(model, inputs, 2)
        assert session.kept(1) == sorted(best[:5])
    with st3.trim(model, f"fastv:k=1,r=75%,scorer={path}:Loud") as session:
        greedy(model, inputs, 2)
        assert session.kept(2) == sorted(best[:16])
    assert "origin" in make_method(f"pvtp:scorer={path}").settings(10)


def test_what_is_in_the_file_is_a_setting(mine: Path) -> None:
    before = make_method(f"{mine}:Anew")
    assert "origin" not in make_method("st3").settings(10)
    first = before.settings(10)["origin"]
    assert first["class"] == "anew.py:Anew"
    assert make_method(f"{mine}").settings(10)["origin"] == first
    assert make_method(f"{mine}") == before  # one class, however often it is named
    mine.write_text(mine.read_text(encoding="utf-8") + "\nMORE = 1\n", encoding="utf-8")
    assert make_method(f"{mine}:Anew").settings(10)["origin"]["sha256"] != first["sha256"]


def test_other_processes_find_the_file(mine: Path) -> None:
    method = make_method(f"{mine}:Anew", tau=7)
    assert pickle.loads(pickle.dumps(method)) == copy.deepcopy(method) == method
    code = (
        "import pickle, sys; method = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "assert method.tau == 7 and method.name == 'anew'; print(method.ranks_by())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(method).hex()],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert "ByMethod(method=Anew(" in done.stdout


WRONG = {
    "import not_there_at_all\nclass Mine: pass": r"does not import: ModuleNotFoundError: No module "
    r"named 'not_there_at_all' \(line 1\)",
    "class Mine(:": "does not import: SyntaxError",
    "raise SystemExit(3)": "does not import: SystemExit: 3",
    "Mine = 3": "Mine in .*mine.py is no method: derive a class",
    "class Mine: pass": "Mine in .*mine.py is no method: derive a class",
    "class Other: pass": "has no class 'Mine'; and no method either",
    "from st3.methods import Method\nclass Mine(Method): pass": r"it lacks schedule\(\)",
    "from st3.methods import ST3\nclass Mine(ST3):\n    k: int = 2": r"lacks @dataclass",
    "from st3.methods import PVTP\nclass Yours(PVTP): pass": "no class 'Mine'; its methods: Yours",
}


@pytest.mark.parametrize("text", WRONG)
def test_files_that_are_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=WRONG[text]) as caught:
        make_method(f"{path}:Mine")
    assert "\n" not in str(caught.value)
    if "does not import" in str(caught.value):
        left = [x for n, x in sys.modules.items() if n.startswith("st3_method_")]
        assert str(path) not in [getattr(module, "__file__", None) for module in left]


def test_a_command_says_it_in_a_line(tmp_path: Path, mine: Path, st3_: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import not_there_at_all\n", encoding="utf-8")
    for spec, said in (
        (f"{path}:Mine", "does not import: ModuleNotFoundError"),
        (f"{tmp_path}/none.py:Mine", "cannot read the method's file"),
        (f"{mine}:Anew:k=2", "has no parameter 'k'; it has: scorer, kv_cache_dtype, prune_ratio"),
    ):
        result = st3_("run", "--method", spec)
        assert (result.code, result.out) == (2, "")
        (line,) = result.err.strip().splitlines()
        assert said in line


def test_the_commands_know_it(mine: Path, st3_: Any) -> None:
    found = json.loads(st3_("methods", f"{mine}:Anew", "--json").out)
    assert found["name"] == f"{mine}:Anew"
    assert found["parameters"]["stride"] is None
    asked = json.loads(
        st3_("run", "--method", f"{mine}:Anew:tau=5", "--max-new-tokens", 3, "--json").out
    )
    assert asked["method"] == "anew"
    assert asked["settings"]["origin"]["class"] == "anew.py:Anew"
    same = json.loads(st3_("run", "--method", "uniform:tau=5", "--max-new-tokens", 3, "--json").out)
    assert asked["visual_tokens"] == same["visual_tokens"]
    assert asked["answer"] == same["answer"]


def test_packages_offer_methods(packages: Path, st3_: Any) -> None:
    assert make_method("half:k=3").schedule(8).keeps == (1.0,) * 3 + (0.5,) * 5
    assert "bad_method" not in sys.modules
    with pytest.raises(
        ValueError, match="the method 'lame' of the package others does not import: ModuleNotFound"
    ):
        make_method("lame")
    with pytest.raises(ValueError, match=r"thing .* of the package others is no method"):
        make_method("thing")
    with pytest.raises(ValueError, match=r"unknown method 'hal' \(did you mean half\?\)"):
        make_method("hal")
    assert type(make_method("st3")).__module__ == "st3.methods.st3"
    assert make_method("half").settings(8)["origin"]["class"] == "good_method.py:Half"
    result = st3_("methods", "--json")
    names = [one["name"] for one in json.loads(result.out)["methods"]]
    assert "half" in names
    assert "lame" not in names
    assert result.err.count("left out: ") == 3
    assert result.code == 0
