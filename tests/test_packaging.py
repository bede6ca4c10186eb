"""What people install: the names it plants, what it carries, what importing it costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import sagaz_es

ROOT = Path(__file__).parents[1]
PACKAGES = {"sagaz_es", "sagaz_es_cli", "sagaz_es_projections"}
OPTIONAL = {
    "aiokafka",
    "asyncpg",
    "click",
    "obstore",
    "redis",
    "rich",
    "starlette",
    "uvicorn",
    "yaml",
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel built from it."""
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return directory


@pytest.fixture(scope="module")
def wheel(dist: Path) -> set[str]:
    """The names of the wheel's files."""
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_plants_no_other_names(wheel: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


def test_the_wheel_carries_every_schema(wheel: set[str]) -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / "schemas").rglob("*") if path.is_file()]
    assert files
    assert {f"sagaz_es/{path.as_posix()}" for path in files} <= wheel


def test_all_three_packages_are_typed(wheel: set[str]) -> None:
    assert {name for name in wheel if name.endswith("py.typed")} == {
        f"{package}/py.typed" for package in PACKAGES
    }


def test_the_wheel_brings_its_programs_and_its_pytest_plugin(dist: Path) -> None:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        points = archive.read(name).decode().split()
    assert "[console_scripts]" in points
    assert points[points.index("[pytest11]") + 1 :][:3] == [
        "sagaz-es",
        "=",
        "sagaz_es_cli.pytest_plugin",
    ]


def test_an_installed_wheel_gives_pytest_its_fixtures_and_is_itself_left_alone(
    dist: Path, tmp_path: Path
) -> None:
    (path,) = dist.glob("*.whl")
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(installed)
    (tmp_path / "test_user.py").write_text(
        """
def test_fixtures(saga_engine, saga_clock, crash_everywhere):
    import sagaz_es
    from sagaz_es.testing.contracts import blob_store
    assert "site-packages" in sagaz_es.__file__
    assert type(sagaz_es.__loader__).__name__ == "SourceFileLoader"
    assert type(blob_store.__loader__).__name__ == "AssertionRewritingHook"
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "test_user.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_sdist_carries_what_a_packager_needs(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".venv", ".git/"))]


@pytest.mark.parametrize("missing", ["click", "rich", "yaml"])
def test_without_its_extra_the_program_says_what_to_install(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
sys.argv = ["sagaz-es", "saga", "list", "--log", "memory://", "--format", "yaml"]
from sagaz_es_cli.start import start
start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    told = f"Error: the command line needs the package {missing!r}; install it with: pip install "
    assert done.stderr.splitlines()[-1] == told + '"sagaz-es[cli]"'
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["msgspec", "click"])
def test_an_interruption_while_the_program_is_loaded_is_no_traceback(where: str) -> None:
    code = f"""
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {where!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from sagaz_es_cli.start import start
start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_importing_it_imports_no_optional_package() -> None:
    code = "import json, sys, sagaz_es; print(json.dumps(list(sys.modules)))"
    imported = {name.split(".")[0] for name in json.loads(run(code))}
    assert imported & OPTIONAL == set()


def test_the_pytest_plugin_imports_nothing_of_it_until_a_test_asks() -> None:
    code = "import json, sys, sagaz_es_cli.pytest_plugin; print(json.dumps(list(sys.modules)))"
    imported = {name.split(".")[0] for name in json.loads(run(code))}
    assert imported & {*OPTIONAL, "sagaz_es", "msgspec", "asyncio"} == set()


IMPORTED = """
import pkgutil, types
import sagaz_es
names = sorted({*sagaz_es.__all__, *sagaz_es._LAZY})
def modules():
    for name in names:
        scope = {}
        exec(f"from sagaz_es import {name}", scope)
        if isinstance(scope[name], types.ModuleType):
            yield name
print(list(modules()))
for module in pkgutil.walk_packages(sagaz_es.__path__, "sagaz_es."):
    __import__(module.name)
print(list(modules()))
"""


def test_a_public_name_is_no_module_whatever_was_imported_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["[]", "[]", ""]


def test_it_tells_its_version() -> None:
    assert sagaz_es.__version__ == version("sagaz-es")


def test_importing_it_leaves_logging_alone() -> None:
    code = """
import logging, sagaz_es
loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
print([(logger.name, logger.handlers) for logger in loggers if logger.handlers], logging.root.level)
"""
    assert run(code) == "[] 30\n"


def run(code: str) -> str:
    """What the code prints in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_no_sql_text_numbers_its_parameters() -> None:
    """Python 3.12.0 to 3.12.3 take `?1` for a name, and warn; `?{n}` of an f-string makes one."""
    numbered = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "sagaz_es").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\?\d|[( ]\?\{", line.partition("#")[0])
    ]
    assert numbered == []
