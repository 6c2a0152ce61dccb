"""Reading LMDB files page by page with bounds checks, without liblmdb and without a memory map.

liblmdb trusts its file: a missing or damaged page, or a failing disk, kills the process with SIGBUS
    or SIGSEGV. Its Python binding (1.7, 1.8) also writes to freed memory if an environment opened
    before a fork is read after it, which crashes fairchem's data workers. Reading with ``pread``
    has no state that a fork could break, and every fault is an exception.

The layout is that of LMDB 0.9 on 64-bit little-endian machines (data format 1): there are two meta
pages, of which the newer one has the root of a B+ tree; branch pages contain keys and page numbers,
leaf pages keys and values, and values larger than half a page are in runs of overflow pages.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import Refused

_HEADER = struct.Struct("<QHHHH")  # page number, padding, flags, end of pointers, start of nodes
_META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf, overflow pages, entries, root
_NODE = struct.Struct("<HHHH")  # low and high half of a size or page number, flags, size of the key
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_NO_ROOT = 2**64 - 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_KIND = 0x7F  # the bits of the flags with the kind of page
_BIG, _OTHER_DATA = 0x01, 0x06  # flags of a node: value in overflow pages; sub-database, duplicates
_MAX_DEPTH = 32

AGAIN = "copy or convert the file again"


@dataclass(frozen=True)
class Meta:
    """The content of the newer meta page.

    Attributes:
        page_size: bytes. last_page: number of the last page in use. root: page number, None in an
            empty file. depth: levels of the tree. entries: keys in the file.
    """

    page_size: int
    last_page: int
    root: int | None
    depth: int
    entries: int


def read_meta(descriptor: int) -> Meta:
    """Read and check the meta pages and the length of the file.

    Raises:
        Refused: not an LMDB file, an unsupported kind, damaged, or truncated.
    """
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise Refused("file", f"not a readable LMDB file (it is empty); {AGAIN}")
    page_size = _page_size(os.pread(descriptor, 4096, 0))
    metas = []
    for number in (0, 1):
        page = os.pread(descriptor, page_size, number * page_size)
        if len(page) < 512:
            raise Refused("file", f"truncated, {size} bytes do not hold the meta pages; {AGAIN}")
        metas.append(_parse_meta(page, number, page_size))
    _, meta = max(metas, key=lambda entry: entry[0])
    needed = (meta.last_page + 1) * page_size
    if size < needed:
        raise Refused("file", f"truncated, {size} of {needed} bytes; {AGAIN}")
    return meta


def _page_size(page: bytes) -> int:
    if len(page) < 16 + _META.size + _TREE.size:
        raise Refused("file", f"not a readable LMDB file ({len(page)} bytes); {AGAIN}")
    magic, version, _, _ = _META.unpack_from(page, 16)
    if magic != _MAGIC:
        raise Refused(
            "file",
            f"not a readable LMDB file (wrong first bytes); {AGAIN}, or if it is a file of ASE, "
            "make a data set from it (`ndem data --help`)",
        )
    if version != _VERSION:
        raise Refused(
            "file", f"LMDB data format {version}; only format {_VERSION} (LMDB 0.9) can be read"
        )
    size = int(_TREE.unpack_from(page, 16 + _META.size)[0])
    if size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
        raise Refused("file", f"damaged meta page (page size {size}); {AGAIN}")
    return size


def _parse_meta(page: bytes, number: int, page_size: int) -> tuple[int, Meta]:
    """Transaction number and content of a meta page."""
    own, _, flags, _, _ = _HEADER.unpack_from(page)
    magic, version, _, _ = _META.unpack_from(page, 16)
    if flags & _KIND != _META_PAGE or own != number or (magic, version) != (_MAGIC, _VERSION):
        raise Refused("file", f"damaged meta page {number}; {AGAIN}")
    tree = 16 + _META.size + _TREE.size  # the first tree lists free pages, the second is the data
    _, kind, depth, _, _, _, entries, root = _TREE.unpack_from(page, tree)
    last_page, transaction = struct.unpack_from("<QQ", page, tree + _TREE.size)
    if kind != 0:
        raise Refused("file", f"another kind of keys than OC20's (LMDB flags {kind:#x})")
    empty = root == _NO_ROOT
    sound = depth == 0 and entries == 0 if empty else 1 < root <= last_page and depth > 0
    if not sound or depth > _MAX_DEPTH or entries > (last_page + 1) * page_size:
        raise Refused("file", f"damaged meta page {number}; {AGAIN}")
    return transaction, Meta(page_size, last_page, None if empty else root, depth, entries)


class LmdbFile:
    """One LMDB file, opened for reading. Safe to use in a forked child, because every read has its
    own offset.

    Raises:
        Refused: see :func:`read_meta`; every method, for a damaged page.
        OSError: the file cannot be opened or read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self.meta = read_meta(self._descriptor)
            status = os.fstat(self._descriptor)
        except BaseException:
            self.close()
            raise
        #: size and modification time, to notice whether the file was replaced
        self.stamp = (status.st_size, status.st_mtime_ns)
        self._branches: dict[int, tuple[list[bytes], list[int]]] = {}

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> LmdbFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``; None if the file has no such key."""
        number = self.meta.root
        if number is None:
            return None
        for _ in range(self.meta.depth - 1):
            keys, children = self._branch(number)
            number = children[bisect_right(keys, key)]
        page, pointers = self._tree_page(number, _LEAF)
        low, high = 0, len(pointers)
        while low < high:
            middle = (low + high) // 2
            if self._key(page, pointers[middle]) < key:
                low = middle + 1
            else:
                high = middle
        if low == len(pointers) or self._key(page, pointers[low]) != key:
            return None
        return self._value(page, pointers[low])

    def __iter__(self) -> Iterator[bytes]:
        """All keys in the order of their bytes. Values are not read."""
        if self.meta.root is None:
            return
        stack = [(self.meta.root, 1)]
        pages = 0
        while stack:
            number, level = stack.pop()
            pages += 1
            if pages > self.meta.last_page:
                raise Refused("page", f"damaged: its tree has more pages than the file; {AGAIN}")
            if level < self.meta.depth:
                stack += [(child, level + 1) for child in reversed(self._branch(number)[1])]
            else:
                page, pointers = self._tree_page(number, _LEAF)
                for pointer in pointers:
                    yield self._key(page, pointer)

    def _read(self, number: int, size: int) -> bytes:
        """``size`` bytes from the start of a page."""
        page_size = self.meta.page_size
        if not 1 < number <= self.meta.last_page:
            raise Refused(
                "page", f"damaged: a link to page {number}, which does not exist; {AGAIN}"
            )
        data = os.pread(self._descriptor, size, number * page_size)
        if len(data) < size:
            raise Refused("page", f"truncated while it was read, at page {number}; {AGAIN}")
        return data

    def _tree_page(self, number: int, kind: int) -> tuple[bytes, memoryview]:
        """A branch or leaf page and the places of its nodes."""
        page = self._read(number, self.meta.page_size)
        own, _, flags, lower, upper = _HEADER.unpack_from(page)
        if own != number or flags & _KIND != kind or not 16 <= lower <= upper <= len(page):
            raise Refused("page", f"damaged page {number}; {AGAIN}")
        return page, memoryview(page)[16 : lower - lower % 2].cast("H")

    def _branch(self, number: int) -> tuple[list[bytes], list[int]]:
        """Keys that separate the children (without the first, which is empty), and the children.

        Cached: a file of a million records has about a hundred branch pages.
        """
        found = self._branches.get(number)
        if found is not None:
            return found
        page, pointers = self._tree_page(number, _BRANCH)
        if not len(pointers):
            raise Refused("page", f"damaged page {number}; {AGAIN}")
        keys, children = [], []
        for pointer in pointers:
            keys.append(self._key(page, pointer))
            low, high, flags, _ = _NODE.unpack_from(page, pointer)
            children.append(low | high << 16 | flags << 32)
        self._branches[number] = keys[1:], children
        return self._branches[number]

    @staticmethod
    def _key(page: bytes, pointer: int) -> bytes:
        end = pointer + 8
        if end <= len(page):
            end += page[pointer + 6] | page[pointer + 7] << 8
            if end <= len(page):
                return page[pointer + 8 : end]
        raise Refused("page", f"damaged: a key beyond the end of its page; {AGAIN}")

    def _value(self, page: bytes, pointer: int) -> bytes:
        low, high, flags, key_size = _NODE.unpack_from(page, pointer)
        size, start = low | high << 16, pointer + 8 + key_size
        if flags & _OTHER_DATA:
            raise Refused("page", "contains sub-databases or duplicates, unlike OC20's layout")
        if not flags & _BIG:
            if start + size > len(page):
                raise Refused("page", f"damaged: a value beyond the end of its page; {AGAIN}")
            return page[start : start + size]
        if start + 8 > len(page):
            raise Refused("page", f"damaged: a value beyond the end of its page; {AGAIN}")
        (number,) = struct.unpack_from("<Q", page, start)
        left = (self.meta.last_page - number + 1) * self.meta.page_size
        if size + 16 > left:
            raise Refused("page", f"damaged: a value of {size} bytes at page {number}; {AGAIN}")
        data = self._read(number, size + 16)
        own, _, flags, low, high = _HEADER.unpack_from(data)
        pages = low | high << 16
        if own != number or flags & _KIND != _OVERFLOW or size + 16 > pages * self.meta.page_size:
            raise Refused("page", f"damaged page {number}; {AGAIN}")
        return data[16:]
