"""What only a GPU can show of batches: pinned copies, measured memory, memory that does run out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_checkpoint

import st3
from st3 import demo
from st3.batch.asking import Course
from st3.batch.memory import Sizes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return st3.load(str(folder), device="cuda", dtype="float32")


def rows(count: int) -> list[dict[str, Any]]:
    words = ("how many?", "is there a red square?", "describe this picture")
    return [{"image": str(demo.PICTURE), "prompt": words[n % 3]} for n in range(count)]


@pytest.mark.parametrize(("method", "graphs"), [(None, False), ("st3", False), ("st3", True)])
def test_a_batch_gives_what_each_gets_alone(
    tiny: Any, method: str | None, graphs: bool
) -> None:  # fmt: skip
    course = Course()
    together = list(
        st3.answer_all(*tiny, rows(12), method, max_new_tokens=6, cuda_graphs=graphs, course=course)
    )
    alone = list(st3.answer_all(*tiny, rows(3), method, max_new_tokens=6, batch_size=1))
    for number, result in enumerate(together):
        assert result.error is None
        assert result.new_tokens == alone[number % 3].new_tokens
        assert result.kept_visual_tokens == alone[number % 3].kept_visual_tokens
    assert course.answered == 12
    assert min(course.prefill, course.decode) > 0


def test_memory_that_runs_out_halves_batches(tiny: Any, tmp_path: Path) -> None:
    """The allocator is allowed less than a large batch takes."""
    model, processor = tiny
    course = Course()
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + 40_000_000
    torch.cuda.set_per_process_memory_fraction(allowed / whole)
    try:
        found = list(
            st3.answer_all(
                model, processor, rows(400), max_new_tokens=4, batch_size=400, course=course
            )
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(result.error is None for result in found)
    assert course.answered == 400
    assert course.batches > 2


def test_memory_is_measured(tiny: Any) -> None:
    sizes = Sizes(tiny[0], None)
    assert sizes.most == 256
    sizes.begin()
    taken = torch.empty(4_000_000, dtype=torch.uint8, device="cuda")
    sizes.learn(4, 100, None, 90)
    del taken
    free = torch.cuda.mem_get_info()[0]
    assert sizes.budget is not None
    assert 0.5 < sizes.budget / (free / 1_000_000 * 100) < 1.1
