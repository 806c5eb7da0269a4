"""Types of the C++ extension; csrc/module.cpp says what each function does."""

from typing import Any

import numpy as np

version: str

class Geometry:
    """Inputs of every attention kernel, as pointers, sizes and strides."""

    def __init__(
        self,
        *,
        dtype: int,
        q: int,
        k: int,
        q_strides: tuple[int, int],
        k_strides: tuple[int, int],
        sizes: tuple[int, int, int, int, int],
        cu_seqlens_q: int,
        cu_seqlens_k: int,
        work: int,
        n_cells: int,
        n_work: int,
        causal_offset: int,
        key_bias: int,
        bias_heads: int,
        scale: float,
        softcap: float,
        causal: bool,
        threads: int,
    ) -> None: ...

class Map:
    """The map that column sums and row statistics reduce; without arguments the probabilities."""

    def __init__(
        self,
        *,
        kind: int = 0,
        lse: int = 0,
        gram: int = 0,
        diagonal_linear: int = 0,
        diagonal_constant: int = 0,
        row_scale: int = 0,
        v: int = 0,
        d_out: int = 0,
        v_strides: tuple[int, int] = ...,
        d_strides: tuple[int, int] = ...,
        v_dim: int = 0,
    ) -> None: ...

class CosineRows:
    """Rows whose pairs are compared, as pointers, sizes and strides; y 0 compares x with itself."""

    def __init__(
        self,
        *,
        dtype: int,
        x: int,
        y: int,
        x_row: int,
        y_row: int,
        dim: int,
        cu_x: int,
        cu_y: int,
        n_cells: int,
        zeros: int,
        threads: int,
    ) -> None: ...

class RankInput:
    """Inputs of both passes of the tokeniser."""

    def __init__(
        self,
        *,
        indptr: int,
        indices: int,
        data: int,
        wide_indices: bool,
        count_type: int,
        n_cells: int,
        n_columns: int,
        n_counts: int,
        token_ids: int,
        factors: int,
        slots: int,
        slot_columns: int,
        n_slots: int,
        target: float,
        threads: int,
    ) -> None: ...

class BinInput:
    """Counts, and how they are binned."""

    def __init__(
        self,
        *,
        indptr: int,
        indices: int,
        data: int,
        wide_indices: bool,
        count_type: int,
        n_cells: int,
        mode: int,
        n_bins: int,
        scales: int,
        cutoff: float,
        levels: int,
        n_levels: int,
        seed: int,
        row_ids: int,
        uniforms: int,
        threads: int,
    ) -> None: ...

def attention_forward(
    where: Geometry,
    v: int,
    v_strides: tuple[int, int],
    v_dim: int,
    out: int,
    lse: int,
    received: int,
    entropy: int,
    max: int,
    /,
) -> None: ...
def attention_backward(
    where: Geometry,
    v: int,
    v_strides: tuple[int, int],
    v_dim: int,
    out: int,
    d_out: int,
    lse: int,
    dq: int,
    dk: int,
    dv: int,
    /,
) -> None: ...
def attention_colsum(
    where: Geometry,
    row_weights: int,
    n_weights: int,
    fusion: int,
    head_weights: int,
    residual: float,
    sums: int,
    row_sums: int,
    map: Map,
    /,
) -> None: ...
def attention_rowstats(
    where: Geometry,
    fusion: int,
    head_weights: int,
    map: Map,
    entropy: int,
    max: int,
    self_weight: int,
    row_sum: int,
    /,
) -> None: ...
def attention_matmul(
    where: Geometry, x: int, width: int, fusion: int, head_weights: int, out: int, /
) -> None: ...
def attention_compare(first: Geometry, second: Geometry, sums: int, /) -> None: ...
def attention_topk(
    where: Geometry, n: int, fusion: int, head_weights: int, values: int, keys: int, /
) -> None: ...
def attention_scatter(
    where: Geometry,
    targets: int,
    sources: int,
    query_order: int,
    head_weights: int,
    out: int,
    wide: bool,
    out_row: int,
    first_source: int,
    n_sources: int,
    /,
) -> None: ...
def cosine_histogram(
    where: CosineRows, bins: int, edges: int, counts: int, low: int, high: int, sum: int, squares: int, /
) -> None: ...
def cosine_matrix(where: CosineRows, out: int, first: int, out_row: int, /) -> None: ...
def cosine_topk(where: CosineRows, k: int, values: int, indices: int, /) -> None: ...
def cosine_threshold(
    where: CosineRows, threshold: float, most: int, indptr: int, /
) -> tuple[int, np.ndarray | None, np.ndarray | None]: ...
def rank_values(
    input: RankInput, limit: int, n_expressed: int, n_in_vocabulary: int, token_ids: int, columns: int, /
) -> None: ...
def bin_values(input: BinInput, bins: int, states: int, /) -> None: ...
def cuda_build() -> dict[str, Any] | None: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
