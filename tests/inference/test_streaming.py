"""Pieces of a stream, put together, are the tokenizer's text of all tokens at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from st3.inference.streaming import Streamer

WORDS = ["▁The", "The", "▁", "a", "▁b", ",", "\n", "<0xF0>", "<0x9F>", "<0x90>", "<0xB6>", "</s>"]


def of_bytes() -> Any:
    """A token for each byte, as GPT-2 has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def of_words() -> Any:
    """A space before a word is left out where the text begins, and bytes stand for rare letters."""
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "a"))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def streamed(tokenizer: Any, ids: list[int]) -> str:
    pieces: list[str] = []
    streamer = Streamer(tokenizer, pieces.append)
    streamer.put(torch.tensor([[5, 6, 7]]))  # the prompt
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert len(streamer.times) == len(ids)
    return "".join(pieces)


@pytest.mark.parametrize("text", ["one two\n  three\n\nfour", "a \N{DOG FACE} b\n" * 20, "é" * 40])
def test_letters_of_several_bytes(text: str) -> None:
    tokenizer = of_bytes()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ids = [alphabet.index(one) for (word, _) in letters.pre_tokenize_str(text) for one in word]
    assert tokenizer.decode(ids) == text
    assert streamed(tokenizer, ids) == text


TOKENIZER = of_words()


@given(
    st.lists(
        st.sampled_from([[0], [1], [3], [4], [5], [6], [7, 8, 9, 10], [2, 3]]), max_size=60
    ).map(lambda parts: [token for part in parts for token in part] + [11])
)
def test_spaces_before_words(ids: list[int]) -> None:
    assert streamed(TOKENIZER, ids) == TOKENIZER.decode(ids, skip_special_tokens=True)
