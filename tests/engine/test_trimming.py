"""`st3.trim` around stock transformers: equality when nothing is trimmed, and a clean exit."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import IMAGE, greedy, prompts, tiny_llava
from families.talk import Talk, oracle
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, TextStreamer

import st3
from st3.engine.attention import FORWARD
from st3.methods import make_method
from st3.methods.scorers import SCORERS, LayerView

TRIMMED = {"prune_ratio": 0.5, "stride": 2, "ratio": 0.15, "tau": 20}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 20},
    "three answers": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "output_logits": False},
    "beam sampling": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
}


def alive(cache: Any) -> list[int]:
    """Tokens alive in each layer; the widest row's where rows differ."""
    return [layer.alive for layer in cache.trimmed()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [["tttItttt"], ["ttIttttt", "tItt", "ttttt"]])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_nothing_trimmed_is_stock(way: str, rows: list[str], backend: str) -> None:
    model, inputs = tiny_llava(backend=backend), prompts(*rows)
    torch.manual_seed(1)
    stock = greedy(model, inputs, **WAYS[way]).sequences
    for method in (make_method("none"), make_method("pvtp", prune_ratio=0.0, ratio=0.0)):
        torch.manual_seed(1)
        with st3.trim(model, method):
            ours = greedy(model, inputs, **WAYS[way]).sequences
        assert torch.equal(stock, ours)


