"""Methods from outside the package: a class in a user's file, or in another installed package.

`./mine.py:Mine` is a class in a file. A package offers its own under the entry point group
`st3.methods`, as `name = "its.module:Class"`. Neither is imported before somebody asks for it by
name, and what is wrong with one never touches the others. docs/adding-a-method.md writes one.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

GROUP = "st3.methods"
"""Of entry points."""
_FILE = re.compile(r"([^=]+?\.py)(?::([A-Za-z_]\w*)(?=[:,]|$))?(?:[:,](.*))?", re.DOTALL)
_PARTS = ("schedule", "ranks_by", "settings")
"""What every method has, whose base class knows this module."""
_LOADED: dict[tuple[Path, str], Any] = {}
"""Path and hash of what is in it -> the module: a file is one, however often it is named."""


def split_spec(spec: str) -> tuple[str, str]:
    """A method's name, and its parameters as they were written.

    `fastv:k=2` is named `fastv`, and `./mine.py:Mine:k=2` is `./mine.py:Mine`.
    """
    found = _FILE.fullmatch(spec.strip())
    if found is None:
        name, _, rest = spec.strip().partition(":")
        return name, rest
    file, kind, rest = found.groups()
    return file if kind is None else f"{file}:{kind}", rest or ""


def find_own(name: str) -> type[Any] | None:
    """The method of this name in a file or in another package, None where there is no such name.

    Raises:
        ValueError: a file, or a package, that does not import or has no such method.
    """
    found = _FILE.fullmatch(name)
    if found is not None and not found[3]:
        return _in_file(Path(found[1]), found[2])
    return _of_package(offered()[name]) if name in offered() else None


@cache
def offered() -> dict[str, EntryPoint]:
    """Name -> what other packages offer under it, sorted; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def origin(method: Any) -> dict[str, str]:
    """Where a method from outside comes from: its class, and a hash of the file; else nothing.

    What is in the file decides results as any parameter does.
    """
    kind = method if isinstance(method, type) else type(method)
    if kind.__module__.startswith(__name__.rpartition(".")[0] + "."):
        return {}
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None:  # typed at a prompt
        return {"class": kind.__qualname__}
    digest = getattr(sys.modules[kind.__module__], "__st3_sha256__", None)
    if digest is None:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return {"class": f"{Path(file).name}:{kind.__qualname__}", "sha256": digest}


def revive(file: str, name: str, state: dict[str, Any]) -> Any:
    """An instance of a class in a file, in another process; see `Method.__reduce__`."""
    kind = _in_file(Path(file), name)
    made = object.__new__(kind)
    made.__dict__.update(state)
    return made


def _in_file(path: Path, name: str | None) -> type[Any]:
    module = _module(path)
    here = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    methods = [k for k, x in here.items() if _is_method(x) and not inspect.isabstract(x)]
    if name is None:
        if len(methods) != 1:
            many = f"{len(methods)} methods: name one, as in {path}:{methods[0]}" if methods else (
                "no method: derive a class from st3.methods.Method"
            )  # fmt: skip
            raise ValueError(f"{path} has {many}")
        name = methods[0]
    if name not in vars(module):
        known = f"its methods: {', '.join(methods)}" if methods else "and no method either"
        raise ValueError(f"{path} has no class {name!r}; {known}")
    return _checked(vars(module)[name], f"{name} in {path}")


def _module(path: Path) -> Any:
    """The module in a file, by what is in it now.

    Raises:
        ValueError: there is no such file, or it does not import.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ValueError(f"cannot read the method's file {path}: {why}") from None
    digest = hashlib.sha256(source).hexdigest()
    key = path.resolve(), digest
    if key not in _LOADED:
        of_path = hashlib.sha256(str(key[0]).encode()).hexdigest()[:8]
        name = f"st3_method_{of_path}_{digest[:16]}"
        spec = spec_from_loader(name, None, origin=str(key[0]))
        assert spec is not None
        module = module_from_spec(spec)
        module.__file__ = str(key[0])
        module.__dict__["__st3_sha256__"] = digest
        sys.modules[name] = module  # dataclasses look their module up
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise ValueError(f"{path} does not import: {_line(error, str(path))}") from error
        _LOADED[key] = module
    return _LOADED[key]


def _of_package(point: EntryPoint) -> type[Any]:
    package = "another package" if point.dist is None else f"the package {point.dist.name}"
    try:
        kind = point.load()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the method {point.name!r} of {package} does not import: {_line(error)}"
        ) from error
    return _checked(kind, f"{point.name} ({point.value}) of {package}")


def _is_method(kind: Any) -> bool:
    return isinstance(kind, type) and all(hasattr(kind, part) for part in _PARTS)


def _checked(kind: Any, what: str) -> type[Any]:
    """`kind`, if it is a method.

    Raises:
        ValueError: it is none; says what it lacks.
    """
    if not _is_method(kind):
        raise ValueError(f"{what} is no method: derive a class from st3.methods.Method")
    lacks = sorted(getattr(kind, "__abstractmethods__", ()))
    if lacks:
        raise ValueError(f"{what} is no method yet: it lacks {' and '.join(lacks)}()")
    if not getattr(kind, "name", ""):
        raise ValueError(f'{what} has no name: give it name: ClassVar[str] = "..."')
    if inspect.get_annotations(kind) and "__dataclass_fields__" not in vars(kind):
        raise ValueError(f"{what} lacks @dataclass(frozen=True): its parameters would be none")
    found: type[Any] = kind
    return found


def _line(error: BaseException, file: str | None = None) -> str:
    """An error of somebody else's code in a line, with the line of its file."""
    said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": ")
    trace, number = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            number = trace.tb_lineno
        trace = trace.tb_next
    return said if number is None else f"{said} (line {number})"
