"""Shapes for paths. A path is written as a letter for its class, and its text.

A concrete path belongs to a system. One from another system is read as a path of this system if it is relative. An absolute one is refused,
because it would lead elsewhere: `PureWindowsPath` and `PurePosixPath` carry such paths between systems.
"""

from __future__ import annotations

import os
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final

from taskflow.model.codec import wire as codes
from taskflow.model.codec.misfit import Misfit, unexpected
from taskflow.model.codec.scalars import read_str
from taskflow.model.codec.shape import Read, Shape, Write
from taskflow.model.codec.wire import Ext, data_of

_LETTERS: Final[dict[type[PurePath], bytes]] = {PosixPath: b"P", WindowsPath: b"W", PurePosixPath: b"p", PureWindowsPath: b"w"}
"""The letter of each class. Subclasses come before their bases."""
_KINDS: Final = {letter: kind for kind, letter in _LETTERS.items()}
_ALL: Final[tuple[type[PurePath], ...]] = (Path, *_LETTERS, PurePath)
_HERE: Final = type(Path())


def write_path(value: Any, _levels: int) -> Ext:
    letter = next(letter for kind, letter in _LETTERS.items() if isinstance(value, kind))
    try:
        return Ext(codes.PATH, letter + PurePath.__str__(value).encode("utf-8", _on_error(letter)))
    except UnicodeEncodeError as error:
        raise Misfit(f"has a lone surrogate at index {error.start}, which no file name contains") from None


def read_path(wire: Any, _levels: int) -> PurePath:
    data = data_of(wire, codes.PATH, "path")
    letter = data[:1]
    kind = _KINDS.get(letter)
    if kind is None:
        raise Misfit("expected the letter of a class of paths")
    try:
        text = data[1:].decode("utf-8", _on_error(letter))
    except UnicodeDecodeError as error:
        raise Misfit(f"is not UTF-8: {error}") from None
    return _from_elsewhere(kind, text) if issubclass(kind, Path) and kind is not _HERE else kind(text)


def _on_error(letter: bytes) -> str:
    """Return how to encode a lone surrogate: on POSIX, it stands for a byte of a file name that is not UTF-8."""
    return "surrogateescape" if letter in b"Pp" else "surrogatepass"


def _from_elsewhere(kind: type[Path], text: str) -> Path:
    pure = PureWindowsPath(text) if issubclass(kind, WindowsPath) else PurePosixPath(text)
    here = Path(*pure.parts)
    if pure.anchor or here.parts != pure.parts:
        raise Misfit(f"is a {kind.__name__} that has no meaning on this system; send a relative path, or a {type(pure).__name__}")
    return here


def _writer(kind: type[Any], label: str) -> Write:
    def write(value: Any, levels: int) -> Ext:
        if not isinstance(value, kind):
            raise unexpected(label, value)
        return write_path(value, levels)

    return write


def _readers(kind: type[PurePath], label: str) -> tuple[Read, Read]:
    def read(wire: Any, levels: int) -> PurePath:
        path = read_path(wire, levels)
        if not isinstance(path, kind):
            raise Misfit(f"expected {label}, got {type(path).__name__}")
        return path

    def read_json(wire: Any, levels: int) -> PurePath:
        return kind(read_str(wire, levels))

    return read, read_json


def _shape(kind: type[PurePath], label: str) -> Shape:
    kinds = frozenset(each for each in _ALL if issubclass(each, kind))
    return Shape(label, _writer(kind, label), *_readers(kind, label), types=kinds, forms=frozenset((codes.PATH,)))


PATHS: Final[dict[type, Shape]] = {
    **{kind: _shape(kind, kind.__name__) for kind in _ALL},
    os.PathLike: _shape(PurePath, "PathLike"),
}
"""The shape of each class of paths. `os.PathLike` stands for any of them."""
