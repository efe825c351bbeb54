"""What trimming costs and saves: MACs, KV cache, time, against what the device could do.

`profile` does it all; `st3 profile` is its command line. Arithmetic needs neither weights nor a
GPU: fvcore counts over transformers' modules on the meta device. Time is measured or said to be
not measured, never guessed.
"""

from st3.profiling.profile import profile
from st3.profiling.report import Report, Row
from st3.profiling.shape import Workload

__all__ = ["Report", "Row", "Workload", "profile"]