def test_beams_are_trimmed_each_with_its_own_past(llava: Any) -> None:
    """The likelihood that beam search reports is that of its answer, fed token by token."""
    inputs = prompts("ttItttt", "tIttttttt")
    with st3.trim(llava, "st3", **TRIMMED) as session:
        result = greedy(llava, inputs, 10, num_beams=4, output_scores=True, output_logits=False)
        assert max(alive(session.cache)) < 64
    answer = result.sequences[:, inputs["input_ids"].shape[1] :]
    with st3.trim(llava, "st3", **TRIMMED):
        mask = inputs["attention_mask"]
        out = llava(**inputs, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
        total = torch.zeros(2)
        for step in range(answer.shape[1]):
            token = answer[:, step : step + 1]
            total += out.logits[:, -1].log_softmax(-1).gather(1, token)[:, 0].detach()
            mask = torch.cat((mask, torch.ones(2, 1, dtype=mask.dtype)), dim=1)
            out = llava(
                input_ids=token,
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=out.past_key_values,
            )
    torch.testing.assert_close(result.sequences_scores, total / 10, atol=1e-5, rtol=1e-5)


def test_samples_of_one_prompt_differ_but_share_their_tokens(llava: Any) -> None:
    inputs = prompts("ttItttt")
    with st3.trim(llava, "st3", **TRIMMED) as session:
        torch.manual_seed(0)
        out = greedy(llava, inputs, do_sample=True, num_return_sequences=4, temperature=3.0)
    assert len({tuple(row) for row in out.sequences.tolist()}) == 4
    assert session.kept(6, row=0) == session.kept(6, row=3)


def test_streamer(llava: Any) -> None:
    class Collect(TextStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    inputs, streamer = prompts("ttItttt"), Collect()
    with st3.trim(llava, "st3", **TRIMMED):
        out = greedy(llava, inputs, streamer=streamer)
    assert streamer.tokens == out.sequences[0].tolist()
    assert streamer.ended


def test_leaves_the_model_as_it_was(llava: Any) -> None:
    def state() -> Any:
        hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in llava.modules()]
        configs = [llava.config, llava.config.text_config, llava.model.vision_tower.config]
        return hooks, [c._attn_implementation for c in configs], vars(llava).keys()

    inputs = prompts("ttItttt")
    stock = greedy(llava, inputs).sequences  # transformers adds hooks of its own when first run
    before = state()
    with st3.trim(llava, "st3", **TRIMMED) as session:
        assert state() != before
        greedy(llava, inputs)
    assert state() == before
    with pytest.raises(IndexError), st3.trim(llava, "st3", **TRIMMED):
        greedy(llava, inputs | {"input_ids": inputs["input_ids"] + 1000})
    assert state() == before
    with pytest.raises(RuntimeError), st3.trim(llava), st3.trim(llava):
        pass
    assert state() == before
    assert torch.equal(greedy(llava, inputs).sequences, stock)
    assert session.kept_per_layer()[-1] == 3  # the report outlives the with


def test_a_session_starts_afresh_with_each_prefill(llava: Any) -> None:
    with st3.trim(llava, "st3", **TRIMMED) as session:
        greedy(llava, prompts("tIttItt"), 3)
        assert session.visual_tokens == (128,)
        one = greedy(llava, prompts("ttItttt"), 8)
        assert session.visual_tokens == (64,)
        assert session.generated == 7
    with st3.trim(llava, "st3", **TRIMMED):
        again = greedy(llava, prompts("ttItttt"), 8)
    assert torch.equal(one.sequences, again.sequences)


@pytest.mark.parametrize("tokens", [2, 3])
def test_several_tokens_in_one_step(llava: Any, tokens: int) -> None:
    """A later turn may feed many tokens at once; without annealing that equals one at a time."""
    inputs = prompts("ttItttt", "tItt")
    more = torch.randint(1, IMAGE, (2, tokens), generator=torch.Generator().manual_seed(5))

    def positions(mask: torch.Tensor, count: int) -> torch.Tensor:
        return (mask.cumsum(1) - 1)[:, -count:]

    results = []
    for chunk in (1, tokens):
        with st3.trim(llava, "pvtp", stride=2, ratio=0.15), torch.no_grad():
            out, mask = llava(**inputs), inputs["attention_mask"]
            for start in range(0, tokens, chunk):
                mask = torch.cat((mask, torch.ones(2, chunk, dtype=mask.dtype)), dim=1)
                out = llava(
                    input_ids=more[:, start : start + chunk],
                    attention_mask=mask,
                    position_ids=positions(mask, chunk),
                    past_key_values=out.past_key_values,
                )
        results.append(out.logits[:, -1])
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_without_a_cache(llava: Any) -> None:
    inputs = prompts("ttItttt")
    with torch.no_grad(), st3.trim(llava, "st3", **TRIMMED) as session:
        cached = llava(**inputs).logits[:, -1]
        assert session.cache is not None
        plain = llava(**inputs, use_cache=False)
        assert session.cache is None
    assert plain.past_key_values is None
    torch.testing.assert_close(plain.logits[:, -1], cached)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("scorer", ["last-token-max", "prompt", "prompt-3-layers", "random"])
def test_scorers_choose_by_stock_attention(scorer: str, backend: str) -> None:
    """The first cut equals one made from transformers' own eager attention weights."""
    model = tiny_llava(backend=backend)
    inputs = prompts("ttItttttt", "tItt")
    with st3.trim(model, "pvtp", prune_ratio=0.5, ratio=0.0, stride=1, scorer=scorer) as session:
        model(**inputs)
    if scorer == "random":
        assert len(session.kept(4)) == 32
        assert session.kept(4) == session.kept(4, row=1)
        return
    model.model.language_model.set_attn_implementation("eager")
    weights = model(**inputs, output_attentions=True, use_cache=False).attentions
    visual = inputs["input_ids"] == IMAGE
    for row in range(2):
        places = torch.nonzero(visual[row]).flatten()
        after = list(range(int(places[-1]) + 1, visual.shape[1]))
        score = torch.zeros(visual.shape[1])
        for layer in (0, 1, 2) if scorer == "prompt-3-layers" else (2,):
            heads = weights[layer][row]
            if scorer == "last-token-max":
                score += heads[:, -1].amax(0)
            else:
                score += heads.mean(0)[after].sum(0)
        best = score[places].topk(32).indices.sort().values.tolist()
        assert session.kept(4, row) == best


class _Watch(TorchDispatchMode):
    """Counts operations by name, and remembers the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[str(func)] += 1
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_decode_adds_no_synchronisation(llava: Any) -> None:
    inputs = prompts("ttItttt")
    counts = []
    for tokens in (4, 14):
        with st3.trim(llava, "st3", **TRIMMED), _Watch() as ours:
            greedy(llava, inputs, tokens)
        with _Watch() as stock:
            greedy(llava, inputs, tokens)
        sync = "aten._local_scalar_dense.default"
        counts.append(ours.calls[sync] - stock.calls[sync])
    # transformers 5.17 reads its mask back in every step of stock's.
    assert counts[1] <= counts[0]


def test_prefill_memory_is_linear() -> None:
    """No n x n tensor: the largest result grows with the prompt, not with its square."""
    model = tiny_llava(layers=5)
    largest = []
    for pictures in (4, 8):
        inputs = prompts("t" + "It" * pictures)
        with torch.no_grad(), st3.trim(model, "st3", **TRIMMED), _Watch() as watch:
            model(**inputs, logits_to_keep=1)
        largest.append(watch.largest)
    assert largest[1] <= 2.1 * largest[0]


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (
            ["tIttt", "tIt"],
            {"attention_mask": torch.tensor([[1] * 68, [1] * 66 + [0] * 2])},
            "right",
        ),
        (["ttI"], {}, "ends in a picture"),
        (["tIt"], {"past_key_values": "filled"}, "cannot go on from a DynamicCache"),
        (["tIt"], {"attention_mask": torch.ones(1, 1, 66, 66, dtype=torch.bool)}, "got a 4-D"),
    ],
)
def test_refusals(llava: Any, rows: list[str], change: dict[str, Any], message: str) -> None:
    inputs = prompts(*rows) | change
    if "past_key_values" in change:
        inputs["past_key_values"] = _filled_cache()
    with st3.trim(llava), pytest.raises(ValueError, match=message):
        llava(**inputs)


def _filled_cache() -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.zeros(2, 2, 3, 16), torch.zeros(2, 2, 3, 16), 0)
    return cache


def test_a_cache_does_not_outlive_its_trim(llava: Any) -> None:
    inputs = prompts("ttItttt")
    with st3.trim(llava, "st3", **TRIMMED):
        cache = llava(**inputs).past_key_values
    with pytest.raises(RuntimeError, match="has ended"):
        llava(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_an_offloaded_cache_is_refused(llava: Any) -> None:
    with st3.trim(llava), pytest.raises(ValueError, match="own KV cache"):
        greedy(llava, prompts("ttItttt"), cache_implementation="offloaded")


def test_assisted_decoding_is_refused(llava: Any) -> None:
    inputs = prompts("ttItttt")
    with st3.trim(llava), pytest.raises(ValueError, match="assisted decoding"):
        llava.generate(**inputs, prompt_lookup_num_tokens=2, max_new_tokens=20)


def test_padding_on_the_right_of_a_later_turn_is_refused(llava: Any) -> None:
    inputs = prompts("ttItttt", "tItt")
    with st3.trim(llava):
        cache = llava(**inputs).past_key_values
        mask = torch.cat((inputs["attention_mask"], torch.tensor([[1, 1], [1, 0]])), dim=1)
        with pytest.raises(ValueError, match="padded on the right"):
            llava(input_ids=torch.ones(2, 2).long(), attention_mask=mask, past_key_values=cache)


def test_a_later_turn_does_not_anneal(llava: Any) -> None:
    with st3.trim(llava, "vta", tau=5) as session:
        cache = llava(**prompts("ttItttt")).past_key_values
        llava(input_ids=torch.ones(1, 9).long(), past_key_values=cache)
        assert session.generated == 0
        assert alive(cache) == [70 + 9] * 10
        llava(input_ids=torch.ones(1, 1).long(), past_key_values=cache)
        assert session.generated == 1
        assert session.untrimmed_kv_bytes[-1] == 80 * 10 * 2 * 2 * 16 * 4


def test_the_inner_model_can_be_trimmed_too(llava: Any) -> None:
    inputs = prompts("ttItttt")
    with torch.no_grad(), st3.trim(llava, "pvtp", stride=2, ratio=0.15):
        whole = llava(**inputs).logits[:, -1]
    with torch.no_grad(), st3.trim(llava.model, "pvtp", stride=2, ratio=0.15):
        inner = llava.model(**inputs).last_hidden_state[:, -1]
    torch.testing.assert_close(llava.lm_head(inner), whole)


def test_scores_survive_half_precision() -> None:
    view = LayerView(
        query=torch.full((1, 2, 4, 128), 30.0, dtype=torch.float16),
        key=torch.full((1, 2, 4, 128), 30.0, dtype=torch.float16),
        scaling=128**-0.5,
        valid=None,
        visual=torch.tensor([[True, True, False, False]]),
        ordinal=torch.tensor([[0, 1, 1, 1]]),
        total=2,
        trailing=2,
    )
    score = SCORERS["last-token"].score(view)
    torch.testing.assert_close(score, torch.full((1, 4), 0.25))


def test_a_static_cache_is_refused(llava: Any) -> None:
    with st3.trim(llava), pytest.raises(ValueError, match=r"cache_implementation|4-D"):
        greedy(llava, prompts("ttItttt"), cache_implementation="static")


def test_a_later_turn_that_cannot_be_is_refused(llava: Any) -> None:
    with st3.trim(llava) as session:
        cache = llava(**prompts("ttItttt")).past_key_values
        held = alive(cache)
        for row, pixels, why in (
            ("Itt", None, "nothing to put there"),
            ("tI", prompts("tI")["pixel_values"], "ends in a picture"),
        ):
            ids = prompts(row)["input_ids"]
            with pytest.raises(ValueError, match=why):
                llava(input_ids=ids, pixel_values=pixels, past_key_values=cache)
        assert alive(cache) == held
        assert len(session.record.turns) == 1


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_in_a_later_turn(scorer: str) -> None:
    """What the cache holds is no token of the turn: its scores are of its own tokens alone."""
    talk = Talk(tiny_llava(), lambda _, rows: prompts(*rows))
    with st3.trim(talk.model, "st3", scorer=scorer, stride=1, tau=9) as session:
        for row in ("ttItt", "tItttt"):
            talk.say([row])
    want, hidden = oracle(talk, session.record.turns, scorer)
    for said, wanted in zip(talk.said, want, strict=True):
        torch.testing.assert_close(said, wanted, atol=1e-4, rtol=1e-5)
    assert len(hidden[1].alive(10, 0)) < 64


def test_a_model_without_visual_tokens_is_refused() -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=4,
        num_attention_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="names no placeholder"), st3.trim(model):
        pass


def test_flex_attention_is_refused(llava: Any) -> None:
    llava.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="one of: eager, sdpa"), st3.trim(llava):
        pass


@pytest.mark.parametrize("rows", [["tttItttt"], ["tttItttt", "ttIttt"]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_an_fp32_model(dtype: torch.dtype, rows: list[str]) -> None:
    """Keys come in fp32, values in half: untrimmed is stock, and all else runs, to the byte."""
    model, inputs = tiny_llava(), prompts(*rows)
    with torch.autocast("cpu", dtype=dtype):
        want = greedy(model, inputs, 6)
        with st3.trim(model, "none"):
            got = greedy(model, inputs, 6)
        assert torch.equal(got.sequences, want.sequences)
        assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))
        for method in ("st3", "vta", "pvtp", "fastv"):
            with st3.trim(model, method) as session:
                greedy(model, inputs, 6)
                assert session.cache is not None
                assert session.cache.live_bytes == session.kv_bytes[-1]


def _conversation(model: Any, inputs: dict[str, Any]) -> tuple[list[torch.Tensor], list[int]]:
    """As in transformers' documentation: one cache, the caller's own, for every turn."""
    cache = DynamicCache(config=model.config.text_config)
    said, lengths = [], []
    sequences = greedy(model, inputs, 6, past_key_values=cache).sequences
    for turn in range(3):
        said.append(sequences)
        lengths.append(cache.get_seq_length())
        more = torch.arange(4)[None] + 5 + turn
        ids = torch.cat((sequences, more), dim=1)
        sequences = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache,
            max_new_tokens=5, min_new_tokens=5, do_sample=False,
        )  # fmt: skip
    return [*said, sequences], lengths


@pytest.mark.parametrize("conversations", [1, 4])
def test_a_cache_of_the_callers_own(conversations: int) -> None:
    """It is what is filled: the second turn still sees the picture."""
    model, inputs = tiny_llava(), prompts("tttItttt")
    want, lengths = _conversation(model, inputs)
    with st3.trim(model, "none"):
        for _ in range(conversations):
            got, ours = _conversation(model, inputs)
            assert ours == lengths
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with st3.trim(model, "st3", **TRIMMED) as session:
        first, ours = _conversation(model, inputs)
        assert ours == lengths
        assert session.visual_tokens == (64,)
        again, _ = _conversation(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_autocast_around_the_prefill_alone() -> None:
    """Stock's cache widens with the step's token, ours keeps its type: one value is rounded."""
    model, inputs = tiny_llava(), prompts("tttItttt")
    step = {"input_ids": torch.tensor([[7]])}

    def logits() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cache = model(**inputs, use_cache=True).past_key_values
        found: torch.Tensor = model(**step, past_key_values=cache).logits
        return found

    with torch.no_grad():
        want = logits()
        with st3.trim(model, "none"):
            torch.testing.assert_close(logits(), want, atol=1e-3, rtol=0)
        with st3.trim(model, "st3"):
            assert logits().isfinite().all()


def test_conversations_take_turns() -> None:
    """Whoever holds a cache may go on with it, whatever was generated in between."""
    model, inputs = tiny_llava(), [prompts("tttItttt"), prompts("tItIttt", seed=1)]

    def turn(first: Any) -> torch.Tensor:
        more = torch.cat((first.sequences, torch.tensor([[5, 6, 7]])), dim=1)
        mask = torch.ones_like(more)
        said: torch.Tensor = model.generate(
            input_ids=more, attention_mask=mask, past_key_values=first.past_key_values,
            max_new_tokens=5, min_new_tokens=5, do_sample=False,
        )  # fmt: skip
        return said

    want = []
    for asked in inputs:
        with st3.trim(model, "st3", **TRIMMED):
            want.append(turn(greedy(model, asked, 4)))
    with st3.trim(model, "st3", **TRIMMED):
        begun = [greedy(model, asked, 4) for asked in inputs]
        got = [turn(first) for first in begun]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with st3.trim(model, "st3", **TRIMMED), pytest.raises(ValueError, match="that has ended"):
        turn(begun[0])


def test_a_cache_outlives_its_with_only_to_say_so() -> None:
    model, inputs = tiny_llava(), prompts("tttItttt")
    cache = DynamicCache(config=model.config.text_config)
    with st3.trim(model, "st3"):
        sequences = greedy(model, inputs, 4, past_key_values=cache).sequences
    more = {"input_ids": sequences, "attention_mask": torch.ones_like(sequences)}
    with pytest.raises((RuntimeError, ValueError), match=r"belongs to an st3\.trim that has ended"):
        model.generate(**more, past_key_values=cache, max_new_tokens=2)


def test_places_for_a_picture_and_no_picture(llava: Any) -> None:
    inputs = prompts("tttItttt")
    del inputs["pixel_values"]
    with (
        pytest.raises(ValueError, match="places for 64 visual tokens, and nothing to put there"),
        st3.trim(llava, "st3"),
    ):
        greedy(llava, inputs)


class Outer(torch.nn.Module):
    """As DistributedDataParallel: what it holds is its `module`."""

    def __init__(self, model: Any, devices: int = 1) -> None:
        super().__init__()
        self.module, self.device_ids = model, [*range(devices)]


class Wrapper(torch.nn.Module):
    """As PEFT's: its `get_base_model` is the one that is trimmed."""

    config: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.held = model

    def get_base_model(self) -> Any:
        return self.held


@pytest.mark.parametrize("wrap", [Wrapper, Outer, lambda model: Outer(Wrapper(model))])
def test_a_wrapper_that_says_what_it_holds(llava: Any, wrap: Any) -> None:
    inputs = prompts("tttItttt")
    with st3.trim(llava, "st3"):
        want = greedy(llava, inputs).sequences
    with st3.trim(wrap(llava), "st3") as session:
        assert torch.equal(greedy(llava, inputs).sequences, want)
        assert session.generated == 11


def test_what_is_no_model_is_refused(llava: Any) -> None:
    other: Any
    for other, words in (
        (None, "st3.load or transformers made, not of type NoneType"),
        ("demo", "not of type str"),
        (torch.nn.Linear(2, 2), "not of type Linear"),
        (torch.nn.ModuleDict({"net": llava}), "not of type ModuleDict: pass the one .* as net"),
        (Outer(llava, devices=2), "copies are not trimmed"),
    ):
        with pytest.raises(ValueError, match=words), st3.trim(other):
            pass
    with (
        pytest.raises(ValueError, match="leave out tau"),
        st3.trim(llava, make_method("st3"), tau=3),
    ):
        pass


@pytest.mark.parametrize("cache", [True, False])
def test_gradient_checkpointing_is_refused(cache: bool) -> None:
    """It would compute layers again with the tokens of the last one."""
    model, inputs = tiny_llava(layers=4), prompts("tttItttt")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    for layer in model.model.language_model.layers:  # what gradient_checkpointing_enable() does
        layer.gradient_checkpointing = True
    model.train()
    with st3.trim(model, "st3"):
        with pytest.raises(
            ValueError, match="gradient checkpointing, which computes a layer again"
        ):
            model(**inputs, labels=labels, use_cache=cache)
        model.eval()
        model(**inputs, labels=labels, use_cache=cache).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_a_layer_that_goes_around_our_attention_is_noticed() -> None:
    """After the first prefill, in one line, and not as a wrong answer."""
    model = tiny_llava()
    attention = model.model.language_model.layers[4].self_attn
    theirs = attention.forward

    def around(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        before, attention.config = attention.config, copy.copy(attention.config)
        attention.config._attn_implementation = {"": "sdpa"}
        kwargs.pop(FORWARD, None)
        kwargs["attention_mask"] = None
        try:
            return theirs(hidden_states, **kwargs)
        finally:
            attention.config = before

    with st3.trim(model, "st3", stride=2):
        greedy(model, prompts("ttItt"))
        attention.forward = around
        with pytest.raises(RuntimeError, match="layer 5 of the decoder did not call attention"):
            greedy(model, prompts("ttItt"))
