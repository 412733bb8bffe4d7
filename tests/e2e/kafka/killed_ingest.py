"""Ingests a topic into a memory, and kills itself at one step of one page.

    python killed_ingest.py ADDRESS TOPIC MEMORY STEP PAGE

STEP is `before-read`, `after-read`, `before-commit` or `after-commit`; PAGE counts from 1 in this process. With STEP
`never` it goes through to the end.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import perdure.memory
from perdure.config import Settings, StreamSettings
from perdure.stream.kafka import KafkaStream

PAGE = 25


def main() -> None:
    address, topic, folder, step, number = sys.argv[1:]
    perdure.memory.PAGE = PAGE
    left = {step: int(number)}

    def passing(reached: str) -> None:
        if reached in left:
            left[reached] -= 1
            if left[reached] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def go_on() -> bool:
        passing("before-read")
        return True

    settings = Settings(stream=StreamSettings(url=f"kafka://{address}", topic=topic)).with_values(
        {"memory.path": folder}
    )
    stream = KafkaStream((address,), settings.stream)
    memory: Any = perdure.memory.open_memory(settings)
    read, take = stream.read, memory.ingest

    def read_and_pass(offset: Any, limit: int) -> Any:
        page = read(offset, limit)
        passing("after-read")
        return page

    def take_and_pass(page: Any) -> Any:
        counts = take(page)
        passing("after-commit")
        return counts

    stream.read = read_and_pass  # type: ignore[method-assign]
    memory.ingest = take_and_pass
    # SQLite calls this with each statement before it runs.
    memory._store._connection.set_trace_callback(
        lambda statement: passing("before-commit") if statement == "COMMIT" else None
    )
    perdure.memory.ingest(stream, memory, go_on)
    memory.close()
    stream.close()


if __name__ == "__main__":
    main()
