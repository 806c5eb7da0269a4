"""The command ``scfast``: one module per command, imported only when it runs.

The group itself, and what ``scfast --help`` says, is :mod:`scfast_cli`, which comes without torch.
"""

from scfast_cli import COMMANDS, cli, main

__all__ = ["COMMANDS", "cli", "main"]
