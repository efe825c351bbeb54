"""Greedy decoding as the commands document it, whatever a checkpoint asks of `generate`.

A checkpoint may ask for beams, penalties, no cache, dictionaries in place of tokens, and more.
transformers takes whatever a call leaves open from `model.generation_config`, even if the call has
a `GenerationConfig` of its own. So a call made here leaves nothing open that the checkpoint fills,
but for the ids of its special tokens; the model and its configuration stay as they are.
"""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from st3.inference.misfit import naming_misfits

_TOKENS = {"pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"}
_LENGTHS = {"max_length", "max_new_tokens"}
"""Every command has an option of its own for these."""
_PLAIN: dict[str, Any] = {
    "do_sample": False, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1,
    "use_cache": True, "return_dict_in_generate": False, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "output_logits": False,
    "early_stopping": False, "remove_invalid_values": False, "renormalize_logits": False,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0, "diversity_penalty": 0.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10, "target_lookbehind": 10,
}  # fmt: skip
"""What means nothing, where that is not None: transformers' own defaults."""
_LONGEST = 40  # characters of a value in a note


def decode(model: Any, inputs: dict[str, Any], *, endless: bool = False, **asked: Any) -> Any:
    """`model.generate`, greedy but for what the call asks for.

    Args:
        model: any that generates.
        inputs: of the prompt.
        endless: let no token end the answer.
        asked: as for `generate`.

    Returns:
        What `generate` does: int64 [B, n + new], unless a dictionary is asked for.

    Raises:
        ValueError: see `naming_misfits`.
    """
    plain = {key: _PLAIN.get(key) for key in _filled(model)} | {"do_sample": False}
    if endless:
        plain |= {"eos_token_id": None, "pad_token_id": 0}
    with naming_misfits():
        return model.generate(**inputs, **(plain | asked))


def set_aside(model: Any) -> dict[str, Any]:
    """What the checkpoint asks of `generate` and `decode` does not do, key by key."""
    return {
        key: value
        for key, value in _filled(model).items()
        if key not in _LENGTHS and value != _PLAIN.get(key)
    }


def describe(aside: dict[str, Any]) -> str:
    """The same in a line, long values cut."""
    return ", ".join(f"{key}={_short(repr(value))}" for key, value in aside.items())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _filled(model: Any) -> dict[str, Any]:
    """The options of `generate` that the checkpoint sets, special tokens left out."""
    options = vars(GenerationConfig()).keys() - _TOKENS - {"transformers_version"}
    return {
        key: value
        for key, value in vars(model.generation_config).items()
        if key in options and not key.startswith("_") and value is not None
    }
