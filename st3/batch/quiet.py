"""For workers, before anything else: what packages say while they are imported was said before."""

from __future__ import annotations

import logging

for _name in ("torchao", "torch.utils._pytree", "transformers"):
    logging.getLogger(_name).setLevel(logging.ERROR)
