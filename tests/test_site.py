"""The hook of the site: where links lead, what becomes a page, and what a page may not load."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="needs st3[docs]")
from mkdocs.exceptions import PluginError

import st3

HOOK = Path(__file__).parent.parent / "docs" / "publish.py"


@pytest.fixture(scope="module")
def publish() -> Any:
    spec = importlib.util.spec_from_file_location("publish", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(uri: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=uri), meta={})


@pytest.mark.parametrize(
    ("uri", "before", "after"),
    [
        ("index.md", "[a](docs/method.md#vta)", "[a](method.md#vta)"),
        ("index.md", "![a](docs/images/kept.png)", "![a](images/kept.png)"),
        ("index.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("batch.md", "[a](../README.md#commands)", "[a](index.md#commands)"),
        ("benchmarks/README.md", "[a](../profiling.md)", "[a](../profiling.md)"),
        ("api.md", "[a](../st3/engine/trim.py)", "[a](source/st3/engine/trim.py.md)"),
        ("python.md", "[a](examples/serve.py)", "[a](source/docs/examples/serve.py.md)"),
        ("batch.md", "[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        ("batch.md", "[a](#rows)", "[a](#rows)"),
        ("batch.md", "```\n[a](nowhere.md)\n```", "```\n[a](nowhere.md)\n```"),
    ],
)
def test_links_lead_to_pages(publish: Any, uri: str, before: str, after: str) -> None:
    assert publish.on_page_markdown(before, page(uri)) == after


def test_a_link_to_no_file_is_an_error(publish: Any) -> None:
    with pytest.raises(PluginError, match=r"there is no file nowhere\.md"):
        publish.on_page_markdown("[a](nowhere.md)", page("batch.md"))


def test_a_name_becomes_its_docstring(publish: Any) -> None:
    text = publish.on_page_markdown("<!-- api: st3.engine.trim.trim -->", page("api.md"))
    assert text.strip() == "::: st3.engine.trim.trim"


@pytest.mark.parametrize(
    "output",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
        '<link rel=preconnect href="//fonts.example.org">',
        '<img alt="x" src="http://example.org/badge.svg">',
        "<style>@import url(https://example.org/a.css);</style>",
    ],
)
def test_a_page_loads_nothing_from_elsewhere(publish: Any, output: str) -> None:
    with pytest.raises(PluginError, match="would load from elsewhere"):
        publish.on_post_page(output, page("index.md"))


def test_a_page_may_link(publish: Any) -> None:
    output = '<a href="https://arxiv.org/abs/2412.20105">x</a><img src="images/kept.png">'
    output += '<link rel="canonical" href="https://example.org/"><script src="a.js"></script>'
    assert publish.on_post_page(output, page("index.md")) == output


def test_every_public_name_is_in_the_reference(publish: Any) -> None:
    """Under the name by which people import it, with the docstring of what that is."""
    page = (HOOK.parent / "api.md").read_text(encoding="utf-8")
    shown = {found.rpartition(".")[2]: found for found in publish._API.findall(page)}
    for name in st3.__all__:
        assert f"`st3.{name}`" in page
        if not name.startswith("__"):
            module, _, there = shown[name].rpartition(".")
            assert getattr(importlib.import_module(module), there) is getattr(st3, name)
