"""At vLLM's start: models are registered, settings judged, and what cannot be is refused.

vLLM asks a table, by architecture, for what must hold of a configuration; the plug-in puts itself
before whatever stood there. What it refuses ends the process with one line and exit code 1: vLLM
would make a page of any other error.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from st3.serving.vllm.families import FAMILIES, Family, has_class_token
from st3.serving.vllm.settings import Settings, read_settings

OLDEST = (0, 30)
"""Of vLLM, major and minor: older ones lack what the plug-in hangs on."""


def hook_in() -> None:
    """Make this process's vLLM know the plug-in.

    Raises:
        SystemExit: it is too old, and trimming is asked for on the command line.
    """
    import vllm
    from vllm.logger import init_logger

    if why := too_old(vllm.__version__):
        if any('"st3"' in argument for argument in sys.argv):
            raise SystemExit(why)
        init_logger("vllm.st3").warning("%s; pictures are not trimmed", why)
        return

    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for architecture in FAMILIES:
        ModelRegistry.register_model(architecture, f"st3.serving.vllm.models:{architecture}")
    table: Any = MODELS_CONFIG_MAP
    for architecture in ModelRegistry.get_supported_archs():
        table[architecture] = Judge(architecture, table.get(architecture))


def too_old(version: str) -> str | None:
    """Why a version of vLLM cannot be; None if it can, or has no number (built from source)."""
    numbers = version.split("+")[0].split(".")[:2]
    if not all(number.isdecimal() for number in numbers):
        return None
    if (found := tuple(map(int, numbers))) >= OLDEST or found == (0, 0):
        return None
    needed = ".".join(map(str, OLDEST))
    return f"st3: vLLM {version} is too old for the plug-in: it needs {needed} or later"


class Judge:
    """What must hold of one architecture's configuration.

    Args:
        architecture: its name.
        before: what vLLM has for it, if anything.
    """

    def __init__(self, architecture: str, before: Any) -> None:
        self.architecture, self.before = architecture, before

    def verify_and_update_model_config(self, model_config: Any) -> None:
        """Called when a model's configuration has been made.

        Raises:
            SystemExit: trimming is asked for, and cannot be.
        """
        if self.before is not None:
            self.before.verify_and_update_model_config(model_config)
        config = model_config.hf_config
        try:
            settings = read_settings(config)
        except ValueError as error:
            refuse(error)
        if settings is None:
            return
        multimodal = model_config.multimodal_config
        if multimodal is None:
            refuse(f"st3: {self.architecture} takes no pictures: there is nothing to trim")
        family = FAMILIES.get(self.architecture)
        if family is None:
            from vllm.logger import init_logger

            init_logger("vllm.st3").warning(
                "st3: %s is served untrimmed: the plug-in trims %s",
                self.architecture, ", ".join(FAMILIES),
            )  # fmt: skip
            return
        if multimodal.is_multimodal_pruning_enabled():
            refuse("st3: leave --video-pruning-rate out: pictures and videos cannot both be pruned")
        if why := misfit(settings, family, config):
            refuse(why)
        if settings.original and not family.on_a_grid:
            # vLLM then asks the model for positions; its rotary embedding stays as it is.
            config.mrope_section = [1, 1, 1]

    def verify_and_update_config(self, vllm_config: Any) -> None:
        """Called when everything else has been configured, too.

        Raises:
            SystemExit: trimming does not go with it.
        """
        if self.before is not None:
            self.before.verify_and_update_config(vllm_config)
        settings = read_settings(vllm_config.model_config.hf_config)
        if settings is None or self.architecture not in FAMILIES:
            return
        if vllm_config.compilation_config.cudagraph_mm_encoder:
            refuse("st3: leave cudagraph_mm_encoder off: its graphs pass the choice of tokens by")
        stages = vllm_config.parallel_config.pipeline_parallel_size
        if settings.original and stages > 1:
            refuse(
                "st3: original positions need the decoder in one stage, and "
                f"--pipeline-parallel-size is {stages}: {_instead(FAMILIES[self.architecture])}"
            )


def misfit(settings: Settings, family: Family, config: Any) -> str | None:
    """Why settings do not fit a model; None if they do."""
    if family.on_a_grid and not settings.original:
        return (
            "st3: positions=compact is for models whose positions have one axis; in this one they "
            "lie on a grid: take positions=original"
        )
    if settings.needs_tower and not (family.module == "llava" and has_class_token(config)):
        return (
            f"st3: method {settings.method.name!r} needs a vision tower with a class token and one "
            "crop a picture, as LLaVA-1.5's: take divprune, dpp or norm"
        )
    return None


def _instead(family: Family) -> str:
    if family.on_a_grid:
        return "take 1, with --tensor-parallel-size for more devices"
    return "take 1, or positions=compact"


def refuse(why: object) -> NoReturn:
    """End the process.

    Raises:
        SystemExit: always, with the line.
    """
    raise SystemExit(str(why))
