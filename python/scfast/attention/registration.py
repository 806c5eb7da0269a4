"""Tells transformers of scfast's attention as soon as transformers is there, without importing it.

Importing transformers.modeling_utils takes 2.4 to 3.2 s, twice what ``import scfast`` may add to torch, and
many users of scfast never load a Hugging Face model. So registration waits for that import: at once if it has
happened, else through a finder that acts on this one module, once, and takes itself off ``sys.meta_path``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from scfast.attention.huggingface import register

_AWAITED = "transformers.modeling_utils"


class _RegisterAfterImport(MetaPathFinder):
    """Lets the other finders import the module, and registers when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Register now if transformers' models are imported, else when they are."""
    if _AWAITED in sys.modules:
        register()
    elif not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())
