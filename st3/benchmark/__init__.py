"""A suite that measures one machine: what trimming saves there, the most telling cells first.

`python -m st3.benchmark --output FOLDER` runs it, on a GPU or, with --tiny, as a dry run anywhere.
Every row is written as it ends; the same command goes on where it was stopped.
"""
