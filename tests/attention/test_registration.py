"""import scfast makes attn_implementation="scfast" known, whichever import comes first, and stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LOAD = "BertModel(BertConfig(hidden_size=8,num_hidden_layers=1,num_attention_heads=1,intermediate_size=8))"
_USE = (
    "from transformers import BertConfig, BertModel, AttentionInterface, AttentionMaskInterface\n"
    f"{_LOAD}.set_attn_implementation('scfast')\n"
    "assert 'scfast' in AttentionInterface()\n"
    "assert 'scfast' in AttentionMaskInterface()\n"
    "assert not [f for f in sys.meta_path if type(f).__module__.startswith('scfast')]\n"
)


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "order", ["import scfast, transformers\n", "import transformers.modeling_utils, scfast\n"]
)
def test_registered_in_any_order_of_imports(order: str) -> None:
    run(order + _USE)


def test_import_is_light() -> None:
    code = (
        "import time, torch\nstart = time.perf_counter()\nimport scfast\n"
        "print(time.perf_counter() - start)\nassert 'transformers' not in sys.modules\n"
    )
    assert any(float(run(code)) < 1.5 for _ in range(2))
