"""The arrows of the house: `protocol` is pure, and service and agent do not know each other."""

import ast
import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.secret import Secret

ROOT = Path(__file__).parent.parent
PURE = {
    "abc",
    "collections.abc",
    "cryptography",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "hashlib",
    "hmac",
    "itertools",
    "math",
    "numpy",
    "operator",
    "protocol",
    "rbcl",
    "re",
    "struct",
    "typing",
}
IMPURE_NAMES = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
IMPURE_METHODS = {
    *("now", "today", "utcnow", "fromtimestamp", "sleep"),
    *("default_rng", "urandom", "getrandbits", "generate_key", "token_bytes"),
    *("scalar_random", "crypto_core_ristretto255_random", "crypto_core_ristretto255_scalar_random"),
    *("read_text", "read_bytes", "write_text", "write_bytes"),
}
"""Methods that read a clock, take randomness from the system, or touch a file."""
FORBIDDEN = {
    "service": {"insurer_agent"},
    "insurer_agent": {"service"},
    "transport": {"insurer_agent", "service"},
    "protocol": {"insurer_agent", "service", "transport"},
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of every module that is imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module


def every_source(package: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", sources(package), ids=lambda path: str(path.relative_to(ROOT)))


@every_source("protocol")
def test_protocol_imports_nothing_but_pure_and_cryptographic_modules(path: Path) -> None:
    # The two that touch a file: one removes what the binding leaves in the temporary directory, one loads what is in C.
    allowed = {
        "encoding.py": {"contextlib"},
        "sodium.py": {"contextlib", "ctypes", "pathlib", "sys"},
        "half_gates_compiled.py": {"_hashlib", "ctypes", "pathlib", "sysconfig"},
    }.get(path.name, set())
    for module in imports(ast.parse(path.read_text())):
        assert module in allowed or module in PURE or module.split(".")[0] in PURE - {"collections.abc", "datetime"}, (
            module
        )


@every_source("protocol")
def test_protocol_takes_from_datetime_only_dates_and_differences(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "datetime":
            assert {alias.name for alias in node.names} <= {"date", "timedelta"}
        if isinstance(node, ast.Import):
            assert "datetime" not in {alias.name for alias in node.names}


@every_source("protocol")
def test_protocol_reads_no_clock_no_randomness_no_file_and_prints_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    called = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    chained = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    # Writers and readers are made of the descriptions of messages, when nothing has been read yet.
    assert not names & (IMPURE_NAMES - ({"exec"} if path.name == "encoding.py" else set()))
    assert not called & IMPURE_METHODS
    assert ("np", "random") not in chained


@every_source("protocol")
def test_protocol_keeps_no_state_of_its_own(path: Path) -> None:
    assert not any(isinstance(node, ast.Global | ast.Nonlocal) for node in ast.walk(ast.parse(path.read_text())))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_one_that_it_must_not_know(package: str) -> None:
    for path in sources(package):
        tops = {module.split(".")[0] for module in imports(ast.parse(path.read_text()))}
        assert not tops & FORBIDDEN[package], path


def test_there_are_sources_to_look_at() -> None:
    assert len(sources("protocol")) > 20
    assert all(sources(package) for package in FORBIDDEN)


def test_only_the_group_and_signatures_know_their_library() -> None:
    users = {path.name for path in sources("protocol") if "rbcl" in set(imports(ast.parse(path.read_text())))}
    assert users == {"sodium.py"}
    loaders = {path.name for path in sources("protocol") if "protocol.sodium" in imports(ast.parse(path.read_text()))}
    assert loaders == {"group.py", "signing.py"}


# --- secrets -------------------------------------------------------------------------------------------------------

SECRET = Secret(b"not to be seen!!")


def test_a_secret_shows_itself_in_no_repr_format_or_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger(__name__).warning("%s %r", SECRET, [SECRET])
    for shown in (repr(SECRET), str(SECRET), f"{SECRET}", f"{SECRET!a}", repr({"key": SECRET}), caplog.text):
        assert "seen" not in shown
        assert "redacted" in shown


def test_a_secret_cannot_be_pickled_or_copied_into_another() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(SECRET, protocol)
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            copied(SECRET)


def test_a_secret_is_not_hashable_so_it_is_no_key_and_in_no_set() -> None:
    with pytest.raises(TypeError, match="not hashable"):
        hash(SECRET)
    with pytest.raises(TypeError, match="not hashable"):
        assert {SECRET}


def test_a_secret_has_no_attributes_to_be_listed() -> None:
    with pytest.raises(TypeError):
        vars(SECRET)
    with pytest.raises(AttributeError):
        SECRET.value = b"other"  # type: ignore[attr-defined]  the point of the test


def test_secrets_are_equal_by_value_and_never_equal_to_bytes() -> None:
    assert Secret(b"not to be seen!!") == SECRET
    assert Secret(b"something else!!") != SECRET
    assert SECRET != b"not to be seen!!"
    assert len(SECRET) == 16
    assert SECRET.reveal() == b"not to be seen!!"
