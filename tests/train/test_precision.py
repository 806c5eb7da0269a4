"""bfloat16 is taken where the device has it, and refused by name where not."""

import pytest
import torch

from scfast.train import precision
from scfast.train.precision import resolve_precision

CPU = torch.device("cpu")


def test_it_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision._kernels, "instruction_sets", lambda: ["avx2", "generic"])
    assert resolve_precision("auto", CPU) == "float32"
    assert resolve_precision("float32", CPU) == "float32"
    with pytest.raises(ValueError, match=r"no AVX512-BF16 instructions.*use precision='float32' or 'auto'"):
        resolve_precision("bf16", CPU)
    monkeypatch.setattr(precision._kernels, "instruction_sets", lambda: ["avx512_bf16", "avx512"])
    assert resolve_precision("auto", CPU) == resolve_precision("bf16", CPU) == "bf16"


def test_a_gpu_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert resolve_precision("auto", gpu) == "float32"
    with pytest.raises(ValueError, match="precision='bf16', but T4 has no bfloat16 tensor cores"):
        resolve_precision("bf16", gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve_precision("auto", gpu) == "bf16"


def test_another_word_is_named() -> None:
    with pytest.raises(ValueError, match="precision='fp8' is unknown; use one of 'auto', 'bf16', 'float32'"):
        resolve_precision("fp8", CPU)
