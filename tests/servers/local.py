"""Servers as processes of this machine; none of them outlives the process that started it."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

import psutil

SERVICES = Path(__file__).parents[2] / "scripts" / "services.sh"
SMALL_JVM = ("-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")

# PR_SET_PDEATHSIG, by which a server ends with us, means the thread that started the server. This
# one stays; a thread of an event loop's pool would take the server with it when the loop closes.
_starter: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")

# The directories of our servers, each with its locked file: the lock goes when we do, however.
_owners: Final[dict[Path, BinaryIO]] = {}


class ProcessBox:
    """A server process that works in a directory of its own, made and removed with the box.

    With `as_nobody` it runs as the user of that name; only root can ask for it.
    """

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        as_nobody: bool = False,
    ) -> None:
        self._directory = directory
        self._command = [*_launcher(as_nobody=as_nobody), *command]
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self._end)

    def start(self) -> None:
        if self.running():
            raise RuntimeError("the server runs already")
        self._process = _starter.submit(self._spawn).result()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with open(self._directory / "server.log", "ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # so that Ctrl-C reaches us alone, who then stop it in order
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        if self.running():
            assert self._process is not None
            # Stopped first, so that it starts nothing while we look at what it has started: what
            # outlives it would keep PostgreSQL from coming back.
            self._process.send_signal(signal.SIGSTOP)
            self._until_stopped()
            started = psutil.Process(self._process.pid).children(recursive=True)
            self._signal_all(signal.SIGKILL)
            psutil.wait_procs(started, timeout=10)
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        self._signal_all(signal.SIGSTOP)
        self._until_stopped()

    def _until_stopped(self) -> None:
        # The kernel stops the threads one by one: until the last has, requests are still served.
        deadline = time.monotonic() + 10
        while not self._stopped():
            if time.monotonic() > deadline:
                raise TimeoutError("the server did not stop for SIGSTOP within 10 s")
            time.sleep(0.005)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        lines = (self._directory / "server.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-40:])

    def remove(self) -> None:
        self._end()
        atexit.unregister(self._end)

    def _end(self) -> None:
        self.kill()
        _remove(self._directory)

    def _stopped(self) -> bool:
        """Whether every thread of the server is stopped (state T in /proc)."""
        assert self._process is not None
        for stat in Path(f"/proc/{self._process.pid}/task").glob("*/stat"):
            try:
                state = stat.read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread has ended
            if state not in ("T", "t", "Z", "X"):
                return False
        return True

    def _signal_all(self, number: signal.Signals) -> None:
        """To the server and what it started: PostgreSQL has a process for each connection."""
        if not self.running():
            return
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def kafka(properties: Mapping[str, str], answers: Callable[[], bool]) -> ProcessBox:
    """A broker with a formatted directory of its own; `answers` says whether it serves requests."""
    prepared = prepare_kafka(properties, answers)
    directory = _new_directory("kafka")
    shutil.copytree(prepared / "formatted", directory / "data")
    _be_node(directory / "data" / "meta.properties", properties["node.id"])
    return _broker(directory, properties, f"-XX:SharedArchiveFile={prepared / 'classes.jsa'}")


def _be_node(meta: Path, node: str) -> None:
    """What was formatted for node 1 is another node's."""
    if node == "1":
        return
    lines = [line for line in meta.read_text().splitlines() if not line.startswith("directory.id")]
    lines = [f"node.id={node}" if line.startswith("node.id") else line for line in lines]
    meta.write_text("\n".join(lines))  # the broker gives its directory a new id


def prepare_kafka(properties: Mapping[str, str], answers: Callable[[], bool]) -> Path:
    """A formatted log directory and an archive of loaded classes, made once for a build of Java.

    The archive lets a broker start in half the time; without it everything works, too.
    """
    kafka = _kafka()
    java = subprocess.run(["java", "-version"], capture_output=True, check=True).stderr
    prepared = kafka.with_name(f"{kafka.name}-{hashlib.sha256(java).hexdigest()[:12]}")
    with _locked(kafka.with_name("lock")):  # which scripts/services.sh takes, too
        if prepared.exists():
            return prepared
        print("preparing Kafka, once", file=sys.stderr)
        new = Path(tempfile.mkdtemp(prefix="new.", dir=kafka.parent))
        try:
            _format(new / "formatted", properties)
            _archive_classes(new / "classes.jsa", new / "formatted", properties, answers)
            new.rename(prepared)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return prepared


