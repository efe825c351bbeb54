"""The field's benchmarks: lmms-eval's official tasks, answered by `st3.batch`."""
