"""What decides the results of a run: it lies beside them, and what differs is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from st3.batch.sources import Source


def settings_of(
    source: Source, model: str, method: dict[str, Any], max_new_tokens: int, **more: Any
) -> dict[str, Any]:
    """All that decides the results: what may not change while a file is gone on with.

    How fast they come does not: batches, workers, processes, devices and engines may be others.
    """
    return {
        "rows": len(source.rows), "asked": source.fingerprints, "model": model, "method": method,
        "max_new_tokens": max_new_tokens, **more,
    }  # fmt: skip


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between settings, a few words each: `method tau: there 64, here 9`.

    What is asked is known by fingerprints alone, so those say `other prompts`; of other methods
    the names, and of the same one the parameters that differ.
    """
    found: list[str] = []
    for key in {**before, **now}:
        there, here = before.get(key), now.get(key)
        if there == here:
            continue
        if key == "asked" and isinstance(here, dict):
            known = there if isinstance(there, dict) else {}
            if before.get("rows") == now.get("rows"):  # else all of them are others, of course
                found += [f"other {what}" for what in here if known.get(what) != here[what]]
        elif isinstance(there, dict) and isinstance(here, dict):
            one, other = there.get("name"), here.get("name")
            if one != other:
                found.append(f"{key}: there {_word(one)}, here {_word(other)}")
            else:
                found += [f"{key} {line}" for line in differences(there, here)]
        else:
            found.append(f"{key}: there {_word(there)}, here {_word(here)}")
    return found


def _word(value: Any) -> str:
    return "none" if value is None else str(value)
