"""Run every op on a GPU once, on small shapes with ragged edges: what compute-sanitizer watches."""

from __future__ import annotations

import torch

from scfast import Packing, ops

#: Cells without tokens, of one token, and around the tile sizes; more queries than one tile in one of them.
LENGTHS = (1, 0, 33, 130, 64, 65)
HEADS, KEY_HEADS, HEAD_DIM = 4, 2, 64


def run(dtype: torch.dtype, causal: bool) -> None:
    """All ops, with every statistic and every fusion of heads."""
    random = torch.Generator().manual_seed(0)
    packing = Packing.from_lengths(LENGTHS, device="cuda")

    def tensor(heads: int) -> torch.Tensor:
        return torch.randn((sum(LENGTHS), heads, HEAD_DIM), generator=random).to("cuda", dtype)

    q, k, v, d_out = tensor(HEADS), tensor(KEY_HEADS), tensor(KEY_HEADS), tensor(HEADS)
    full = ops.attention_forward(q, k, v, packing, causal=causal, received=True, entropy=True, max=True)
    ops.attention_backward(d_out, q, k, v, full.out, full.lse, packing, causal=causal)
    for heads in ("mean", "max", "none"):
        ops.attention_colsum(q, k, packing, heads=heads, causal=causal)
        ops.attention_rowstats(q, k, packing, heads=heads, causal=causal)
        ops.attention_topk(q, k, packing, 70, heads=heads, causal=causal)
    for heads in ("mean", "none"):
        ops.attention_matmul(q, k, packing, v.flatten(1).float(), heads=heads, causal=causal)
    ops.attention_compare(q, k, d_out, v, packing, causal=causal)
    ids = torch.randint(-1, 50, (sum(LENGTHS),), generator=random).to("cuda")  # some repeat within a cell
    ops.attention_scatter(q, k, packing, ids, torch.zeros((50, 50), device="cuda"), causal=causal)
    gram = torch.einsum("jhd,jgd->jhg", d_out.float(), d_out.float())
    norm = ops.Norm(gram, gram[:, 0], gram[:, 0, 0], gram[:, 1, 1])
    for map in (norm, ops.Relevance(v, d_out), ops.Relevance(v, d_out, lse=full.lse)):
        for heads in (None, "none"):
            if map is norm and heads:
                map = ops.Norm(gram)
            ops.attention_colsum(q, k, packing, map=map, heads=heads, causal=causal)
            ops.attention_rowstats(q, k, packing, map=map, heads=heads, causal=causal)
    torch.cuda.synchronize()


def run_cosines(dtype: torch.dtype) -> None:
    """Rows with themselves and with others, as a whole and within cells; bins in windows and one by one."""
    random = torch.Generator().manual_seed(0)
    packing = Packing.from_lengths(LENGTHS, device="cuda")
    x, y = torch.randn((2, sum(LENGTHS), 70), generator=random).to("cuda", dtype)
    for others in (None, y):
        for cells in (None, packing):
            for bins in (200, 5000):
                ops.cosine_histogram(x, others, packing=cells, bins=bins)
            ops.cosine_matrix(x, others, packing=cells)
            ops.cosine_threshold(x, 0.1, others, packing=cells)
            for k in (16, 140):
                ops.cosine_topk(x, k, others, packing=cells)
    torch.cuda.synchronize()


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device")
    for dtype in (torch.bfloat16, torch.float32):
        for causal in (False, True):
            run(dtype, causal)
            print(f"{dtype}, causal={causal}: ran", flush=True)
        run_cosines(dtype)
        print(f"{dtype}, cosines: ran", flush=True)


if __name__ == "__main__":
    main()
