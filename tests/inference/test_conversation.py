"""A conversation: what it feeds is what its template writes, and its cache what schedules say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import edit, tiny_checkpoint
from families.checkpoints import save_checkpoint
from PIL import Image
from transformers.utils.import_utils import is_torchvision_available

import st3
from st3.inference.chat import Message, written
from st3.inference.conversation import Conversation
from st3.inference.video_files import open_visual
from st3.methods import make_method

WORDS = ("how many circles", "what color is it", "where is the star", "is there a square")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return st3.load(str(tiny_checkpoint(tmp_path_factory.mktemp("llava"))), device="cpu")


def _noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "smolvlm", "llava_next"])
def test_untrimmed_is_stock_and_stock_is_one_prompt(name: str, tmp_path: Path) -> None:
    """Greedy answers: under `none`, of stock turn by turn, and of stock from scratch."""
    model, processor = st3.load(str(save_checkpoint(name, tmp_path)), device="cpu")
    picture = _noise(0).resize((90, 60))
    turns = [("what do you see", [picture]), ("where is the red", []), ("what is", [_noise(1)])]
    told = []
    for method in (None, make_method("none")):
        with Conversation(model, processor, method) as conversation:
            told += [[conversation.ask(*turn, max_new_tokens=4) for turn in turns]]
            ids = conversation._words["input_ids"]
    assert [a.text for a in told[0]] == [a.text for a in told[1]]
    assert [a.new_tokens for a in told[0]] == [4, 4, 4]
    kinds = {key: x[:, :-4] for key, x in conversation._words.items()}
    mark = processor.boi_token if name == "gemma3" else processor.image_token
    made = processor(text=[f"{mark} {mark}"], images=[[picture, _noise(1)]], return_tensors="pt")
    pictures = {key: value for key, value in made.items() if key not in kinds}
    with torch.no_grad():
        afresh = model.generate(
            **kinds, **pictures, max_new_tokens=4, do_sample=False,
            suppress_tokens=[model.config.image_token_id],
        )  # fmt: skip
    assert torch.equal(afresh, ids)


@pytest.mark.skipif(not is_torchvision_available(), reason="videos need torchvision")
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "gemma3"])
def test_a_video_in_a_later_turn(name: str, tmp_path: Path) -> None:
    """Gemma 3 is shown its frames."""
    model, processor = st3.load(str(save_checkpoint(name, tmp_path / "model")), device="cpu")
    first, *others = [_noise(n) for n in range(4)]
    first.save(tmp_path / "clip.gif", save_all=True, append_images=others, duration=500)
    clip = open_visual(tmp_path / "clip.gif").take(range(4))  # type: ignore[union-attr]
    told = []
    for method in (None, make_method("none"), make_method("st3", tau=5)):
        with Conversation(model, processor, method) as conversation:
            for visual in (_noise(7), clip, [_noise(8), _noise(9)]):
                answer = conversation.ask("what do you see", visual, max_new_tokens=4)
            told.append(answer.text)
            session = conversation.session
    assert told[0] == told[1]
    assert session is not None
    assert len(session.record.turns) == 3
    assert session.kept_per_layer(0, session.generated)[-1] < session.visual_tokens[0] / 4


@pytest.mark.filterwarnings("ignore:this checkpoint has no chat template")
@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}<{{ m['role'] }}>{% for p in m['content'] %}{{ '<image>' if "
         "p['type'] == 'image' else p['text'] }}{% endfor %}<end>{% endfor %}<assistant>",
         "<end><user><image><image>and now<end><assistant>"),
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '|' }}{% endfor %}",
         "|user: <image>\n<image>\nand now|"),
        (None, " USER: <image>\n<image>\nand now ASSISTANT:"),
    ],
)  # fmt: skip
def test_a_later_turn_goes_on_where_the_answer_ended(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, template: Any, words: str
) -> None:
    processor = loaded[1]
    monkeypatch.setattr(processor, "chat_template", template)
    monkeypatch.setattr(processor.tokenizer, "chat_template", None)
    assert written(processor, [Message("what is it"), Message("and now", 2)]) == words


def test_an_end_that_was_said_is_not_said_again(tmp_path: Path) -> None:
    """The template ends an answer with the token that ended the generation."""
    place = tiny_checkpoint(tmp_path)
    (place / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' "
        "else ' ' + p['text'] + ' ' }}{% endfor %}</s>{% endfor %}", encoding="utf-8",
    )  # fmt: skip
    model, processor = st3.load(str(place), device="cpu")
    end = processor.tokenizer.eos_token_id
    with Conversation(model, processor, make_method("none")) as conversation:
        conversation.ask("how many circles", [_noise(0)], max_new_tokens=4)
        for last, ends in ((7, 1), (end, 1)):
            conversation._words["input_ids"][0, -1] = last
            words, *_ = conversation._next("what color", [])
            fed = words["input_ids"][0, conversation.tokens - 1 :].tolist()
            assert fed[:3].count(end) == ends


def test_twenty_turns_hold_what_the_schedule_says(loaded: tuple[Any, Any]) -> None:
    """A picture in each; every one anneals on its own clock."""
    model, processor = loaded
    method = make_method("st3", prune_ratio=0.5, stride=1, ratio=0.15, tau=12)
    began: list[int] = []
    with Conversation(model, processor, method) as conversation:
        for turn in range(20):
            session = conversation.session
            assert session is not None
            began.append(session.generated if turn else 0)
            answer = conversation.ask(WORDS[turn % 4], [_noise(turn)], max_new_tokens=5)
            schedule, layers = session.schedule, session.layers
            visual = [
                sum(schedule.count(n, 64, session.generated - begun) for begun in began)
                for n in range(1, layers + 1)
            ]
            assert session.kept_per_layer(0, session.generated) == visual
            fed = answer.prompt_tokens + answer.new_tokens - 1
            text = fed - 64 * (turn + 1)
            cache = session.cache
            assert cache is not None
            assert [layer.alive for layer in cache.trimmed()] == [text + n for n in visual]
            token = 2 * model.config.text_config.hidden_size * 4
            heads = model.config.text_config
            token = token * heads.num_key_value_heads // heads.num_attention_heads
            assert session.kv_bytes[-1] == token * sum(text + n for n in visual)
            assert cache.allocated_bytes < session.kv_bytes[-1] + token * layers * (64 + 160)
        assert session.visual_tokens == (20 * 64,)
        assert sum(visual) < 3 * 64 * layers  # pictures of long ago are gone


def test_what_is_wrong_with_a_turn_leaves_the_conversation(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with Conversation(model, processor, make_method("st3")) as conversation:
        conversation.ask(WORDS[0], [_noise(0)], max_new_tokens=3)
        tokens = conversation.tokens
        with pytest.raises(ValueError, match="the prompt is empty"):
            conversation.ask(" ", [_noise(1)])
        with pytest.raises(ValueError, match="leave <image> out of the prompt"):
            conversation.ask("what is <image>")
        with pytest.raises(ValueError, match="the model's context is"):
            conversation.ask("circle " * 5000)
        assert conversation.tokens == tokens
        assert conversation.ask(WORDS[1], max_new_tokens=3).new_tokens == 3
        conversation.forget()
        assert conversation.tokens == 0
        assert conversation.ask(WORDS[1], max_new_tokens=3).session.visual_tokens == (0,)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["st3", None])
def test_what_goes_wrong_in_a_turn(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, method: str | None
) -> None:
    """Before the decoder has run nothing is lost; in its middle, all is."""
    model, processor = loaded
    layers = model.model.language_model.layers
    tower = type(model.model.vision_tower)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with Conversation(model, processor, make_method(method) if method else None) as conversation:
        first = conversation.ask(WORDS[0], _noise(0), max_new_tokens=3)
        with monkeypatch.context() as patch:
            patch.setattr(tower, "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                conversation.ask(WORDS[1], _noise(1))
        assert conversation.tokens == first.prompt_tokens + 3
        conversation.ask(WORDS[1], _noise(1), max_new_tokens=3)
        with monkeypatch.context() as patch:
            patch.setattr(layers[3], "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                conversation.ask(WORDS[1], _noise(1))
        assert conversation.tokens == 0
        again = conversation.ask(WORDS[0], _noise(0), max_new_tokens=3)
        assert again.text == first.text


def test_an_answer_can_be_stopped(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    with Conversation(model, processor, make_method("st3")) as conversation:
        asked: list[int] = []

        def stop() -> bool:
            asked.append(1)
            return len(asked) == 3

        assert conversation.ask(WORDS[0], [_noise(0)], stop=stop).new_tokens == 3
        assert conversation.ask(WORDS[1], max_new_tokens=4).new_tokens == 4


def test_a_broken_template_is_named(tmp_path: Path) -> None:
    place = tiny_checkpoint(tmp_path)
    (place / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    edit(place, "generation_config.json")
    model, processor = st3.load(str(place), device="cpu")
    with (
        Conversation(model, processor) as conversation,
        pytest.raises(ValueError, match=r"chat_template\.jinja is broken in line 1"),
    ):
        conversation.ask("what", [_noise(0)])
