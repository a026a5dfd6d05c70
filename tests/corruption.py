"""Many ways to corrupt a file, drawn at random from a seed."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = "[" * 50_000 + "]" * 50_000
RAW = ["NaN", "-Infinity", "1e999", "-1e999", "9" * 5000, DEEP, '"\\ud800"', "1e308", "-1e308", "9" * 400]
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e-320, 1e200),
    *("", "x", "../../etc/passwd", "a\nb", "\0", "0" * 16, "ok", "failed", "x" * 10_000),
    *([], {}, [None], [1, 2, 3], ["a"], {"": 1}, {"a": {"b": {"c": []}}}, [[[[]]]]),
]


def corrupt(path: Path, rng: random.Random) -> str:
    """Corrupt a file; how, in a few words."""
    methods: list[Callable[[Path, random.Random], str]] = [corrupt_bytes, replace_file]
    if path.suffix == ".json":
        methods += [corrupt_field] * 6
    return rng.choice(methods)(path, rng)


def corrupt_bytes(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    where = rng.randrange(len(content))
    match rng.choice(("cut", "flip", "insert", "nothing", "noise", "twice", "mark", "zero")):
        case "cut" as way:
            content = content[:where]
        case "flip" as way:
            content[where] ^= 1 << rng.randrange(8)
        case "insert" as way:
            content[where:where] = rng.randbytes(rng.choice((1, 3, 100)))
        case "nothing" as way:
            content.clear()
        case "noise" as way:
            content = bytearray(rng.randbytes(len(content)))
        case "twice" as way:
            content += bytes(content)
        case "mark" as way:
            content = bytearray(b"\xff\xfe" + content.decode("latin-1").encode("utf-16-le"))
        case way:
            content[where : where + 8] = bytes(8)
    path.write_bytes(content)
    return f"{way} at {where}"


def replace_file(path: Path, rng: random.Random) -> str:
    """Something else where the file was."""
    path.unlink()
    match rng.choice(("folder", "loop", "dangling", "pipe", "device")):
        case "folder" as way:
            path.mkdir()
        case "loop" as way:
            path.symlink_to(path.name)
        case "dangling" as way:
            path.symlink_to("nowhere")
        case "pipe" as way:
            os.mkfifo(path)
        case way:
            path.symlink_to("/dev/zero")
    return f"a {way} in its place"


def corrupt_field(path: Path, rng: random.Random) -> str:
    """Change or delete one field of a JSON document."""
    document = json.loads(path.read_text())
    holder, name = rng.choice(list(fields(document)))
    if rng.random() < 0.2:
        del holder[name]
        change = "missing"
    elif rng.random() < 0.3:
        raw = rng.choice(RAW)
        holder[name] = "RAW"
        path.write_text(json.dumps(document).replace('"RAW"', raw))
        return f"{name!r} is {raw[:20]}"
    else:
        holder[name] = rng.choice(VALUES)
        change = repr(holder[name])[:40]
    path.write_text(json.dumps(document))
    return f"{name!r} is {change}"


def fields(document: Any):
    """Every place within a document: what holds it, and its name or number there."""
    names = document.keys() if isinstance(document, dict) else range(len(document))
    for name in list(names):
        yield document, name
        if isinstance(document[name], dict | list):
            yield from fields(document[name])


def restore(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)
