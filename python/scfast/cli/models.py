"""``scfast models``."""

from __future__ import annotations

import click

from scfast.cli.console import Console, json_option


@click.command("models")
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@json_option
def command(kinds: tuple[str, ...], as_json: bool | None) -> None:
    """Which models are supported, the files they need, their context, and the memory that a cell takes.

    Memory is that of one cell at full length, float32: with all attention maps, as other tools hold them, and with
    scfast, which keeps q and k of all layers instead.

    \b
    Examples:
      scfast models
      scfast models geneformer
      scfast models --json | jq .
    """  # noqa: D301
    from scfast.models.cards import cards

    known = cards()
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"there is no model {unknown[0]!r}; scfast.models.load knows {', '.join(known)}")
    console = Console(bool(as_json))  # a list is for reading, also when it is piped into a file
    for kind in kinds or known:
        card = known[kind]
        console.event(
            "model", None, kind=kind, title=card.title, files=dict(card.files), notes=card.notes,
            tokenises=card.tokenises,
            checkpoints=[
                {**vars(shape), "bytes_with_maps": shape.bytes_with_maps, "bytes_with_scfast": shape.bytes_with_scfast}
                for shape in card.shapes
            ],
        )  # fmt: skip
        how = (
            f"--model {kind}:FOLDER"
            if card.tokenises
            else f"scfast.models.load({kind!r}, FOLDER, tokenize=...)"
        )
        console.title(f"{card.title}: {how}")
        console.fields(dict(card.files))
        for note in card.notes:
            console.note(note)
        if card.shapes:
            console.table(
                ["checkpoint", "layers", "heads", "head dim", "context", "maps", "scfast"],
                [
                    [
                        shape.name, shape.n_layers, shape.n_heads, shape.head_dim, shape.context,
                        _amount(shape.bytes_with_maps), _amount(shape.bytes_with_scfast),
                    ]
                    for shape in card.shapes
                ],
            )  # fmt: skip


def _amount(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
