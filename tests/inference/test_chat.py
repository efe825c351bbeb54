"""Whatever a chat template wants, the question holds one picture; where it cannot, one line."""

from __future__ import annotations

from typing import Any

import pytest

from st3.demo.packaging import CHAT_TEMPLATE, build_processor
from st3.inference.chat import in_chat_format

EACH = "{% for m in messages %}"
STRINGS = EACH + "{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}ASSISTANT:"
PARTS = (
    EACH + "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
PRINTS = EACH + "[INST] {{ m['content'] }} [/INST]{% endfor %}"
TEXT_ALONE = (
    EACH + "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (CHAT_TEMPLATE, "USER: <image>\nhow many? ASSISTANT:"),
        (STRINGS, "user: <image>\nhow many? ASSISTANT:"),
        (PARTS, "<image>how many?"),
        (PRINTS, "[INST] <image>\nhow many? [/INST]"),
        ({"default": STRINGS, "tool_use": "{{ 1 / 0 }}"}, "user: <image>\nhow many? ASSISTANT:"),
    ],
)
def test_a_template_gets_what_it_wants(template: Any, text: str) -> None:
    processor = build_processor()
    processor.chat_template = template
    assert in_chat_format(processor, "how many?") == text


def test_without_a_template_it_is_said() -> None:
    processor = build_processor()
    processor.chat_template = None
    with pytest.warns(UserWarning, match="has no chat template"):
        assert in_chat_format(processor, "how many?") == "USER: <image>\nhow many? ASSISTANT:"


def test_the_tokenizers_template_where_the_processor_has_none() -> None:
    processor = build_processor()
    processor.chat_template, processor.tokenizer.chat_template = None, STRINGS
    assert in_chat_format(processor, "how many?") == "user: <image>\nhow many? ASSISTANT:"
    processor.tokenizer.chat_template = TEXT_ALONE
    with pytest.raises(ValueError, match=r"^tokenizer_config.json makes no question"):
        in_chat_format(processor, "how many?")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEXT_ALONE, r"it has no place for it\): let it write <image> once"),
        (PARTS.replace("<image>", "<image><image>"), "it has 2 places for it"),
        ("{% for m in messages %}{{ m['role'] }", "is broken in line 1 "),
        ("\n{{ raise_exception('no pictures here') }}", "no pictures here"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[7]['content'] }}", "no element 7"),
    ],
)
def test_a_template_that_cannot_ask_is_named(template: str, message: str) -> None:
    processor = build_processor()
    processor.chat_template = template
    with pytest.raises(ValueError, match=message) as caught:
        in_chat_format(processor, "how many?")
    assert str(caught.value).startswith("chat_template.jinja ")
    assert "\n" not in str(caught.value)
