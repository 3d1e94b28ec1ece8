"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest

DOCUMENTED = ["tensors", "registry", "metrics", "prompts", "blueprint", "blueprint_parser", "designers.chat"]
DOCUMENTED += ["painters.framing", "backbones.qwen_positions", "backbones.qwen_keys"]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_examples_hold(name):
    results = doctest.testmod(importlib.import_module(f"mindedit_core.{name}"))
    assert results.attempted and not results.failed