def _format(formatted: Path, properties: Mapping[str, str]) -> None:
    settings = _write_properties(formatted.with_suffix(".properties"), properties, formatted)
    cluster = "MkU3OEVBNTcwNTJENDM2Qk"
    _run([*_java(), "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings)])


def _archive_classes(
    archive: Path, formatted: Path, properties: Mapping[str, str], answers: Callable[[], bool]
) -> None:
    """Java writes down at its end which classes a broker has loaded by the time it answers."""
    directory = _new_directory("prepare")
    shutil.copytree(formatted, directory / "data")
    box = _broker(directory, properties, f"-XX:ArchiveClassesAtExit={archive}")
    try:
        box.start()
        while box.running() and not answers():
            time.sleep(0.1)
        box.stop()
    finally:
        box.remove()


def postgresql(settings: Mapping[str, str], port: int) -> ProcessBox:
    """A server with a new cluster; the superuser is `postgres`, without a password."""
    programs = prepare_postgresql()
    directory = _new_directory("postgresql")
    as_nobody = os.geteuid() == 0  # PostgreSQL refuses to run as root
    if as_nobody:
        os.chown(directory, *_nobody())
        if not _open_to_all(programs):  # a cache in root's home, for one
            shutil.copytree(programs.parent, directory / "programs", symlinks=True)
            programs = directory / "programs" / programs.name
    data = directory / "data"
    initdb = [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust"]
    initdb += ["--no-sync", "--encoding=UTF8", "--locale=C"]
    _run([*_launcher(as_nobody=as_nobody), *initdb], cwd=directory)
    options = dict(settings)
    options |= {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(directory)}
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port)]
    command += [text for name, value in options.items() for text in ("-c", f"{name}={value}")]
    # SIGINT: end now, in order, without waiting for clients to disconnect.
    return ProcessBox(directory, command, stop_signal=signal.SIGINT, as_nobody=as_nobody)


def prepare_postgresql() -> Path:
    """Where PostgreSQL's programs are."""
    return Path(fetched("postgresql"))


def _broker(directory: Path, properties: Mapping[str, str], *options: str) -> ProcessBox:
    settings = _write_properties(
        directory / "server.properties", properties, logs=directory / "data"
    )
    return ProcessBox(directory, [*_java(*options), "kafka.Kafka", str(settings)])


def _java(*options: str) -> list[str]:
    return ["java", *SMALL_JVM, *options, "-cp", f"{_kafka()}/libs/*"]


def _kafka() -> Path:
    return Path(fetched("kafka"))


@cache
def fetched(name: str) -> str:
    """The directory of what scripts/services.sh fetches by this name, now if need be."""
    environment = os.environ | {"PYTHON": sys.executable}
    command = [str(SERVICES), name]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if result.returncode != 0:
        raise RuntimeError(f"scripts/services.sh {name} failed; what it said is on standard error")
    return result.stdout.strip().removeprefix(f"{name}=")


def _write_properties(path: Path, properties: Mapping[str, str], logs: Path) -> Path:
    lines = [f"{name}={value}" for name, value in (*properties.items(), ("log.dirs", logs))]
    path.write_text("\n".join(lines))
    return path


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    result = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}")


def _launcher(*, as_nobody: bool) -> list[str]:
    """What runs a command such that it ends with the thread that started it, and as whom."""
    if shutil.which("setpriv") is None:  # not Linux: an orderly exit still ends what we started
        return ["runuser", "-u", "nobody", "--"] if as_nobody else []
    user, group = _nobody()
    identity = [f"--reuid={user}", f"--regid={group}", "--clear-groups"] if as_nobody else []
    return ["setpriv", "--pdeathsig", "KILL", *identity, "--"]


def _nobody() -> tuple[int, int]:
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _new_directory(name: str) -> Path:
    """A directory under one that every user can pass through; ours as long as we live."""
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp")]
    parent = next((path for path in candidates if _open_to_all(path)), candidates[0])
    prefix = f"sagaz-es-{os.getuid()}-"
    with _locked(parent / f"{prefix}lock"):
        for old in parent.glob(f"{prefix}*/"):
            _remove_if_left(old)
        directory = Path(tempfile.mkdtemp(prefix=f"{prefix}{name}-", dir=parent))
        owner = _owners[directory] = open(directory / "owner", "wb")
        fcntl.flock(owner, fcntl.LOCK_EX)
    return directory


def _remove_if_left(directory: Path) -> None:
    """Remove what a killed program has left: nobody holds its lock any more."""
    try:
        with open(directory / "owner", "rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        return


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if owner := _owners.pop(directory, None):
        owner.close()


def _open_to_all(path: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
