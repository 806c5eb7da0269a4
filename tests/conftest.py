"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch loads OpenMP: threads that spin while they wait make a busy machine seven times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Reports are made where tests ask for them.
os.environ.setdefault("SCFAST_REPORT", "0")

import torch

from scfast import _kernels

settings.register_profile("scfast", deadline=None, max_examples=25, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "scfast"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden outputs, named by SCFAST_TEST_DATA."""
    folder = os.environ.get("SCFAST_TEST_DATA")
    if not folder:
        pytest.skip("SCFAST_TEST_DATA is not set: it names the folder that holds data/ and golden/")
    return Path(folder)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty and new_empty, in Python and in op implementations, hold NaN (integers: the largest)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(params=_kernels.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this build that this machine runs, one after another."""
    before = _kernels.instruction_set()
    _kernels.use_instruction_set(request.param)
    yield request.param
    _kernels.use_instruction_set(before)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A test may call torch.set_num_threads, itself or through a command: the next one has what it has alone."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
