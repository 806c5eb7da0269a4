"""Registration of the ops with torch: one schema each, an implementation per device, and a fake for tracing."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("scfast", "DEF")

#: How every attention op receives its packing and score options.
PACKING = "Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor work, Tensor causal_offset"
SCORE = "Tensor? key_bias, float scale, float softcap, bool causal"
