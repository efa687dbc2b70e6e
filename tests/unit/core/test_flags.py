"""Commands that share flags say the same of them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

COMMANDS = {
    "stores.seal": (),
    "stores.verify": (),
    "extractors.run": (),
    "exchange": ("import", "export"),
    "evaluation.encode": (),
    "catalog.run": ("render", "unpack", "index"),
}


def helps(capsys) -> dict[str, dict[str, str]]:
    """The help of each flag, by command."""
    found = {}
    for name, subcommands in COMMANDS.items():
        module = importlib.import_module("exchange.__main__" if name == "exchange" else name)
        for arguments in [[sub] for sub in subcommands] or [[]]:
            with pytest.raises(SystemExit):
                module.main([*arguments, "--help"])
            text = " ".join(capsys.readouterr().out.split())
            assert text.startswith(f"usage: python -m {' '.join([name, *arguments])} ")
            flags = re.split(r" (?=--[a-z-]+ )", text.split("options:")[1])
            found[" ".join([name, *arguments])] = {flag.split()[0]: flag for flag in flags}
    return found


def test_shared_flags_have_one_help(capsys):
    seen: dict[str, set[str]] = {}
    for flags in helps(capsys).values():
        for flag in ("--images", "--captions", "--store", "--receipt", "--receipts", "--visual", "--device", "--shard"):
            if flag in flags:
                seen.setdefault(flag, set()).add(flags[flag])
    assert len(seen) == 8
    assert {flag: texts for flag, texts in seen.items() if len(texts) > 1} == {}


def test_help_needs_neither_torch_nor_pydantic(repository):
    code = "import sys, core.flags; print([name for name in ('numpy', 'pydantic', 'torch') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert result.stdout.strip() == "[]", result.stderr
