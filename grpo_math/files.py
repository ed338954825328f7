"""Files that a run may need again: written whole or not at all, and read line by line whatever the text holds.

>>> write_whole(Path("out/summary.json"), "{}")
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """
    Writes a file so that after a crash it holds its old or its new content: a temporary file beside it, then `os.replace`.

    Args:
        path: The file; a link is followed.
        content: Text is written as UTF-8.

    Raises:
        OSError: As from `open`, on a full disk for example. The old content is untouched.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.tmp")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_jsonl(path: Path) -> list[dict]:
    """
    The records of a JSONL file; a last line cut off by a crash is left out.

    Raises:
        ValueError: For any other line that is not a JSON object, with its number.
    """
    records, unreadable = read_lines(path)
    if unreadable:
        number, reason = unreadable[0]
        raise ValueError(f"{path}, line {number} is not a JSON object: {reason}")
    return records


def read_lines(path: Path) -> tuple[list[dict], list[tuple[int, str]]]:
    """
    The records of a JSONL file, and the number and the fault of each line that holds none, but for a last line cut off.

    Only "\\n" ends a line: JSON escapes it inside text, and leaves U+2028 or U+0085 as they are.
    """
    records, unreadable = [], []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"{type(record).__name__}, not an object")
            records.append(record)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                unreadable.append((number, str(error)))
    return records, unreadable
