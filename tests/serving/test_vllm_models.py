"""Each family in vLLM itself: counts, kept rows and positions are those of `st3.trim`.

`.ci/serving` installs vLLM for it. All in one process and on tiny checkpoints with random weights,
in float32; a prompt is fed whole, and once more in pieces, behind a prefix that is cached.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the model can be looked at
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from serving.vllm_checkpoints import SERVED, save_served

import st3
from st3.families.base import visual_mask
from st3.families.parts import find_parts
from st3.methods import make_method

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]  # vLLM has its own
KEEP = 0.25
METHODS = ("divprune", "norm")


def pictures() -> list[Image.Image]:
    """Two of different shapes, with something in them."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for high, wide in ((112, 168), (224, 140)):
        noise = torch.rand(3, high // 14, wide // 14, generator=draw)[None]
        smooth = torch.nn.functional.interpolate(noise, (high, wide), mode="bilinear")[0]
        found.append(Image.fromarray((smooth * 255).byte().permute(1, 2, 0).numpy()))
    return found


def expected(folder: Path, shown: list[Image.Image]) -> tuple[str, dict[str, Any]]:
    """A prompt, and of each method what `st3.trim` keeps of it, and at which positions.

    A method -> (numbers among the prompt's visual tokens, positions of the trimmed prompt [axes,
    n]); and `ids`, the untrimmed prompt's.
    """
    model, processor = st3.load(str(folder), device="cpu", dtype="float32")
    content = []
    for text in ("where is the red", "what do you see"):
        content += [{"type": "image"}, {"type": "text", "text": text}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[text], images=shown, return_tensors="pt")
    seen: list[Any] = []
    parts = find_parts(model)
    handle = parts.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    visual = visual_mask(parts.visual_ids, inputs["input_ids"])[0]
    settings: Any = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    model.generate(**inputs, **settings)
    handle.remove()
    given = seen[0]
    places = torch.arange(len(visual))[None] if given is None else given.reshape(-1, len(visual))
    found: dict[str, Any] = {"ids": inputs["input_ids"][0].tolist()}
    for name in METHODS:
        with st3.trim(model, make_method(name, keep=KEEP)) as session:
            model.generate(**inputs, **settings)
            kept = session.kept(1)
        stays = ~visual
        stays[visual.nonzero().flatten()[kept]] = True
        found[name] = (kept, places[:, stays])
    return text, found


class Watched:
    """A vLLM engine in this process, whose choices and positions are noted down."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, **more: Any):
        from vllm import LLM

        from st3.serving.vllm import models

        self.kept: list[list[int]] = []
        self.rows: list[int] = []
        self.positions: list[torch.Tensor] = []
        stock = models.choose

        def choose(*arguments: Any) -> Any:
            made = stock(*arguments)
            self.kept += [kept.numbers.tolist() for kept in made]
            self.rows += [sum(picture.pools) for picture in arguments[1]]
            return made

        monkeypatch.setattr(models, "choose", choose)
        self.engine = LLM(
            str(folder), dtype="float32", enforce_eager=True, max_model_len=4096,
            limit_mm_per_prompt={"image": 2, "video": 0}, seed=0,
            hf_overrides={"st3": {"keep": KEEP, "method": method}}, **more,
        )  # fmt: skip
        engine: Any = self.engine.llm_engine
        self.model = engine.model_executor.driver_worker.worker.model_runner.model
        decoder = self.model.get_language_model()
        decoder = getattr(decoder, "model", decoder)
        stock_forward = decoder.forward

        def forward(input_ids: Any, positions: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.positions.append(positions.clone())
            return stock_forward(input_ids, positions, *args, **kwargs)

        decoder.forward = forward

    def ask(self, text: str, shown: list[Image.Image]) -> Any:
        """Feed a prompt."""
        from vllm import SamplingParams

        self.kept.clear()
        self.rows.clear()
        self.positions.clear()
        asked = {"prompt": text, "multi_modal_data": {"image": shown}}
        return self.engine.generate(
            [asked], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False
        )[0]

    def close(self) -> None:
        """Let go of it, so that another can begin."""
        from vllm.distributed import cleanup_dist_env_and_memory

        del self.engine, self.model
        gc.collect()
        cleanup_dist_env_and_memory()


@pytest.mark.parametrize("name", SERVED)
def test_a_family(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, shown = save_served(name, tmp_path / "model"), pictures()
    text, want = expected(folder, shown)
    method = METHODS[0]
    watched = Watched(folder, monkeypatch, method, max_num_batched_tokens=4096)
    try:
        output = watched.ask(text, shown)
        kept, places = want[method]
        sizes = [len(one) for one in watched.kept]
        assert sum(sizes) == len(kept)
        assert len(output.prompt_token_ids) == places.shape[1]
        mine = [*watched.kept[0]]
        first = watched.rows[0]
        mine += [number + first for number in watched.kept[1]]
        assert mine == kept
        got = watched.positions[0]
        got = got[None] if got.dim() == 1 else got
        assert torch.equal(got[-places.shape[0] :].long(), places[-got.shape[0] :].long())
        again = watched.ask(text, shown)  # whose pictures are in vLLM's caches, and its prompt
        assert again.prompt_token_ids == output.prompt_token_ids
        assert again.outputs[0].token_ids == output.outputs[0].token_ids
        assert not watched.kept
        rest = watched.positions[0]
        rest = rest[None] if rest.dim() == 1 else rest
        assert rest.shape[1] <= got.shape[1]  # a prefix is cached by whole blocks
        assert torch.equal(rest, got[:, -rest.shape[1] :])
    finally:
        watched.close()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_picture_that_chunked_prefill_splits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of fewer tokens than it keeps: their positions in turn are those of the prompt."""
    folder, shown = save_served(name, tmp_path / "model"), pictures()
    text, want = expected(folder, shown)
    places = want[METHODS[0]][1]
    found = []
    for step in (4096, 4):
        watched = Watched(
            folder, monkeypatch, METHODS[0], max_num_batched_tokens=step, max_num_seqs=2,
            enable_prefix_caching=False,
        )  # fmt: skip
        try:
            output = watched.ask(text, shown)
            got = torch.cat(watched.positions, dim=-1)
            assert (len(watched.positions) == 1) == (step > places.shape[1])
            got = got[None] if got.dim() == 1 else got
            assert torch.equal(got[-places.shape[0] :].long(), places[-got.shape[0] :].long())
            found.append(output.outputs[0].token_ids)
        finally:
            watched.close()
    assert found[0] == found[1]
