"""What a rank of a tensor-parallel model does in the tests; torchrun starts this file."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from conftest import greedy
from transformers import AutoModelForImageTextToText
from transformers.distributed import DistributedConfig

import st3
from st3.engine.ranks import HeadRanks
from st3.families.parts import find_parts
from st3.methods.scorers import SCORERS, LayerView, Scorer

TOKENS = 12
CUTS: dict[str, Any] = {"prune_ratio": 0.5, "stride": 1, "ratio": 0.15}


class Own(Scorer):
    """Somebody's scorer, which knows nothing of ranks."""

    def score(self, view: LayerView) -> torch.Tensor:
        """The longest keys."""
        return view.key.float().norm(dim=-1).mean(1)


def outcome(model: Any, inputs: dict[str, Any], method: str, how: dict[str, Any]) -> dict[str, Any]:
    """What a trimmed generation did, for comparison."""
    with st3.trim(model, method, **how) as session:
        said = greedy(model, inputs, TOKENS, suppress_tokens=list(range(93, 100)))
        layers, rows = range(1, session.layers + 1), range(len(inputs["input_ids"]))
        return {
            "tokens": said.sequences,
            "logits": torch.stack(said.logits, 1),
            "kept": [[session.kept(layer, row) for row in rows] for layer in layers],
            "left": [[session.kept(layer, row, TOKENS - 1) for row in rows] for layer in layers],
            "bytes": session.kv_bytes,
            "untrimmed": session.untrimmed_kv_bytes,
        }


def _rank(model: Any, inputs: dict[str, Any], cases: Any) -> dict[Any, Any]:
    """Everything that is tried with one model."""
    decoder = find_parts(model).decoder
    before = dict(vars(decoder)) | {"hooks": len(decoder._forward_pre_hooks)}
    stock = greedy(model, inputs["padded"], TOKENS)
    found: dict[Any, Any] = {
        case: outcome(model, inputs[case[0]], case[1], dict(case[2])) for case in cases
    }
    found["heads"] = decoder.layers[0].self_attn.k_proj.weight.to_local().shape[0]
    own = HeadRanks.__call__
    HeadRanks.__call__ = lambda self, values, how: values  # type: ignore[method-assign]
    try:
        found["alone"] = outcome(model, inputs["padded"], "pvtp", CUTS)
    finally:
        HeadRanks.__call__ = own  # type: ignore[method-assign]
    SCORERS["own"] = Own()
    try:
        with st3.trim(model, "st3", scorer="own"):
            found["refused"] = ""
    except ValueError as error:
        found["refused"] = str(error)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        how = CUTS | {"tau": 9, "compile": "inductor"}
        found["compiled"] = outcome(model, inputs["one"], "st3", how)
    found["heard"] = [str(warning.message) for warning in heard]
    after = dict(vars(decoder)) | {"hooks": len(decoder._forward_pre_hooks)}
    found["left as it was"] = before.keys() == after.keys() and before["config"] is after["config"]
    found["left as it was"] &= before["hooks"] == after["hooks"]
    again = greedy(model, inputs["padded"], TOKENS)
    found["left as it was"] &= all(map(torch.equal, stock.logits, again.logits))
    return found


def main(folder: Path) -> None:
    """Load every model that was put there as one of several ranks, and save what came of it."""
    asked = torch.load(folder / "asked.pt", weights_only=False)
    found = {}
    for name, (plan, inputs, cases) in asked.items():
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder / name, dtype="auto", distributed_config=DistributedConfig(tp_plan=plan)
        )
        found[name] = _rank(model.eval(), inputs, cases)
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
