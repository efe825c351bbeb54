"""What a visitor looks at, as one thing: a picture, a question, a method, a place in the answer.

It is written as a link that shows the same and as the `st3 run` that computes the same. The method
is its spec, one word: sliders rewrite that word, so that nothing is there to contradict them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlencode

from st3 import demo
from st3.methods import METHODS, Method, make_method, split_spec
from st3.methods.composed import split
from st3.methods.scorers import SCORERS

OWN = "yours"
"""In place of a bundled picture's name, the one that a visitor brought: no link can carry it."""
KNOBS = ("prune_ratio", "stride", "ratio", "final_keep", "tau", "scorer")
SHARES = ("prune_ratio", "ratio", "final_keep")
"""Of the knobs, those that stand in percent on the page and in a spec that it writes."""
TOKENS = 128
_EITHER = {"ratio": "final_keep", "final_keep": "ratio"}  # each follows from the other
_WORD = re.compile(r"[\w.%+-]+")
_FILE = re.compile(r"\.[A-Za-z]\w*$")


@dataclass(frozen=True)
class View:
    """All that a link says.

    Attributes:
        picture: a key of `st3.demo.PICTURES`, or `OWN`.
        prompt: the question.
        method: a spec.
        tokens: generated at most.
        compare: whether the untrimmed model answers as well.
        layer: whose tokens are drawn, from 1; 0 the one in the middle.
        after: generated tokens after which; -1 all of the answer.
        ask: whether to answer as soon as it is opened.
    """

    picture: str = "shapes"
    prompt: str = demo.PROMPT
    method: str = "st3"
    tokens: int = TOKENS
    compare: bool = True
    layer: int = 0
    after: int = -1
    ask: bool = False

    def query(self, start: View) -> str:
        """The link behind its question mark; what is as in `start` is left out."""
        usual = asdict(start)
        said = {key: value for key, value in asdict(self).items() if value != usual[key]}
        return urlencode({k: int(v) if isinstance(v, bool) else v for k, v in said.items()})

    @classmethod
    def of(cls, query: Mapping[str, str], start: View) -> View:
        """What a link shows; what it leaves out is as in `start`, with which the page opens.

        Raises:
            ValueError: no whole number where one belongs, or no such picture.
        """
        found = asdict(start)
        for field in fields(cls):
            text = query.get(field.name)
            if text is None:
                continue
            if field.type in ("int", "bool"):
                if not re.fullmatch(r"-?\d{1,6}", text):
                    raise ValueError(f"the link's {field.name} is no whole number: {text[:40]!r}")
                found[field.name] = bool(int(text)) if field.type == "bool" else int(text)
            else:
                found[field.name] = text
        if found["picture"] not in (*demo.PICTURES, OWN):
            known = ", ".join(demo.PICTURES)
            raise ValueError(f"no bundled picture {found['picture'][:40]!r}; there are: {known}")
        return cls(**found)

    def command(self, model: str, own: str = "", more: Sequence[str] = ()) -> str:
        """The `st3 run` for it, to paste into a shell.

        Args:
            model: as for --model.
            own: what the file of the visitor's picture is called.
            more: options of the page's own that hold for the model.
        """
        source = own if self.picture == OWN else f"demo:{self.picture}"
        parts = ["st3", "run", "demo" if source == "demo:shapes" else source, self.prompt]
        if model != "demo":
            parts += ["--model", model]
        parts += more
        if self.method != "st3":
            parts += ["--method", self.method]
        if self.tokens != TOKENS:
            parts += ["--max-new-tokens", str(self.tokens)]
        return shlex.join([*parts, *["--compare"] * self.compare, "--show-kept", "kept.png"])


def read_method(spec: str, layers: int, trusted: Collection[str] = ()) -> Method:
    """The method of a visitor's spec, for a decoder of so many layers.

    A spec may name a file, which would then be run or read: visitors name none.

    Args:
        trusted: names of methods from outside the package that whoever runs the page has asked for.

    Raises:
        ValueError: see `st3.methods.make_method`; values that do not fit; or a file.
    """
    for part in split(spec):
        name, rest = split_spec(part)
        if name not in METHODS and name not in trusted:
            if _WORD.fullmatch(name) and not _FILE.search(name):
                make_method(name)  # says what there is
            raise ValueError(f"{name[:60]!r}: on a page only methods of the package can be named")
        for pair in filter(None, map(str.strip, rest.split(","))):
            value = pair.partition("=")[2].strip()
            if value and (not _WORD.fullmatch(value) or _FILE.search(value)):
                raise ValueError(f"{pair[:60]!r}: on a page a value is a number or a word")
    method = make_method(spec)
    method.schedule(layers)
    return method


def knobs_of(method: Method, layers: int) -> dict[str, Any]:
    """The knobs that a method has, and how they stand: those of the part inside the decoder."""
    inside = getattr(method, "inside", method)
    found = inside.settings(layers)
    own = type(inside).scorer if hasattr(type(inside), "scorer") else ""
    turns = inside.name != "none" and not inside.decides and own not in ("random", "uniform")
    return {
        name: found[name]
        for name in KNOBS
        if name in found and (name != "scorer" or (turns and inside.scorer in SCORERS))
    }


def turned(spec: str, name: str, value: Any, layers: int) -> str:
    """The spec once a knob is turned; what it would be without being said is not said.

    Args:
        value: a share in percent, a number of layers or tokens (0 of tau: none), or a scorer.
    """
    *before, last = split(spec)
    method, rest = split_spec(last)
    gone = {name, _EITHER.get(name, name)}
    pairs = [
        pair
        for pair in map(str.strip, rest.split(","))
        if pair and pair.partition("=")[0].strip().replace("-", "_") not in gone
    ]

    def written(pairs: Sequence[str]) -> str:
        return "+".join((*before, f"{method}:{','.join(pairs)}" if pairs else method))

    if name in SHARES:
        text = f"{round(float(value), 3):g}%"
    elif name == "scorer":
        text = str(value)
    else:
        text = "none" if name == "tau" and not value else str(int(value))
    said, unsaid = written([*pairs, f"{name}={text}"]), written(pairs)
    try:
        if make_method(said).schedule(layers) == make_method(unsaid).schedule(layers):
            if name != "scorer":
                return unsaid
            as_ever = make_method(unsaid)
            return unsaid if as_ever.scorer == text else said
    except ValueError:
        pass  # which whoever reads the method says
    return said
