"""Fixtures of the recording tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["auto", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
