"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["readers", "readers.cells", "readers.mask_regions", "readers.table", "chat_endpoint"])
def test_docstring_examples_hold(name):
    results = doctest.testmod(importlib.import_module(f"train.{name}"))
    assert results.attempted and not results.failed
