"""The paper's two tables, and figures that others have published; standard library only.

A figure beside ours has one purpose: a wrong prompt or a wrong picture path moves the score of
`none` by many points, and is seen at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A data set of the paper, as a task of lmms-eval.

    Attributes:
        task: lmms-eval's name of it. `title`: the paper's.
        metric: the one that the paper reports.
        documents: about how many (from memory), for estimates alone.
        unit: times the metric is the score as papers print it.
        java: whether scoring runs a program in Java, the tokenizer of caption metrics.
        login: whether the task asks for a Hub login.
    """

    task: str
    title: str
    metric: str
    documents: int
    unit: float = 100.0
    java: bool = False
    login: bool = False


BENCHMARKS = {
    each.task: each
    for each in (
        Benchmark("scienceqa_img", "ScienceQA-Img", "exact_match", 2_017, login=True),
        Benchmark("mmmu_val", "MMMU (val)", "mmmu_acc", 900),
        # `mmbench_en_dev` asks a paid model where an answer does not parse; this one does not.
        Benchmark(
            "mmbench_en_dev_static", "MMBench (en, dev)", "gpt_eval_score", 4_330, 1.0, login=True
        ),
        Benchmark("coco2017_cap_val", "COCO2017 (val)", "coco_CIDEr", 5_000, java=True, login=True),
        Benchmark("flickr30k_test", "Flickr30k", "flickr_CIDEr", 31_783, java=True, login=True),
        Benchmark("nocaps_val", "NoCaps (val)", "nocaps_CIDEr", 4_500, java=True, login=True),
    )
}
TABLES = {1: tuple(BENCHMARKS)[:3], 2: tuple(BENCHMARKS)[3:]}
"""Number of a table in the ST3 paper -> tasks."""


@dataclass(frozen=True)
class Published:
    """A score in percent, and where it stands."""

    score: float
    source: str


_LLAVA = "LLaVA-1.5 (Liu et al., arXiv 2310.03744)"
_FIGURES = {
    ("llava-1.5-7b", "scienceqa_img"): Published(66.8, _LLAVA),
    ("llava-1.5-7b", "mmbench_en_dev_static"): Published(64.3, _LLAVA),
    ("llava-1.5-13b", "scienceqa_img"): Published(71.6, _LLAVA),
    ("llava-1.5-13b", "mmbench_en_dev_static"): Published(67.7, _LLAVA),
}
_SHORT = {"7b": "llava-1.5-7b", "13b": "llava-1.5-13b"}


def published(model: str, task: str) -> Published | None:
    """What was published of an untrimmed model on a task; None if we know of nothing.

    Args:
        model: as on the command line: a short name, a Hub id with or without a revision, a folder.
    """
    name = model.partition("@")[0].rstrip("/").rpartition("/")[2].removesuffix("-hf")
    return _FIGURES.get((_SHORT.get(name, name), task))
