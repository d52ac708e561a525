"""SPEC.md keeps its word: every test that its table of attacks names is there, and none is left to CI alone."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = (ROOT / "protocol" / "SPEC.md").read_text(encoding="utf-8")


def named_tests() -> list[tuple[str, str, str]]:
    """Return the tests that the tables name, each after its row."""
    found = []
    for line in SPEC.splitlines():
        if "`test_" in line and line.startswith("|"):
            file = ""
            for part in line.split("|")[3].split(";"):
                match = re.fullmatch(r"\s*(?:`(test_\w+\.py)`: )?(\w+)\s*", part)
                assert match, part
                file = match[1] or file
                found.append((line, file, match[2]))
    return found


@pytest.mark.parametrize(("file", "name"), [(file, name) for _, file, name in named_tests()])
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


def is_long(file: str, name: str) -> bool:
    """Tell whether an everyday run leaves a test out."""
    (found,) = (ROOT / "tests").rglob(file)
    for node in ast.parse(found.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="pytestmark")]) if "mark.long" in ast.unparse(node):
                return True
            case ast.FunctionDef() if node.name == f"test_{name}":
                return "pytest.mark.long" in map(ast.unparse, node.decorator_list)
    raise AssertionError(name)


def test_each_attack_is_carried_out_in_an_everyday_run() -> None:
    rows: dict[str, list[bool]] = {}
    for row, file, name in named_tests():
        rows.setdefault(row, []).append(is_long(file, name))
    assert len(rows) >= 60
    assert any(long for longs in rows.values() for long in longs)
    assert [row for row, longs in rows.items() if all(longs)] == []


def test_every_file_that_the_documents_name_exists() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "protocol/SPEC.md", "deploy/README.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"`((?:protocol|insurer_agent|service|tests|transport|deploy)/[\w/.]*)`", text):
            assert (ROOT / name).exists(), f"{document} names {name}"
