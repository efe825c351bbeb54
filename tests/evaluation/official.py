"""Tiny data sets of the schema that the official tasks read, where `datasets` finds them.

It looks for a folder of the data set's name in the working folder before it asks the Hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from st3.demo.held_out import held_out

TASKS = (
    "scienceqa_img", "mmmu_val", "mmbench_en_dev_static",
    "coco2017_cap_val", "flickr30k_test", "nocaps_val",
)  # fmt: skip
TEXT, WHOLE, PICTURE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()


def make_data(folder: Path, documents: int = 4) -> Path:
    """All six data sets, so many documents each; the folder to work in."""
    scenes = [one for one, _ in zip(held_out(documents, 0), range(documents), strict=False)]
    pictures = [one.picture for one in scenes]
    questions = [one.question.prompt for one in scenes]
    captions = [one.question.answer for one in scenes]
    places = range(documents)
    letters = ["ABCD"[n % 3] for n in places]
    _write(
        folder / "lmms-lab-encoder" / "ScienceQA", "ScienceQA-IMG", "test",
        {
            "image": (PICTURE, pictures), "question": (TEXT, questions),
            "choices": ([TEXT], [["red", "blue", "green"]] * documents),
            "answer": (WHOLE, [n % 3 for n in places]),
            "hint": (TEXT, ["" if n % 2 else "Shapes on a plane." for n in places]),
            **{
                key: (TEXT, ["none"] * documents)
                for key in ("task", "grade", "subject", "topic", "category", "skill", "lecture",
                            "solution")
            },
        },
    )  # fmt: skip
    _write(
        folder / "lmms-lab-encoder" / "MMMU", "default", "validation",
        {
            "id": (TEXT, [f"validation_Accounting_{n + 1}" for n in places]),
            "question": (TEXT, [
                f"{question} <image 1>" + (" and <image 2>?" if n % 2 else "")
                for n, question in enumerate(questions)
            ]),
            "options": (TEXT, ["[]" if n == 2 else "['red', 'blue', 'green']" for n in places]),
            "explanation": (TEXT, [""] * documents),
            "image_1": (PICTURE, pictures),
            "image_2": (PICTURE, [pictures[0] if n % 2 else None for n in places]),
            **{f"image_{k}": (PICTURE, [None] * documents) for k in range(3, 8)},
            "img_type": (TEXT, ["['Diagrams']"] * documents),
            "answer": (TEXT, ["12" if n == 2 else letters[n] for n in places]),
            "topic_difficulty": (TEXT, ["Easy"] * documents),
            "question_type": (TEXT, ["open" if n == 2 else "multiple-choice" for n in places]),
            "subfield": (TEXT, ["Shapes"] * documents),
        },
    )  # fmt: skip
    documents = min(documents, 4)  # answers of a model that does not end them are long there
    places = range(documents)
    half = (documents + 1) // 2  # the others ask the same with other options
    _write(
        folder / "lmms-lab-encoder" / "MMBench", "en", "dev",
        {
            "index": (WHOLE, [n % half + 1_000_000 * (n // half) for n in places]),
            "question": (TEXT, [questions[n % half] for n in places]),
            "hint": (TEXT, ["nan"] * documents),
            "answer": (TEXT, ["AB"[n // half] for n in places]),
            "A": (TEXT, ["cat", "dog", "cow"][:1] * half + ["dog"] * (documents - half)),
            "B": (TEXT, ["dog"] * half + ["cat"] * (documents - half)),
            "C": (TEXT, ["nan"] * documents), "D": (TEXT, ["nan"] * documents),
            "category": (TEXT, ["spatial"] * documents), "image": (PICTURE, pictures[:documents]),
            "source": (TEXT, ["made"] * documents), "L2-category": (TEXT, ["space"] * documents),
            "comment": (TEXT, ["nan"] * documents), "split": (TEXT, ["dev"] * documents),
        },
    )  # fmt: skip
    documents, places = len(pictures), range(len(pictures))
    five = [[caption, "a picture of shapes"] for caption in captions]
    _write(
        folder / "lmms-lab-encoder" / "COCO-Caption2017", "default", "val",
        {
            "question_id": (TEXT, [f"COCO_val_{n + 1:012d}.jpg" for n in places]),
            "image": (PICTURE, pictures), "question": (TEXT, ["Caption."] * documents),
            "answer": ([TEXT], five), "id": (WHOLE, list(places)),
            "license": (WHOLE, [1] * documents),
            **{
                key: (TEXT, [""] * documents) for key in ("file_name", "coco_url", "date_captured")
            },
            "height": (WHOLE, [192] * documents), "width": (WHOLE, [192] * documents),
        },
    )  # fmt: skip
    _write(
        folder / "lmms-lab-encoder" / "flickr30k", "default", "test",
        {
            "image": (PICTURE, pictures), "caption": ([TEXT], five),
            "sentids": ([TEXT], [["0", "1"]] * documents), "split": (TEXT, ["test"] * documents),
            "img_id": (TEXT, [str(n + 1) for n in places]),
            "filename": (TEXT, [f"{n}.jpg" for n in places]),
        },
    )  # fmt: skip
    _write(
        folder / "lmms-lab-encoder" / "NoCaps", "default", "validation",
        {
            "image": (PICTURE, pictures), "image_id": (WHOLE, [n + 1 for n in places]),
            **{
                f"image_{key}": (TEXT, [""] * documents)
                for key in ("coco_url", "date_captured", "file_name", "open_images_id")
            },
            **{f"image_{key}": (WHOLE, [1] * documents) for key in ("height", "width", "license")},
            "annotations_ids": ([WHOLE], [[0, 1]] * documents),
            "annotations_captions": ([TEXT], five),
        },
    )  # fmt: skip
    _write(
        folder / "lmms-lab-encoder" / "SEED-Bench", "default", "test",
        {
            "image": ([PICTURE], [[picture] for picture in pictures]),
            "question": (TEXT, questions),
            "choice_a": (TEXT, ["red"] * documents),
            "choice_b": (TEXT, ["a blue circle"] * documents),
            "choice_c": (TEXT, ["three green squares"] * documents),
            "choice_d": (TEXT, ["left"] * documents),
            "answer": (TEXT, ["ABCD"[n % 4] for n in places]),
            **{key: (TEXT, ["image"] * documents) for key in ("data_type", "data_id")},
            "question_id": (TEXT, [str(n) for n in places]),
            "question_type_id": (WHOLE, [1] * documents),
            "segment": ([WHOLE], [[0]] * documents),
        },
    )  # fmt: skip
    return folder


def _write(
    folder: Path, config: str, split: str, columns: dict[str, tuple[Any, list[Any]]]
) -> None:
    features = datasets.Features(
        {
            name: datasets.Sequence(kind[0]) if isinstance(kind, list) else kind
            for name, (kind, _) in columns.items()
        }
    )
    values = {name: values for name, (_, values) in columns.items()}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_dict(values, features=features)
    data.to_parquet(folder / "data" / f"{split}.parquet")
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n"
        f"    path: data/{split}.parquet\n---\n",
        encoding="utf-8",
    )
