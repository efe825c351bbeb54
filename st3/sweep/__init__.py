"""The S x R grid, tau, and peers: what each setting saves, and what it costs in fidelity."""
