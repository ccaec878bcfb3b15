"""What importing mechkit costs, and that every public name is there. Each in a process of its own."""

import os
import subprocess
import sys

import pytest

import mechkit as mk

HEAVY = (
    "heavy = {'torch', 'transformer_lens', 'sae_lens', 'pandas', 'plotly'} & set(sys.modules); assert not heavy, heavy"
)


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_mechkit_imports_neither_torch_nor_transformer_lens():
    python(f"import sys, mechkit; mechkit.__version__; dir(mechkit); {HEAVY}")
    python(f"import sys, mechkit; mechkit.Site.parse('L9.H6.z@-1').hook; {HEAVY}")
    with pytest.raises(AssertionError, match="torch"):
        python(f"import sys, mechkit; mechkit.sweep; {HEAVY}")


def test_help_imports_neither_torch_nor_transformer_lens():
    code = "import sys; sys.argv = ['mechkit', '--help']\nfrom mechkit.__main__ import main\n"
    assert "Usage" in python(code + f"try: main()\nexcept SystemExit as done: assert not done.code, done.code\n{HEAVY}")


@pytest.mark.parametrize("name", sorted(mk.__all__))
def test_every_public_name_resolves(name):
    assert getattr(mk, name) is not None
    assert name in dir(mk)


def test_an_unknown_name_is_an_attribute_error_that_names_what_there_is():
    with pytest.raises(AttributeError, match=r"mechkit has no 'swep'; it has .*sweep"):
        _ = mk.swep
    assert not hasattr(mk, "swep")
