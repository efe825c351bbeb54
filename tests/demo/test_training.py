"""How the packaged model was made."""

from __future__ import annotations

import collections
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import st3
from st3.demo.language import (
    split,
    vocabulary,
)
from st3.demo.scenes import (
    GRID,
    Scene,
    SceneObject,
    render,
    sample_distinct,
    sample_scene,
)
from st3.demo.training import train
from st3.demo.training.architecture import LAYERS, WIDTH, build_config, build_model
from st3.demo.training.attention_loss import AttentionLoss
from st3.demo.training.codes import Codes
from st3.demo.training.dropping import Dropping, random_dropping
from st3.demo.training.growth import grow, sources
from st3.demo.training.head_start import start_language
from st3.demo.training.language_stage import LanguageStage, codes_batch, words_batch
from st3.demo.training.optimiser import MasterAdamW
from st3.demo.training.packing import PREFIX, pack, questions
from st3.demo.training.tower_stage import TowerStage, normalise
from st3.methods import make_method

SCENE = Scene((SceneObject(0, "red", "star"), SceneObject(4, "blue", "circle")))


def test_dropping_favours_nobody() -> None:
    """Every family equally often, and never more than what is alive."""
    rng = np.random.default_rng(0)
    drawn = [random_dropping(rng, 32) for _ in range(3000)]
    names = [each.name for each in drawn if each is not None]
    assert 0.67 < len(names) / 3000 < 0.73
    families = set(names)
    assert families == {"pvtp", "fastv", "pyramiddrop", "vtw", "random", "uniform"}
    for name in families:
        assert 0.14 < names.count(name) / len(names) < 0.20
    for each in drawn:
        if each is not None:
            assert each.keep[0] == GRID * GRID
            assert list(each.keep) == sorted(each.keep, reverse=True)
            assert (each.ranking is None) == (each.name not in {"random", "uniform"})


def _text_alone(model: Any, visual: torch.Tensor, question: Any) -> tuple[torch.Tensor, list[int]]:
    """Stock forward of one question behind one picture; logits of the answer, and its tokens."""
    ids = vocabulary()
    prompt = [ids.get(w, ids["<unk>"]) for w in split(f"{question.prompt} assistant :")]
    answer = [ids[w] for w in [*split(question.answer), "</s>"]]
    embed = model.model.language_model.embed_tokens
    front = embed(torch.tensor([[ids[w] for w in PREFIX]]))
    text = embed(torch.tensor([prompt + answer[:-1]]))
    hidden = model.model.language_model(inputs_embeds=torch.cat((front, visual, text), dim=1))
    return model.lm_head(hidden.last_hidden_state)[0, -len(answer) :], answer


def _young(layers: int = 3) -> Any:
    model = build_model(build_config(vocabulary(), layers), 0)
    start_language(model, Codes())
    return model


