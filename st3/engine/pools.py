"""Where the tokens of pools are: what a selector chooses among, in the rows of a batch."""

from __future__ import annotations

from functools import lru_cache

import torch


class Table:
    """The places of pools, as tensors that stay where they are.

    Attributes:
        row: int64 [G], the prompt of each pool. `ordinal`: int64 [G, n], a token's number among
            its row's visual tokens; `valid`: bool [G, n], where there is one.
        pool, column: int64 [B, N], where each visual token of a row is.
    """

    def __init__(self, rows: tuple[tuple[int, ...], ...], device: torch.device) -> None:
        pools = [(row, size) for row, sizes in enumerate(rows) for size in sizes]
        widest = max(size for _, size in pools)
        most = max(map(sum, rows))
        ordinal = torch.zeros(len(pools), widest, dtype=torch.long)
        valid = torch.zeros(len(pools), widest, dtype=torch.bool)
        pool = torch.zeros(len(rows), most, dtype=torch.long)
        column = torch.zeros_like(pool)
        begin = [0] * len(rows)
        for number, (row, size) in enumerate(pools):
            first = begin[row]
            ordinal[number, :size] = torch.arange(first, first + size)
            valid[number, :size] = True
            pool[row, first : first + size] = number
            column[row, first : first + size] = torch.arange(size)
            begin[row] += size
        of = torch.tensor([row for row, _ in pools])
        self.row, self.ordinal, self.valid, self.pool, self.column = (
            (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
            for x in (of, ordinal, valid, pool, column)
        )

    @staticmethod
    @lru_cache(maxsize=32)
    def of(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Table:
        """The table of pools of these sizes in each row."""
        return Table(rows, device)
