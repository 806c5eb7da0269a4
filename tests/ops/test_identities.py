"""What must hold between the ops, and between them and torch's own attention, whatever the inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from scfast import Packing
from scfast.ops import (
    attention_colsum,
    attention_forward,
    attention_matmul,
    attention_rowstats,
    attention_scatter,
)
from tests.ops.helpers import Case, make_case, row_weights

BACKENDS = ("cpu", "reference")
OPTIONS: list[dict[str, Any]] = [{}, {"causal": True}, {"scale": 0.3}]
LENGTHS = ([49, 0, 1, 130, 7], [49, 3, 1, 150, 20])


def case_of(options: dict[str, Any]) -> Case:
    return make_case(*LENGTHS, heads=4, kv_heads=2, dim=16, dim_v=8, **options)


def sdpa(case: Case, v: torch.Tensor) -> torch.Tensor:
    """[Tq, H, Dv] float64 by torch's scaled_dot_product_attention, cell by cell; v [Tk, H, Dv]."""
    parts, packing = [], case.packing
    group = case.q.shape[1] // case.k.shape[1]
    cells = zip(
        packing.split_q(case.q.double()), packing.split_k(case.k.double()), packing.split_k(v), strict=True
    )
    for offset, (q, k, values) in zip(packing.causal_offset.tolist(), cells, strict=True):
        mask = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool)
        mask = mask.tril(offset) if case.options.get("causal") else mask
        heads_first = (
            q.transpose(0, 1),
            k.transpose(0, 1).repeat_interleave(group, dim=0),
            values.transpose(0, 1),
        )
        out = scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=case.options.get("scale"))
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_sdpa(backend: str, options: dict[str, Any]) -> None:
    case = case_of(options)
    got = attention_forward(case.q, case.k, case.v, case.packing, backend=backend, **options)
    close(got.out, sdpa(case, case.v.double().repeat_interleave(2, dim=1)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_product_with_a_matrix_is_sdpa_of_it_as_values(backend: str, options: dict[str, Any]) -> None:
    case = case_of(options)
    x = torch.randn(case.packing.total_k, 20)
    got = attention_matmul(case.q, case.k, case.packing, x, heads="none", backend=backend, **options)
    expected = sdpa(case, x.double()[:, None].expand(-1, 4, -1))
    close(got, expected)
    fused = attention_matmul(case.q, case.k, case.packing, x, backend=backend, **options)
    close(fused, expected.mean(1))


@pytest.mark.parametrize("heads", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_products_and_column_sums_are_transposes(backend: str, options: dict[str, Any], heads: str) -> None:
    case = case_of(options)
    r, x = row_weights(case.packing, 3, signed=True), torch.randn(case.packing.total_k, 5)
    fusion = {"heads": heads, "head_weights": torch.tensor([1.0, 2.0, 0.5, 3.0]), "backend": backend}
    sums = attention_colsum(case.q, case.k, case.packing, r, **fusion, **options).double()  # [R, Hout, Tk]
    product = attention_matmul(case.q, case.k, case.packing, x, **fusion, **options).double()
    product = product.reshape(r.shape[1], -1, 5)  # [Tq, Hout, W]
    close(sums @ x.double(), torch.einsum("ri,ihw->rhw", r.double(), product))  # (r^T A) x = r^T (A x)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_by_id_are_products_with_one_hot_rows(backend: str, options: dict[str, Any]) -> None:
    case = case_of(options)
    random = torch.Generator().manual_seed(9)
    source = torch.randint(-1, 20, (case.packing.total_k,), generator=random)
    target = torch.randint(-1, 15, (case.packing.total_q,), generator=random)
    out = torch.zeros(20, 15, dtype=torch.float64)
    attention_scatter(case.q, case.k, case.packing, source, out, ids_q=target, backend=backend, **options)
    of_source, of_target = ((x[:, None] == torch.arange(n)).float() for x, n in ((source, 20), (target, 15)))
    read = attention_matmul(case.q, case.k, case.packing, of_source, backend=backend, **options)  # [Tq, 20]
    close(out, read.double().T @ of_target.double())
    received = attention_colsum(
        case.q, case.k, case.packing, (target >= 0).float(), backend=backend, **options
    )
    close(out.sum(1), received[0, 0].double() @ of_source.double())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_column_sums_are_the_gradient_of_sdpa(backend: str, options: dict[str, Any]) -> None:
    case = case_of(options)
    r = row_weights(case.packing, 1)[0]
    v = torch.zeros(case.packing.total_k, 4, 1, dtype=torch.float64, requires_grad=True)
    sdpa(case, v).backward(r.double()[:, None, None].expand(-1, 4, 1))
    got = attention_colsum(case.q, case.k, case.packing, r, heads="none", backend=backend, **options)
    close(got[0].T, v.grad[..., 0])


@pytest.mark.parametrize("heads", ["mean", "sum", "max", "min", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_column_sums_and_row_sums_hold_the_same_mass(
    backend: str, options: dict[str, Any], heads: str
) -> None:
    case = case_of(options)
    r = row_weights(case.packing, 3, signed=True)
    fusion = {
        "heads": heads,
        "head_weights": torch.tensor([1.0, 2.0, 0.5, 3.0]),
        "backend": backend,
        **options,
    }
    sums, rho = attention_colsum(case.q, case.k, case.packing, r, row_sums=True, **fusion)
    close(sums.double().sum(-1), r.double() @ rho.double())
    close(attention_rowstats(case.q, case.k, case.packing, **fusion).row_sum, rho)
    per_cell = [x.double().sum(0) for x in case.packing.split_q(rho)]
    close(attention_rowstats(case.q, case.k, case.packing, **fusion).total, torch.stack(per_cell))


@pytest.mark.parametrize("heads", ["mean", "sum", "max", "min", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rollout_step_keeps_the_mass(backend: str, heads: str) -> None:
    case = make_case([49, 0, 1, 130], heads=3, dim=16)
    r = row_weights(case.packing, 2)
    got = attention_colsum(case.q, case.k, case.packing, r, heads=heads, residual=0.3, backend=backend)
    for step, weights in zip(case.packing.split_q(got, dim=-1), case.packing.split_q(r, dim=-1), strict=True):
        close(step.sum(-1), weights.sum(-1)[:, None].expand(step.shape[:2]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rollout_steps_by_hand(backend: str) -> None:
    case = make_case([40], heads=2, dim=8)
    r = torch.rand(1, 40)
    rows = torch.eye(40)
    maps = attention_colsum(case.q, case.k, case.packing, rows, heads="none", backend=backend)  # [i, H, j]
    for heads, a in {
        "mean": maps.mean(1),
        "max": maps.amax(1),
        "min": maps.amin(1),
        "sum": maps.sum(1),
    }.items():
        mixed = 0.5 * a + 0.5 * torch.eye(40)
        expected = r @ (mixed / mixed.sum(1, keepdim=True))
        got = attention_colsum(case.q, case.k, case.packing, r, heads=heads, residual=0.5, backend=backend)
        close(got[:, 0], expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_entropy_is_lse_minus_the_mean_score(backend: str, options: dict[str, Any]) -> None:
    case = case_of(options)
    averaged = attention_forward(
        case.q, case.k, case.k, case.packing, backend=backend, entropy=True, **options
    )
    mean_score = (case.q * averaged.out).sum(-1) * options.get("scale", 16**-0.5)
    close(averaged.entropy, averaged.lse - mean_score)
    stats = attention_rowstats(case.q, case.k, case.packing, backend=backend, **options)
    close(stats.entropy, averaged.entropy)


@pytest.mark.parametrize("options", [*OPTIONS, {"softcap": 2.0, "causal": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ops_agree_with_each_other(backend: str, options: dict[str, Any]) -> None:
    case = case_of(options)
    inputs, options = (case.q, case.k), {"backend": backend, **options}
    full = attention_forward(*inputs, case.v, case.packing, received=True, entropy=True, max=True, **options)
    ones = torch.ones(case.packing.total_q)
    close(full.received, attention_colsum(*inputs, case.packing, ones, heads="none", **options)[0])
    stats = attention_rowstats(*inputs, case.packing, **options)
    close(full.entropy, stats.entropy)
    close(full.max, stats.max)
    heads = attention_colsum(*inputs, case.packing, ones, heads="none", **options)
    close(attention_colsum(*inputs, case.packing, ones, **options), heads.mean(1, keepdim=True))
    close(attention_colsum(*inputs, case.packing, ones, heads="sum", **options), heads.sum(1, keepdim=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_given_map_passes_through(backend: str) -> None:
    p = torch.rand(1, 20, 20).softmax(-1)  # q = log P, k = I, scale 1
    q, k, packing = (
        p.log().transpose(0, 1).contiguous(),
        torch.eye(20)[:, None, :],
        Packing.from_lengths([20]),
    )
    received = attention_colsum(q, k, packing, torch.eye(20), scale=1.0, backend=backend)
    close(received[:, 0], p[0])
    out = attention_forward(q, k, k, packing, scale=1.0, backend=backend).out
    close(out[:, 0], p[0])


@pytest.mark.parametrize("options", [*OPTIONS, {"bias": 1}, {"bias": 4, "causal": True}], ids=str)
@pytest.mark.parametrize("offsets", [None, [-2, 0, 3, -200, 5]], ids=str)
def test_gradients_are_those_of_sdpa(options: dict[str, Any], offsets: list[int] | None) -> None:
    options = dict(options)
    bias = options.pop("bias", None)
    case = make_case(*LENGTHS, heads=4, kv_heads=2, dim=16, dim_v=8, causal_offset=offsets, **options)
    if bias:
        case.options["key_bias"] = torch.randn(case.packing.total_k, bias)[:, 0 if bias == 1 else slice(None)]
    inputs = [x.requires_grad_() for x in (case.q, case.k, case.v)]
    got = attention_forward(*inputs, case.packing, received=True, entropy=True, **case.options)
    plain = attention_forward(
        *(x.detach() for x in inputs), case.packing, received=True, entropy=True, **case.options
    )
    close(got.out, plain.out)
    for name in ("lse", "received", "entropy"):
        assert torch.equal(getattr(got, name), getattr(plain, name)), name
        assert not getattr(got, name).requires_grad
    direction = torch.randn(got.out.shape)
    ours = torch.autograd.grad(got.out, inputs, direction)
    expected = torch.autograd.grad(dense_attention(case), inputs, direction)
    for name, x, y in zip("qkv", ours, expected, strict=True):
        assert torch.isfinite(x).all(), f"gradient of {name}"
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=f"gradient of {name}")


def dense_attention(case: Case) -> torch.Tensor:
    """[Tq, H, Dv] as one dense softmax over the whole batch with a mask, differentiable."""
    q, packing = case.q.double(), case.packing
    k, v = (x.double().repeat_interleave(2, dim=1) for x in (case.k, case.v))
    cell_k = torch.repeat_interleave(torch.arange(packing.n_cells), torch.tensor(packing.lengths_k))
    cell_q = packing.cell_of_query()
    seen = cell_q[:, None] == cell_k[None]
    if case.options.get("causal"):
        row = torch.arange(packing.total_q) - torch.tensor(packing.starts_q)[cell_q]
        column = torch.arange(packing.total_k) - torch.tensor(packing.starts_k)[cell_k]
        seen &= column[None] <= (row + packing.causal_offset[cell_q])[:, None]
    score = torch.einsum("ihd,jhd->hij", q, k) * (case.options.get("scale") or 16**-0.5)
    if case.options.get("key_bias") is not None:
        score = score + case.options["key_bias"].double().reshape(packing.total_k, -1).T[:, None]
    weight = torch.where(seen, score.clamp(max=50).exp(), 0.0)
    p = weight / weight.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.einsum("hij,jhd->ihd", p, v).to(case.q.dtype)


def test_without_keys_gradients_are_zero() -> None:
    case = make_case([3, 0], [0, 2], heads=1, dim=4)
    q = case.q.requires_grad_()
    out = attention_forward(q, case.k, replace(case).v, case.packing).out
    assert (torch.autograd.grad(out.sum(), q)[0] == 0).all()
