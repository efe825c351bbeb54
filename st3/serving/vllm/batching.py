"""`st3 batch --engine vllm`: rows through vLLM's own engine, in this process's name.

vLLM batches, pages and caches; rows are handed to it as there is room, and results come as they
are finished. What is wrong with a row is that row's error.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Generator, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

from st3.batch.asking import Course
from st3.batch.preparing import one_line, open_any
from st3.batch.row import Result, Row
from st3.families.base import find_adapter
from st3.inference.chat import in_chat_format
from st3.inference.checkpoints import find
from st3.inference.configs import load_config
from st3.inference.processors import load_processor
from st3.methods.base import Method
from st3.methods.selecting import Selecting
from st3.serving.vllm.counts import Seen
from st3.serving.vllm.families import FAMILIES
from st3.serving.vllm.guest import guest
from st3.serving.vllm.settings import make_settings
from st3.serving.vllm.startup import misfit, too_old

_WAITING = 64  # rows that vLLM holds at a time where nobody says how many
_OWN = ("scorer", "keep", "positions")


def check_vllm() -> None:
    """Whether vLLM is there.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError('--engine vllm needs vLLM: pip install "st3[vllm]"')


def check_plugin() -> None:
    """Whether vLLM would trim: one that does not load the plug-in leaves all as it is.

    Raises:
        ValueError: it is too old, or told to do without.
    """
    with guest():
        import vllm
        from vllm.plugins import load_plugins_by_group

        old, loaded = too_old(vllm.__version__), load_plugins_by_group("vllm.general_plugins")
    if old is not None:
        raise ValueError(f"{old.removeprefix('st3: ')}, or --method none")
    if "st3" not in loaded:
        raise ValueError(
            "vLLM does not load the plug-in st3, and would trim nothing: add it to VLLM_PLUGINS or "
            "unset that, or take --method none"
        )


def overrides_of(method: Method, config: Any) -> dict[str, Any] | None:
    """A method as the plug-in's settings; None for one that drops nothing.

    Raises:
        ValueError: it cannot choose in vLLM, or not in this model; says why.
    """
    if method.name == "none":
        return None
    keep: Any = None
    if isinstance(method, Selecting):
        keep = method.budget().share
        if keep is None:
            raise ValueError(
                f"--engine vllm takes a share, such as {method.name}:keep=25%, not {method.keep} "
                "tokens"
            )
    given = {
        "keep": 1.0 if keep is None else keep,
        "method": _spec(method),
        "positions": getattr(method, "positions", "original"),
    }
    settings = make_settings(given)
    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    family = FAMILIES.get(architecture)
    if family is None:
        raise ValueError(
            f"the vLLM plug-in does not trim {architecture or 'this model'}: take --method none, "
            f"or another engine; it trims {', '.join(FAMILIES)}"
        )
    if why := misfit(settings, family, config):
        raise ValueError(why)
    return given


def _spec(method: Method) -> str:
    """A method in a word, with those of its own parameters that differ from the default."""
    own = [
        f"{field.name}={getattr(method, field.name)}"
        for field in dataclasses.fields(method)
        if field.name not in _OWN and getattr(method, field.name) != field.default
    ]
    return f"{method.name}:{','.join(own)}" if own else method.name


def vllm_batches(
    rows: Sequence[Row],
    name: str,
    dtype: str,
    method: Method,
    options: Mapping[str, Any],
    course: Course,
) -> Generator[list[Result], None, None]:
    """Results as vLLM finishes them.

    Args:
        rows: to be answered.
        name: of a model, as `st3.load` takes it. `dtype`: as the command line has it.
        method: how to trim.
        options: as of `st3.answer_all`; `max_new_tokens` and `batch_size` alone count.
        course: is kept up to date; vLLM does not tell prefill from decode, both count as decode.

    Raises:
        ValueError: vLLM is not installed, the method does not fit, or nothing is trimmed.
    """
    check_vllm()
    source = find(name)
    config = load_config(source)
    given = overrides_of(method, config)
    if given is not None:
        check_plugin()
    processor = load_processor(source, config)
    ids = frozenset(find_adapter(config).visual_ids(config))
    with guest():
        engine = _engine(source, dtype, given, rows)
        try:
            trims = given is not None
            yield from _answered(engine, processor, ids, rows, options, course, trims)
        finally:
            engine.llm_engine.engine_core.shutdown()


