"""The page as a Hugging Face Space: the demo model, behind the address that Spaces forward."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import st3
from st3.page.asking import Host
from st3.page.start import serve

model, processor = st3.load("demo", device="cpu")
serve(Host(model, processor, "demo"), address="0.0.0.0", port=7860, limit=256)
