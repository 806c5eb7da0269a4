"""Which hidden states an observable reads."""

from __future__ import annotations

from collections.abc import Sequence


def state_numbers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    """States after so many layers, 0 to N; None: all; negative numbers count from the end.

    Raises
    ------
    ValueError
        When the model has no such state.

    Examples
    --------
    >>> state_numbers(None, 3), state_numbers([-1, 0], 3)
    ((0, 1, 2, 3), (3, 0))
    """
    given = tuple(range(n_layers + 1)) if layers is None else layers
    for layer in given:
        if not -n_layers - 1 <= layer <= n_layers:
            raise ValueError(f"layer {layer} does not exist: the model has states 0 to {n_layers}")
    return tuple(int(layer) % (n_layers + 1) for layer in given)
