"""Triton's interpreter, where it is on, without its detours: what it does is the same.

It reduces whole rows at once, element by element a sort takes seconds; and it exchanges the functions of the language
once per launch, where it would look for them at every call of a function of a kernel, half of its time.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime import interpreter

    def reduce_rows(self: Any, tensors: tuple[Any, ...]) -> list[Any]:
        """The interpreter's own fold along the axis, first element to last, with all other axes side by side."""
        flat = self.axis is None
        data = [t.handle.data.ravel() if flat else np.moveaxis(t.handle.data, self.axis, 0) for t in tensors]
        types = [t.dtype for t in tensors]
        folded = tuple(self.to_tensor(d[0], type) for d, type in zip(data, types, strict=True))
        for i in range(1, len(data[0])):
            made = self.combine_fn.fn(
                *folded, *(self.to_tensor(d[i], type) for d, type in zip(data, types, strict=True))
            )
            folded = made if isinstance(made, tuple) else (made,)
        rows = [f.handle.data.reshape(d.shape[1:]) for f, d in zip(folded, data, strict=True)]
        if self.keep_dims:
            shape = [1] * tensors[0].handle.data.ndim
            rows = [row.reshape(shape) if flat else np.expand_dims(row, self.axis) for row in rows]
        return [self.to_tensor(row, type) for row, type in zip(rows, types, strict=True)]

    asked, known = interpreter._get_np_dtype, {}

    def dtype_of(type: Any) -> np.dtype:
        """The interpreter's own answer, which it looks up in a table that it makes anew each time."""
        element = getattr(type, "element_ty", type) if type.is_block() else type
        if element.is_ptr():
            return asked(type)
        if element.name not in known:
            known[element.name] = asked(element)
        return known[element.name]

    patch_language, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: dict[int, Any] = {}  # modules of functions of the launch that runs -> what is to be taken back

    def patch_once(function: Any) -> Any:
        """The interpreter's own exchange, for the first function of a module alone: the others find it done."""
        module = id(function.__globals__)
        if module in patched:
            return type(patched[module])()
        patched[module] = patch_language(function)
        return patched[module]

    def launch_and_forget(self: Any, *args: Any, **options: Any) -> None:
        """The interpreter's own launch, which takes the exchange back at its end."""
        try:
            launch(self, *args, **options)
        finally:
            patched.clear()

    interpreter.ReduceOps.generic_reduce = reduce_rows
    interpreter._get_np_dtype = dtype_of
    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_and_forget
