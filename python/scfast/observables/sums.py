"""What scores of a rollout must sum to, and the refusal of those that do not."""

from __future__ import annotations

import torch

from scfast.packing import Packing

#: How far a cell's scores may sum from their readout's weight, per layer swept. Measured on a CPU with cells
#: of up to 2048 tokens and six layers: at most 1.2e-7 per layer in every dtype, since probabilities are
#: normalised in float32.
SUM_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def sums_per_cell(rows: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Sums over the tokens of each cell, float64: [..., T] -> [..., B]."""
    cell = packing.cell_of_query().to(rows.device)
    zeros = torch.zeros((*rows.shape[:-1], packing.n_cells), dtype=torch.float64, device=rows.device)
    return zeros.index_add_(-1, cell, rows.double())


def check_sums(
    rows: torch.Tensor,
    packing: Packing,
    expected: torch.Tensor,
    scale: torch.Tensor,
    tolerance: float,
    what: str = "rollout",
) -> None:
    """Refuse scores that do not sum to the weight of their readout in every cell.

    Parameters
    ----------
    rows
        Scores [N, R, T].
    packing
        Where the cells lie.
    expected, scale
        float64 [R, B]: sums of the readouts' weights and of their absolute values.
    tolerance
        Error allowed, relative to ``scale`` or 1.
    what
        Name of the scores, for the message.

    Raises
    ------
    ValueError
        Wrong sums, or NaN.
    """
    sums = sums_per_cell(rows, packing).cpu()
    error = (sums - expected).abs()
    wrong = ~(error <= tolerance * scale.clamp(min=1.0))  # NaN counts as wrong
    if not wrong.any():
        return
    step, row, cell = (int(i) for i in wrong.nonzero()[0])
    got = sums[step, row, cell].item()
    if got != got:
        raise ValueError(
            f"{what} scores of cell {cell} are NaN: its q or k holds NaN or infinity; look at the "
            "model's weights, its input, and overflow in half precision"
        )
    raise ValueError(
        f"{what} scores of cell {cell} sum to {got:.9g}, expected {expected[row, cell].item():.6g} "
        f"within {tolerance:.1g}: the attention is not row-stochastic; please report the model and the "
        "inputs"
    )
