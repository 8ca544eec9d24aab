"""Files that appear whole or not at all: written to a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from residuum.errors import InputError

TEMPORARY = ".part-"


def write_whole(path: Path, content: bytes | str) -> None:
    """Write `content` to `path`; see `whole_file`."""
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write that takes the name `path` once the block ends, and vanishes if it does not end well.

    A link is followed; what exists and is no regular file (a folder, a device) is refused rather than replaced. Raises
    `InputError` if the disk refuses.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}: it is no regular file: choose another place")
    part = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("r+b") as written:
            os.fsync(written.fileno())
        part.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name `path` once the block ends, and vanishes if it does not end well."""
    part = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for inner in part.rglob("*"):
            if inner.is_dir():
                _flush_folder(inner)
                continue
            inner.chmod(0o666 & ~_umask())  # whatever wrote it may have kept it to itself
            with inner.open("rb") as opened:
                os.fsync(opened.fileno())
        _flush_folder(part)
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _umask() -> int:
    """Which rights a new file does not get; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def check_free(path: Path, setting: str) -> None:
    """Raises `InputError`, with the `setting` to choose anew, if anything is at `path`, be it a link to nothing."""
    if os.path.lexists(path):
        raise InputError(f"{path} is there already: choose another {setting}")


def cannot_write(path: Path, error: OSError) -> InputError:
    """The one line for a disk that refused."""
    return InputError(f"cannot write {path}: {refusal(error)}")


def refusal(error: OSError) -> str:
    """Why the system did not write, and the mend."""
    room = (None, errno.ENOSPC, errno.EDQUOT)  # None: a library says so in its own words
    mend = "make room or " if error.errno in room else "raise ulimit -f or " if error.errno == errno.EFBIG else ""
    return f"{error.strerror or error}: {mend}choose another place"


def _flush_folder(folder: Path) -> None:
    """Make a rename itself durable; some systems cannot open a folder and need not."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
