"""`python -m st3.demo.training --output FOLDER`, see `st3.demo.training.train`."""

import typer

from st3.demo.training.train import main

typer.run(main)
