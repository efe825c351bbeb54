"""Suites that measure one machine: is it right there, and what does trimming save.

`st3 benchmark --output FOLDER` runs the one for this device. Every row is written as it ends; the
same command goes on where it was stopped. Beside them are studies with a command of their own.
"""
