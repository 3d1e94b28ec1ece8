"""Every table resolves, and a wrong name says which names there are."""

import subprocess
import sys

import pytest

from mindedit_core import bridges, contracts, designers, painters, systems
from mindedit_core.registry import lookup

TABLES = [
    (bridges.BRIDGES, bridges.__name__, ("emits", "__call__")),
    (painters.PAINTERS, painters.__name__, ("accepts", "paint")),
    (designers.DESIGNERS, designers.__name__, ("design",)),
    (systems.SYSTEMS, systems.__name__, ("__call__",)),
]


@pytest.mark.parametrize(("table", "package", "attributes"), TABLES)
def test_every_entry_resolves_to_a_part_of_its_protocol(table, package, attributes):
    assert table
    for name, place in table.items():
        part = lookup(table, name, package, "part")
        assert place.startswith(".") and all(hasattr(part, attribute) for attribute in attributes)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown bridge 'qformer2'; have ip_adapter, mlp, text_only"):
        bridges.bridge("qformer2")
    with pytest.raises(ValueError, match="unknown part 'x'; have none"):
        lookup({}, "x", "", "part")


def test_the_tables_and_the_core_import_nothing_heavy():
    code = (
        "import sys, mindedit_core, mindedit_core.bridges, mindedit_core.painters, mindedit_core.designers, "
        "mindedit_core.systems; heavy = {'transformers', 'diffusers', 'torchvision'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_lazy_and_true():
    import mindedit_core

    assert mindedit_core.Plan is contracts.Plan and "edit" in mindedit_core.__all__
    assert callable(mindedit_core.load_system) and callable(mindedit_core.edit)
    with pytest.raises(AttributeError, match="no 'editt'; public names: .*edit"):
        _ = mindedit_core.editt
