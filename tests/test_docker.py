"""The Dockerfile against the checkout: what it copies is there and let through, and nothing runs as root.

Building takes a builder and 8 GB: done by hand, see docs/performance.md.
"""

import fnmatch
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()


def copied() -> list[str]:
    """What COPY takes from the checkout, not from another stage."""
    copies = [line.split()[1:] for line in LINES if line.startswith("COPY ")]
    return [
        word
        for words in copies
        if not any(word.startswith("--from") for word in words)
        for word in [w for w in words if not w.startswith("--")][:-1]
    ]


def reaches_the_build(path: str) -> bool:
    """By .dockerignore: the last rule that fits the path, or a folder above it, decides."""
    kept = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.lstrip("!")
        above = [path, *map(str, list(Path(path).parents)[:-1])]
        if any(fnmatch.fnmatch(one, pattern) for one in above):
            kept = rule.startswith("!")
    return kept


def test_all_that_is_copied_is_there_and_let_through():
    assert copied()
    for path in copied():
        assert (ROOT / path).exists(), path
        files = [ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("*.*")
        assert any(reaches_the_build(str(file.relative_to(ROOT))) for file in files), path


def test_tests_documents_and_history_do_not_reach_the_image():
    for path in ("tests/test_docker.py", ".git/config", "docs/index.md", "tools/test.sh"):
        assert not reaches_the_build(path), path


def test_the_demo_and_the_tools_that_users_start_reach_the_image():
    for path in (
        "tools/demo.sh",
        "tools/train.py",
        "videossl/configs/demo.yaml",
        "videossl/__main__.py",
    ):
        assert reaches_the_build(path), path


def test_the_image_runs_as_a_numbered_user_that_is_not_root():
    users = [line.split()[1] for line in LINES if line.startswith("USER ")]
    assert users
    assert users[-1].split(":")[0].isdigit()
    assert int(users[-1].split(":")[0]) > 0