def _engine(source: Any, dtype: str, given: Any, rows: Sequence[Row]) -> Any:
    from vllm import LLM
    from vllm.platforms import current_platform

    most = max((len(row.images) for row in rows), default=1)
    return LLM(
        str(source.place), revision=source.revision, dtype=dtype,
        limit_mm_per_prompt={"image": max(1, most)}, generation_config="vllm",
        hf_overrides={} if given is None else {"st3": given},
        enforce_eager=current_platform.is_cpu(),  # which compiles for minutes
    )  # fmt: skip


def _answered(
    engine: Any,
    processor: Any,
    ids: frozenset[int],
    rows: Sequence[Row],
    options: Mapping[str, Any],
    course: Course,
    trims: bool,
) -> Iterator[list[Result]]:
    from vllm import SamplingParams

    from st3.serving.vllm.counts import SEEN

    params = SamplingParams(temperature=0, max_tokens=options["max_new_tokens"])
    room = options["batch_size"] or _WAITING
    left, asked = iter(rows), dict[str, tuple[Row, Seen]]()
    more = True
    while more or asked:
        refused = []
        while more and len(asked) < room:
            row = next(left, None)
            if row is None:
                more = False
                break
            began = perf_counter()
            try:
                (number,) = engine.enqueue([_prompt(processor, row)], params, use_tqdm=False)
                seen = SEEN.take()
                asked[_external(number)] = row, seen
            except (ValueError, TypeError, OSError) as error:
                refused.append(Result(row.number, row.id, error=row.problem or one_line(error)))
            else:
                if trims and row.images and not seen.rows:
                    raise ValueError(
                        f"vLLM did not trim row {row.number}: its plug-in st3 is not at work; see "
                        "what vLLM said, or take --method none"
                    )
            course.pictures += perf_counter() - began
        course.errors += len(refused)
        if refused:
            yield refused
        began, found = perf_counter(), []
        for output in engine.llm_engine.step() if asked else ():
            if output.finished:
                row, seen = asked.pop(_external(output.request_id))
                if not seen.rows:  # nothing is trimmed
                    count = sum(token in ids for token in output.prompt_token_ids)
                    seen = Seen(count, count)
                found.append(_result(row, output, seen))
                course.shown += len(row.images)
                course.new_tokens += found[-1].new_tokens or 0
        course.decode += perf_counter() - began
        course.answered += len(found)
        if found:
            course.batches += 1
            yield found


def _external(number: str) -> str:
    """A request's number: inside, vLLM hangs random letters on it, and in outputs it does not."""
    return number.partition("-")[0]


def _prompt(processor: Any, row: Row) -> dict[str, Any]:
    if row.problem is not None:
        raise ValueError(row.problem)
    if row.video is not None:
        raise ValueError("--engine vllm takes pictures: ask about videos with --engine local")
    pictures = [open_any(image) for image in row.images]
    text = in_chat_format(processor, row.prompt, len(pictures))
    return {"prompt": text, "multi_modal_data": {"image": pictures}}


def _result(row: Row, output: Any, seen: Seen) -> Result:
    """vLLM counts tokens after the cut: what went before is added."""
    answer = output.outputs[0]
    return Result(
        row.number, row.id, answer.text.strip(),
        prompt_tokens=len(output.prompt_token_ids) + seen.rows - seen.kept,
        visual_tokens=seen.rows, kept_visual_tokens=float(seen.kept),
        new_tokens=len(answer.token_ids), finish_reason=answer.finish_reason,
        token_ids=tuple(answer.token_ids),
    )  # fmt: skip
