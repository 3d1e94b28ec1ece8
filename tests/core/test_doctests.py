"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["tensors", "registry", "metrics", "prompts"])
def test_docstring_examples_hold(name):
    results = doctest.testmod(importlib.import_module(f"mindedit_core.{name}"))
    assert results.attempted and not results.failed
