"""`python -m perdure_services.fleet FOLDER`: the parent as a program of its own, with next to nothing in memory."""

from __future__ import annotations

import logging
import shutil
import socket
import sys
from pathlib import Path

from perdure import logs
from perdure_services.fleet.fleet import Fleet
from perdure_services.fleet.spec import Spec

FAILURE = 1


def main(folder: str) -> int:
    """Runs the fleet that `folder` describes, and removes the folder; the exit code."""
    spec = Spec.read(Path(folder))
    logs.begin(spec.level)
    logs.use(spec.log)
    log = logging.getLogger("perdure_services.fleet")
    log.setLevel(min(spec.level, logging.INFO))
    listener = socket.socket(fileno=spec.listener)

    def announce(line: str) -> None:
        if spec.log == "json":
            log.info("%s", line)
            return
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        return Fleet(spec, listener=listener, folder=folder, announce=announce).run()
    except OSError as error:
        sys.stderr.write(f"perdure serve: {error}\n")
        return FAILURE
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
