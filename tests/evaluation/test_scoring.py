"""Scores from what lmms-eval hands on, in the shapes that its tasks have."""

from __future__ import annotations

from typing import Any

import pytest

from st3.evaluation.scoring import Seen, score_of


class Mme:
    """Two kinds of questions, each with a metric of its own; a sum over categories."""

    def aggregation(self) -> dict[str, Any]:
        return dict.fromkeys(("perception", "cognition"), lambda items: sum(items) / 2)


def test_a_metric_of_one_kind_of_documents() -> None:
    samples = [
        {"doc_id": 0, "perception": {"score": 1.0}}, {"doc_id": 1, "cognition": {"score": 0.0}},
        {"doc_id": 2, "perception": {"score": 0.0}},
    ]  # fmt: skip
    results = {"alias": "mme", "perception,none": 833.0, "cognition,none": 12.0}
    found = score_of("mme", Mme(), results, samples, Seen())
    assert (found.metric, found.score) == ("perception", 833.0)
    assert found.metrics == {"perception": 833.0, "cognition": 12.0}
    assert found.values is None


def test_figures_of_one_kind_of_documents() -> None:
    samples = [
        {"doc_id": 0, "image": 1.0}, {"doc_id": 1, "video": 0.0}, {"doc_id": 2, "image": 0.0}
    ]  # fmt: skip
    found = score_of("seed", Mme(), {"image,none": 0.5, "video,none": 0.0}, samples, Seen())
    assert (found.values, found.score) == ((1.0, 0.0), 0.5)


def test_a_paper_s_benchmark_scores_every_document() -> None:
    samples = [{"doc_id": 0, "exact_match": 1.0}, {"doc_id": 1}]
    with pytest.raises(ValueError, match="document 1 was not scored"):
        score_of("scienceqa_img", Mme(), {"exact_match,none": 1.0}, samples, Seen())
