"""SPEC.md keeps its word: every test that its table of attacks names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = (ROOT / "protocol" / "SPEC.md").read_text(encoding="utf-8")


def named_tests() -> list[tuple[str, str]]:
    found = []
    for line in SPEC.splitlines():
        if "`test_" in line and line.startswith("|"):
            file = ""
            for part in line.split("|")[3].split(";"):
                match = re.fullmatch(r"\s*(?:`(test_\w+\.py)`: )?(\w+)\s*", part)
                assert match, part
                file = match[1] or file
                found.append((file, match[2]))
    return found


@pytest.mark.parametrize(("file", "name"), named_tests())
def test_a_test_that_the_table_names_exists(file: str, name: str) -> None:
    (found,) = (ROOT / "tests").rglob(file)
    assert f"def test_{name}(" in found.read_text(encoding="utf-8")


def test_the_table_names_tests_for_every_attack() -> None:
    table = SPEC[SPEC.index("## 8. Attacks") : SPEC.index("## 9.")]
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| attack")]
    assert len(rows) >= 60
    for row in rows:
        attack, answer, tried, ended = (cell.strip() for cell in row.strip("|").split("|"))
        assert attack
        assert answer
        assert "`test_" in tried
        assert ended


def test_every_file_that_the_documents_name_exists() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "protocol/SPEC.md", "deploy/README.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"`((?:protocol|insurer_agent|service|tests|transport|deploy)/[\w/.]*)`", text):
            assert (ROOT / name).exists(), f"{document} names {name}"
