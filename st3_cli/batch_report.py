"""What `st3 batch` says in the end: how many rows, how fast, and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from st3_cli.console import aside, err, print_json

if TYPE_CHECKING:
    from st3.batch.asking import Course
    from st3.batch.run import Run


def print_report(
    run: Run, course: Course, seconds: float, output: Path, settings: dict[str, Any], json: bool
) -> None:
    """On standard error; with `json` one document on standard output, too."""
    from st3.units import count

    done_now = run.done - run.before
    rate = course.shown / seconds if course.shown else None
    if json:
        fit = course.fit
        print_json(
            {
                "output": str(output), "rows": run.rows, "done": run.done, "before": run.before,
                "errors": run.errors, "whole": run.whole, "seconds": seconds,
                "pictures_per_second": rate, "new_tokens": course.new_tokens,
                "batches": course.batches, "shares": course.shares(),
                "batch_rows": None if fit is None else fit.rows,
                "kv_bytes_per_row": None if fit is None else fit.kv_bytes,
                "untrimmed_kv_bytes_per_row": None if fit is None else fit.untrimmed_kv_bytes,
                "settings": settings,
            }
        )  # fmt: skip
    if run.interrupted:
        err.print(
            f"interrupted: {run.done} of {count(run.rows, 'row')} done; the same command goes on "
            f"in {output}",
            soft_wrap=True,
        )
        return
    shares = ", ".join(f"{name} {share:.0%}" for name, share in course.shares().items())
    speed = "" if rate is None else f", {rate:.3g} pictures/s ({shares})"
    aside(f"{count(done_now, 'row')} in {seconds:.1f} s{speed}; wrote {output}")
    if run.errors:
        some = f"{count(run.errors, 'row')} with an error"
        err.print(f'note: {some}: see "error" in {output}', style="yellow", soft_wrap=True)
