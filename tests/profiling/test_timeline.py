"""When what ran: spans, gaps, and kinds of a GPU's kernels by their names."""

from __future__ import annotations

import pytest

from st3.profiling.timeline import _laid_out, kind_of_kernel


def test_spans_and_gaps() -> None:
    """Two that overlap and one after a gap: 6 of 10 ms are busy."""
    events = [(1000.0, 4000.0, "matmul"), (3000.0, 5000.0, "other"), (9000.0, 11000.0, "copies")]
    found = _laid_out(events)
    assert found["span_ms"] == 10
    assert found["idle_share"] == pytest.approx(0.4)
    assert found["events"] == [[0, 3, "matmul"], [2, 2, "other"], [8, 2, "copies"]]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_32x6_tn", "matmul"),
        ("nvjet_hsh_192x192_64x3_2x1_v_bz_coopB_TNT", "matmul"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<...>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel", "sorting"),
        ("void at::native::CatArrayBatchedCopy<...>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, silu>", "other"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str) -> None:
    assert kind_of_kernel(name) == kind