def _whole(scenes: list[Scene], rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Random visual tokens [B, 576, WIDTH], and what they are said to show."""
    size = len(scenes)
    drawn = [render(scene, rng) for scene in scenes]
    return (
        torch.randn(size, 576, WIDTH, generator=torch.Generator().manual_seed(1)),
        torch.arange(576).expand(size, -1),
        torch.stack([torch.from_numpy(r.owner).flatten() for r in drawn]),
        torch.stack([torch.from_numpy(r.coverage).flatten() for r in drawn]),
    )


def test_packed_questions_do_not_see_each_other() -> None:
    """Loss and right answers of the packed forward, against one stock forward a question.

    The trained model looks at the first scene for both, so that some answers are wrong.
    """
    rng = np.random.default_rng(1)
    model, _ = st3.load("demo", device="cpu")
    scenes = [sample_scene(rng, objects=(3, 3)) for _ in range(2)]
    few = {"count", "exists", "colour_at_place", "shape_of_colour", "relation"}
    asked = [[q for q in questions(scene, rng) if q.task in few] for scene in scenes]
    losses, weights = [], []
    right: dict[str, list[bool]] = collections.defaultdict(list)
    with torch.no_grad():
        tower = TowerStage(model)
        pixels = normalise(render(scenes[0], rng).picture)[None]
        visual = tower.projector(tower.features(pixels)).expand(2, -1, -1)
        _, *rest = _whole(scenes, rng)
        for tokens, own in zip(visual, asked, strict=True):
            for question in own:
                logits, answer = _text_alone(model, tokens[None], question)
                loss = torch.nn.functional.cross_entropy(
                    logits, torch.tensor(answer), reduction="none"
                )
                losses += loss.tolist()
                weights += [len(answer) ** -0.5] * len(answer)
                if question.task == "relation":
                    weights[-2:] = [0.5**0.5] * 2  # the verdict and the end
                right[question.task].append(logits.argmax(-1).tolist() == answer)
        _, measures = LanguageStage(model)(visual, *rest, pack(asked, rng))
    assert measures["answer"] == pytest.approx(np.average(losses, weights=weights), rel=1e-4)
    assert right.keys() == few
    assert {True, False} == {each for found in right.values() for each in found}
    for task, each in right.items():
        assert measures[f"right:{task}"] == pytest.approx(np.mean(each)), task


def test_training_trims_as_inference_does() -> None:
    """The packed forward under PVTP, ranked by its one question, against `st3.trim`."""
    rng = np.random.default_rng(3)
    model = _young(layers=9)
    scene = sample_scene(rng)
    visual, *rest = _whole([scene], rng)
    question = questions(scene, rng)[0]
    ids = vocabulary()
    method = make_method("pvtp:stride=2,final_keep=2%")
    schedule = method.schedule(9)
    keep = tuple(schedule.count(layer, 576) for layer in range(1, 10))
    with torch.no_grad():
        dropping = Dropping("pvtp", keep, None)
        _, measures = LanguageStage(model)(visual, *rest, pack([[question]], rng), dropping)
        model.model.language_model.set_attn_implementation("sdpa")
        prompt = [ids[w] for w in split(f"{question.prompt} assistant :")]
        answer = [ids[w] for w in [*split(question.answer), "</s>"]]
        front = [ids[w] for w in PREFIX] + [ids["<image>"]] * 576
        tokens = torch.tensor([front + prompt])
        model.model.multi_modal_projector.register_forward_hook(lambda *_: visual)
        losses = []
        with st3.trim(model, method) as session:
            output = model(input_ids=tokens, pixel_values=torch.zeros(1, 3, 192, 192))
            cache = output.past_key_values
            for word in answer:
                losses.append(-output.logits[0, -1].log_softmax(-1)[word].item())
                output = model(input_ids=torch.tensor([[word]]), past_key_values=cache)
            assert session.kept_per_layer() == list(keep)
    assert measures["answer"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_grown_model_answers_as_the_small_one() -> None:
    """Not one logit differs; and training reaches the layers that were added."""
    young = _young(layers=4)
    grown = grow(young, 10)
    tokens = torch.randint(5, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([[1, *[vocabulary()["<image>"]] * 576, 7, 8, 9]])
    with torch.no_grad():
        for inputs in ({"input_ids": tokens}, {"input_ids": seen, "pixel_values": pixels}):
            assert torch.equal(young(**inputs).logits, grown(**inputs).logits)
    assert grown.config.text_config.num_hidden_layers == 10
    grown(input_ids=tokens, labels=tokens).loss.backward()
    for layer in grown.model.language_model.layers:
        assert layer.self_attn.o_proj.weight.grad.abs().max() > 0
        assert layer.mlp.down_proj.weight.grad.abs().max() > 0


def test_growth_spreads_the_layers() -> None:
    origin = sources(12, 32)
    assert [layer for layer, (_, added) in enumerate(origin) if not added][:3] == [0, 1, 2]
    assert [source for source, added in origin if not added] == list(range(12))
    assert [source for source, _ in origin] == sorted(source for source, _ in origin)
    assert not origin[-1][1]
    gaps = np.diff([layer for layer, (_, added) in enumerate(origin) if not added][2:])
    assert gaps.max() - gaps.min() <= 1
    assert sources(12, 12) == [(layer, False) for layer in range(12)]


def test_relations_are_learned_from_words_alone() -> None:
    """No visual token, and only the verdict and the end of the answer weigh."""
    rng = np.random.default_rng(0)
    visual, place, owner, coverage, packed = words_batch(
        [sample_scene(rng) for _ in range(20)], rng
    )
    assert visual.shape[1] == place.shape[1] == owner.shape[1] == coverage.shape[1] == 0
    assert len(visual) == len(packed.tokens) == len(packed.ranking)
    words = {number: word for word, number in vocabulary().items()}
    graded = [words[int(x)] for x in packed.labels[packed.weight > 0]]
    assert set(graded) == {"yes", "no", "</s>"}
    assert graded.count("</s>") == len(packed.task) == len(graded) / 2


def test_where_training_points() -> None:
    """The attention loss is least where attention lies on the objects meant, evenly."""
    rng = np.random.default_rng(5)
    scene = sample_scene(rng, objects=(3, 3))
    _, _, owner, coverage = _whole([scene], rng)
    packed = pack([questions(scene, rng)], rng)

    def loss(query: torch.Tensor, key: torch.Tensor) -> AttentionLoss:
        mask = torch.zeros(1, 1, packed.tokens.shape[1], key.shape[2])
        observer = AttentionLoss(packed, owner, coverage >= 0.5, 3, range(1), range(1))
        observer.observe(0, query, key, mask, 1.0)
        return observer

    size = 3 + 576 + packed.tokens.shape[1]
    shown = (coverage[0] >= 0.5).float()
    key = torch.zeros(1, 4, size, 8)
    key[:, :, 3:579, 0] = 20 * shown
    for thing in range(3):
        key[:, :, 3:579, 1 + thing] = 20 * shown * (owner[0] == thing)
    query = torch.zeros(1, 4, size, 8)
    query[:, :, 579 + packed.last[:, 1], 0] = 1
    best = loss(query, key)
    assert best.general().item() == pytest.approx(math.log(shown.sum()), rel=1e-3)
    nowhere = loss(query * 0, key)
    assert nowhere.general().item() == pytest.approx(math.log(576), rel=1e-3)
    query = torch.zeros(1, 4, size, 8)
    want = []
    for at, bits in zip(packed.pointed[:, 1].tolist(), packed.objects.tolist(), strict=True):
        meant = [thing for thing in range(3) if bits >> thing & 1]
        if not meant:  # between the two lists of a long caption
            continue
        query[:, 0, 579 + at, [1 + thing for thing in meant]] = 1
        want.append(math.log(sum(shown[owner[0] == thing].sum() for thing in meant)))
    assert loss(query, key).pointed().item() == pytest.approx(np.mean(want), rel=1e-3)


def test_attention_losses_of_rows_that_are_padded() -> None:
    """Of two pictures packed together: the mean of each alone, also after tokens were dropped."""
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng, objects=(3, 3)), sample_scene(rng, objects=(1, 1))]
    asked = [questions(scenes[0], rng), questions(scenes[1], rng)[:4]]
    _, _, owner, coverage = _whole(scenes, rng)
    chosen = torch.from_numpy(np.sort([rng.permutation(576)[:300] for _ in scenes]))
    seed = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 4, 3 + 576 + 400, 8, generator=seed) for _ in range(2))

    def losses(rows: slice, dropped: bool) -> tuple[float, float, int, int]:
        packed = pack(asked[rows], np.random.default_rng(0))
        shown = coverage[rows] >= 0.5
        observer = AttentionLoss(packed, owner[rows], shown, 3, range(1), range(1))
        alive = owner[rows].where(shown, -1)
        if dropped:
            observer.keep(chosen[rows])
            alive = alive.gather(1, chosen[rows])
        size = 3 + alive.shape[1] + packed.tokens.shape[1]
        mask = torch.zeros(len(alive), 1, packed.tokens.shape[1], size)
        observer.observe(0, query[rows, :, :size], key[rows, :, :size], mask, 1.0)
        pointed = zip(packed.pointed[:, 0].tolist(), packed.objects.tolist(), strict=True)
        meant = sum(
            any(bits >> i & 1 for i in set(alive[r].tolist()) - {-1}) for r, bits in pointed
        )
        return observer.general().item(), observer.pointed().item(), len(packed.last), meant

    for dropped in (False, True):
        general, pointed, last, meant = losses(slice(0, 2), dropped)
        first, second = losses(slice(0, 1), dropped), losses(slice(1, 2), dropped)
        assert first[3] + second[3] == meant > first[3] > 0
        assert general == pytest.approx(
            np.average([first[0], second[0]], weights=[first[2], second[2]]), rel=1e-4
        )
        assert pointed == pytest.approx(
            np.average([first[1], second[1]], weights=[first[3], second[3]]), rel=1e-4
        )
        assert last == first[2] + second[2]


@pytest.mark.slow
def test_the_decoder_learns_one_batch_by_heart(tmp_path: Path) -> None:
    training = train.Training(tmp_path, 0, 2, "cpu")
    scenes = list(sample_distinct(np.random.default_rng(1), 2))
    inputs = codes_batch(Codes(), scenes, np.random.default_rng(0))
    optimiser = MasterAdamW(training.language.parameters(), lr=2e-3, steps=60, warmup=5)
    losses = []
    for _ in range(30):
        loss, measures = training.language(*inputs)
        loss.backward()
        optimiser.step()
        losses.append(measures["answer"])
    assert losses[-1] < losses[0] / 3


@pytest.mark.slow
def test_training_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of every stage; those cut off in the middle end with the same weights."""
    monkeypatch.setattr("st3.demo.training.loop._LOG_EVERY", 1)
    monkeypatch.setattr("st3.demo.training.loop._STATE_EVERY", 2)
    for stage in train.Stage:
        whole = train.Training(tmp_path / "whole", 0, 1, "cpu")
        whole.run(stage, 3)
    lines = [json.loads(x) for x in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == [s.value for s in train.Stage for _ in range(3)]

    cut = tmp_path / "cut"
    for stage, step in (("tower", "_see"), ("language", "_read"), ("deep", "_answer")):
        shutil.copytree(tmp_path / "whole", cut, ignore=shutil.ignore_patterns(f"{stage}.*"))
        original = getattr(train.Training, step)
        calls = itertools.count(1)

        def stop(*args: Any, original: Any = original, calls: Any = calls) -> Any:
            if next(calls) == 3:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(train.Training, step, stop)
        with pytest.raises(KeyboardInterrupt):
            train.Training(cut, 0, 1, "cpu").run(train.Stage(stage), 3)
        monkeypatch.setattr(train.Training, step, original)
        train.Training(cut, 0, 1, "cpu").run(train.Stage(stage), 3)
        a, b = (
            torch.load(folder / f"{stage}.state.pt", weights_only=True)["module"]
            for folder in (tmp_path / "whole", cut)
        )
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
        shutil.rmtree(cut)
    model = train.Training(tmp_path / "whole", 0, 1, "cpu").trained()
    assert model.config.text_config.num_hidden_layers == LAYERS
    last = f"layers.{LAYERS - 1}.mlp.up_proj.weight"
    (trained,) = (value for key, value in a.items() if key.endswith(f"decoder.{last}"))
    assert torch.equal(dict(model.model.language_model.named_parameters())[last], trained)
