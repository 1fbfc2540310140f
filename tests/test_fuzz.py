"""A short run of tools/fuzz_decode.py; the long one is for people."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def fuzzing(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    spec = importlib.util.spec_from_file_location("fuzz_decode", TOOLS / "fuzz_decode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutated_files_cost_no_crash_no_hang_and_have_reasons(fuzzing, tmp_path):
    sources = fuzzing.synthetic_sources(tmp_path / "sources")
    found = fuzzing.fuzz(sources, tmp_path / "cases", seed=1, numbers=range(60))
    assert found.is_clean, "\n".join(fuzzing.verdict(found))
    for stage in ("scan", "deep", "loader", "changed", "pack"):
        outcomes = found.outcomes[stage].values()
        assert "ok" in outcomes, stage
        assert {"broken", "replaced", "skipped"} & set(outcomes), stage
    assert len(found.outcomes["scan"]) == 60
