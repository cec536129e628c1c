"""Files that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitwright.hw.errors import BitwrightError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes the place of ``path``, on failure nothing is left.

    Parent folders are created. The temporary path does not exist yet: the caller may make a file or a folder of it.

    Raises
    ------
    BitwrightError
        If the file system refuses: a read-only folder, a full disk, a file where a folder is needed.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _refused(path, error) from error
    temporary = holder / path.name
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        if path.is_dir() and temporary.is_dir():
            path.rename(holder / "replaced")
        temporary.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _refused(path: Path, error: OSError) -> BitwrightError:
    reason = error.strerror or str(error)
    return BitwrightError(f"Cannot write {path}: {reason}; choose a folder that is writable and has room.")
