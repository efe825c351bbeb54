"""`st3 models`: the families that an oracle has proven, and the names that stand for a model."""

from __future__ import annotations

from st3_cli import options as o
from st3_cli.console import aside, print_json, print_texts


def families(json: o.JsonOption = False, debug: o.DebugOption = False) -> None:
    """List the families that are proven, an example of each, and the short names of models."""
    from st3.families.examples import EXAMPLES
    from st3.families.proven import PROVEN
    from st3.inference.checkpoints import HUB_IDS

    found = [
        {"family": family, "text_models": list(texts), "example": EXAMPLES.get(family)}
        for family, texts in PROVEN.items()
    ]
    if json:
        print_json({"families": found, "names": HUB_IDS})
        return
    title = "Families that equal stock untrimmed, and an oracle trimmed, on tiny random models"
    proven = [(family, EXAMPLES.get(family, "-")) for family in PROVEN]
    print_texts(
        (title, ("family", "for example"), proven),
        ("Short names", ("name", "model"), list(HUB_IDS.items())),
    )
    aside(
        "Other families are judged by their models: docs/models.md says which fit and which do not."
    )
