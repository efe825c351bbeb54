"""Sources of rows: order, ids, places of pictures; what is wrong with all, and with one row."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from st3.batch.row import Row, Stored
from st3.batch.sources import Source, check_prompts, open_source
from st3.inference.sources import PictureError


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_folder_is_looked_through_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.jpg", "a/b/c.PNG", ".hidden.png", ".git/x.png"):
        draw(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    source = open_source(str(tmp_path), prompt="what?")
    assert [row.id for row in source.rows] == ["a/b/c.PNG", "a/z.jpg", "b.png"]
    assert [row.number for row in source.rows] == [0, 1, 2]
    assert source.rows[2].images == (str(tmp_path / "b.png"),)
    assert {row.prompt for row in source.rows} == {"what?"}


def test_a_glob_and_a_picture(tmp_path: Path) -> None:
    draw(tmp_path / "x" / "one.png")
    draw(tmp_path / "two.png")
    found = open_source(str(tmp_path / "**" / "*.png"), prompt="q").rows
    assert [Path(str(row.id)).name for row in found] == ["two.png", "one.png"]
    assert len(open_source(str(tmp_path / "two.png"), prompt="q").rows) == 1


def test_lines_keep_ids_and_resolve_paths(tmp_path: Path) -> None:
    name = lines(
        tmp_path / "rows.jsonl",
        {"id": 7, "image": "a.png", "prompt": "own"},
        {"id": "x", "images": ["a.png", "https://host/b.png"]},
        {"video": "clip.mp4"},
    )
    rows = open_source(name, prompt="general").rows
    assert [row.id for row in rows] == [7, "x", 2]
    assert [row.prompt for row in rows] == ["own", "general", "general"]
    assert rows[0].images == (str(tmp_path / "a.png"),)
    assert rows[1].images == (str(tmp_path / "a.png"), "https://host/b.png")
    assert rows[2].video == str(tmp_path / "clip.mp4")
    assert all(row.problem is None for row in rows)


def test_ids_of_several_files_stay_and_numbers_go_on(tmp_path: Path) -> None:
    one = lines(tmp_path / "1.jsonl", {"id": 10, "image": "a.png"}, {"id": "x", "image": "a.png"})
    two = lines(tmp_path / "2.jsonl", {"id": 0, "image": "a.png"}, {"image": "a.png"})
    rows = open_source(one, two, prompt="q").rows
    assert [(row.number, row.id) for row in rows] == [(0, 10), (1, "x"), (2, 0), (3, 3)]


def test_a_cell_of_a_csv_may_be_a_long_data_url(tmp_path: Path) -> None:
    url = "data:image/png;base64," + 200_000 * "A"
    (tmp_path / "rows.csv").write_text(f'image,prompt\n"{url}",q\n', encoding="utf-8")
    before = csv.field_size_limit()
    assert open_source(str(tmp_path / "rows.csv")).rows[0].images == (url,)
    assert csv.field_size_limit() == before  # it is the whole process's


def test_what_is_wrong_with_one_row_is_its_problem(tmp_path: Path) -> None:
    name = lines(
        tmp_path / "rows.jsonl",
        {"image": "a.png", "prompt": "q"},
        {"image": None, "prompt": "q"},
        {"image": "a.png", "prompt": ""},
        {"image": "a.png"},
        {"image": "a.png", "video": "b.mp4", "prompt": "q"},
        {"image": 3, "prompt": "q"},
        {"images": ["a.png", ""], "prompt": "q"},
        {"image": "a.png", "prompt": "\ud800"},
    )
    problems = [row.problem or "" for row in open_source(name).rows]
    wanted = (
        "", "shows nothing", "is empty", "no prompt", "both image and video", "no path, but int",
        "empty", "no valid text",
    )  # fmt: skip
    for problem, words in zip(problems, wanted, strict=True):
        assert words in problem
        assert bool(problem) == bool(words)


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        '\ufeffid,image,images,prompt\n7,a.png,,"q, too"\nb,,"[""c.png"", ""d.png""]",\n',
        encoding="utf-8",
    )
    rows = open_source(str(path), prompt="general").rows
    assert [(row.id, row.prompt, len(row.images)) for row in rows] == [
        ("7", "q, too", 1),
        ("b", "general", 2),
    ]
    assert rows[1].images == (str(tmp_path / "c.png"), str(tmp_path / "d.png"))


def tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def png(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def test_shards_are_read_by_places(tmp_path: Path) -> None:
    red, blue = png("red"), png("blue")
    tar(tmp_path / "s-00.tar", a__png=red, a__json=b'{"prompt": "own", "id": "first"}', b__png=blue)
    tar(tmp_path / "s-01.tar", a__prompt=b"which?", a__png=blue, lonely__json=b"{}")
    for name in ("s-{00..01}.tar", "s-*.tar", "s-{00,01}.tar"):
        rows = open_source(str(tmp_path / name), prompt="general").rows
        assert [row.id for row in rows] == ["first", "s-00.tar/b", "s-01.tar/a", "s-01.tar/lonely"]
        assert [row.prompt for row in rows] == ["own", "general", "which?", "general"]
    moved: list[Row] = pickle.loads(pickle.dumps(list(rows)))  # as to a worker
    assert isinstance(moved[0].images[0], Stored)
    assert [row.images[0].read()[0] for row in moved[:3]] == [red, blue, blue]
    assert "shows nothing" in str(moved[3].problem)


def test_parquet_with_paths_and_with_bytes(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    red, blue = png("red"), png("blue")
    parquet.write_table(
        pa.table({"id": [4, 5], "image": ["a.png", None], "prompt": ["p", "q"], "other": [1, 2]}),
        tmp_path / "paths.parquet",
    )
    rows = open_source(str(tmp_path / "paths.parquet")).rows
    assert [row.id for row in rows] == [4, 5]
    assert rows[0].images == (str(tmp_path / "a.png"),)
    assert "shows nothing" in str(rows[1].problem)
    parquet.write_table(
        pa.table({"image": [{"bytes": red, "path": "x"}, {"bytes": blue, "path": None}]}),
        tmp_path / "stored.parquet", row_group_size=1,
    )  # fmt: skip
    rows = open_source(str(tmp_path / "stored.parquet"), prompt="q").rows
    assert [row.images[0].read()[0] for row in pickle.loads(pickle.dumps(rows))] == [red, blue]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [
        {"bytes": red, "path": "x"}, {"bytes": None, "path": "photos/p01.png"}, None,
        {"bytes": None, "path": None}, {"bytes": b"", "path": "x"},
        {"bytes": None, "path": "gone.png"},
    ]  # fmt: skip
    draw(tmp_path / "photos" / "p01.png")
    columns = {
        "image": pa.array(cells, kind),
        "images": pa.array([None, None, [cells[1]], None, None, None], pa.list_(kind)),
    }
    parquet.write_table(pa.table(columns), tmp_path / "mixed.parquet")
    rows = open_source(str(tmp_path / "mixed.parquet"), prompt="q").rows
    assert [row.problem for row in rows] == [None] * 6
    assert rows[0].images[0].read()[0] == red
    photo = (tmp_path / "photos" / "p01.png").read_bytes()
    assert rows[1].images[0].read()[0] == rows[2].images[0].read()[0] == photo
    for row, said in zip(rows[3:], ("shows nothing", "is empty", "no file .*gone"), strict=True):
        with pytest.raises(PictureError, match=said):
            row.images[0].read()
    plain = {"image": pa.array([red, None], pa.binary()), "video": [None, "clip.mp4"]}
    parquet.write_table(pa.table(plain), tmp_path / "plain.parquet")
    rows = open_source(str(tmp_path / "plain.parquet"), prompt="q").rows
    assert (rows[0].images[0].read()[0], rows[1].video) == (red, str(tmp_path / "clip.mp4"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"broken\.parquet"):
        open_source(str(tmp_path / "broken.parquet"), prompt="q")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"picture": "a.png", "text": "q"}], "it has: picture, text"),
        ([{"image": "a.png", "question": "q"}], "no column prompt.*it has: image, question"),
        ([{"image": "a", "id": 1, "prompt": "q"}, {"image": "b", "id": 1, "prompt": "q"}],
         "rows 1 and 2 have the same id 1"),
        ([{"image": "a", "id": 1, "prompt": "q"}, {"image": "b", "id": "1", "prompt": "q"}],
         "rows 1 and 2 have ids 1 and '1', which are the same in a table"),
        ([3], "line 1: no JSON object"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_all(rows: list[Any], message: str, tmp_path: Path) -> None:
    name = lines(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(ValueError, match=message):
        open_source(name)


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.jsonl").write_text('{"image": \n', encoding="utf-8")
    (tmp_path / "x.txt").write_text("a.png", encoding="utf-8")
    whole = tar(tmp_path / "whole.tar", a__png=png("red") * 400).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    for name, message in {
        "nowhere": "there is no ",
        "*.nothing": "nothing has such a name",
        "empty": "no picture in it",
        "x.jsonl": "line 1: no JSON",
        "x.txt": ".txt is nothing to take rows from",
        "no.tar": "no.tar cannot be read",
        "cut.tar": "cut.tar cannot be read",
        "s-{0..}.tar": "is no range",
        "s-{0..1": "not closed",
        "s-{0..1}.tar": "there is no .*s-0.tar",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / name), prompt="q")


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Piped:
        buffer = io.BytesIO(b'{"image": "a.png", "prompt": "q"}\n\n{"image": "-", "prompt": "q"}\n')

    monkeypatch.setattr("sys.stdin", Piped())
    source = open_source("-", relative=tmp_path)
    rows = source.rows
    assert source.name == "standard input"
    assert rows[0].images == (str(tmp_path / "a.png"),)
    assert rows[1].problem is not None


def test_the_fingerprint_is_of_what_is_asked(tmp_path: Path) -> None:
    one = Source("x", [Row(1, "q", ("a.png",))]).fingerprints
    assert one == Source("y", [Row(1, "q", ("a.png",))]).fingerprints
    for what, other in {
        "ids": Row(2, "q", ("a.png",)),
        "prompts": Row(1, "r", ("a.png",)),
        "pictures": Row(1, "q", ("b.png",)),
    }.items():
        now = Source("x", [other]).fingerprints
        assert {key for key in one if one[key] != now[key]} == {what}


def test_rows_without_any_prompt() -> None:
    bare = Source("x", [Row(1, "", ("a",), problem="it has no prompt")])
    with pytest.raises(ValueError, match="give --prompt"):
        check_prompts(bare)
