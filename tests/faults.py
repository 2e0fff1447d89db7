"""A file system that fails, for tests: a library that processes load first makes calls on a folder's files fail.

Which calls, with which error, and how often can change at any time, in all processes at once. It is compiled here.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SYNC, MAKE, WRITE, READ = 1, 2, 4, 8  #: kinds of calls; MAKE is for names: those made, linked, renamed and removed
ALL = SYNC | MAKE | WRITE | READ
_CONTROL = struct.Struct("<iiiii")  #: kinds, error, every how many calls, calls so far, calls that failed
_UNDER = 64  #: where the folder's path begins
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

struct control { volatile int kinds, error, every, calls, failed; };
static struct control *control;

__attribute__((constructor)) static void start(void) {
    int fd = open(getenv("TEST_FAULTS"), O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    control = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
}

static int below(int dir, const char *name) {
    char link[64], path[8192];
    const char *under = (const char *)control + 64;
    ssize_t size = 0;
    if (!name || name[0] != '/') {
        if (dir == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        size = readlink(link, path, 4096);
        if (size < 0) return 0;
    }
    path[size] = 0;
    if (name) snprintf(path + size, 4096, "%s%s", name[0] == '/' ? "" : "/", name);
    return !strncmp(path, under, strlen(under));
}

static int fails(int kind, int dir, const char *name) {
    if (!control || control == MAP_FAILED || !(control->kinds & kind)) return 0;
    int before = errno, error = control->error, every = control->every;
    int found = below(dir, name) && __sync_add_and_fetch(&control->calls, 1) % every == 0;
    errno = found ? error : before;
    if (found) __sync_add_and_fetch(&control->failed, 1);
    return found;
}

#define NEXT(name) static __typeof__(name) *next; if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int fsync(int fd) { NEXT(fsync); return fails(1, fd, 0) ? -1 : next(fd); }
int fdatasync(int fd) { NEXT(fdatasync); return fails(1, fd, 0) ? -1 : next(fd); }
#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { \
    NEXT(name); va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return fails(flags & O_CREAT ? 2 : 8, dir, path) ? -1 : next(dir, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)
int linkat(int from, const char *a, int to, const char *b, int flags) {
    NEXT(linkat); return fails(2, to, b) ? -1 : next(from, a, to, b, flags); }
int renameat(int from, const char *a, int to, const char *b) {
    NEXT(renameat); return fails(2, to, b) ? -1 : next(from, a, to, b); }
int mkdirat(int dir, const char *name, mode_t mode) {
    NEXT(mkdirat); return fails(2, dir, name) ? -1 : next(dir, name, mode); }
int unlinkat(int dir, const char *name, int flags) {
    NEXT(unlinkat); return fails(2, dir, name) ? -1 : next(dir, name, flags); }
ssize_t write(int fd, const void *data, size_t size) {
    NEXT(write); return fails(4, fd, 0) ? -1 : next(fd, data, size); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) {
    NEXT(pwrite64); return fails(4, fd, 0) ? -1 : next(fd, data, size, at); }
ssize_t read(int fd, void *data, size_t size) { NEXT(read); return fails(8, fd, 0) ? -1 : next(fd, data, size); }
ssize_t pread64(int fd, void *data, size_t size, off_t at) {
    NEXT(pread64); return fails(8, fd, 0) ? -1 : next(fd, data, size, at); }
"""


class Faults:
    """What fails on the files below ``folder``, in processes that start with ``environ``."""

    def __init__(self, home: Path, folder: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None or not Path("/proc/self/fd").exists():
            pytest.skip("there is no C compiler here, or no /proc")
        library, source, self._path = home / "faults.so", home / "faults.c", home / "faults"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._path.write_bytes(bytes(mmap.PAGESIZE))
        with self._path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.folder = folder
        self.environ = {"LD_PRELOAD": str(library), "TEST_FAULTS": str(self._path)}

    def begin(self, kinds: int, error: int = errno.EIO, every: int = 1, under: str = "") -> None:
        """From now on, every so-many-th call of these kinds fails on files whose path begins so."""
        self.end()
        name = os.fsencode(self.folder / under if under else self.folder)
        self._page[_UNDER : _UNDER + len(name) + 1] = name + b"\0"
        _CONTROL.pack_into(self._page, 0, 0, error, every, 0, 0)
        _CONTROL.pack_into(self._page, 0, kinds, error, every, 0, 0)

    def end(self) -> None:
        """From now on, nothing fails."""
        struct.pack_into("<i", self._page, 0, 0)

    @property
    def failed(self) -> int:
        """How many calls have failed since `begin`."""
        return int(_CONTROL.unpack_from(self._page)[4])

    @contextmanager
    def during(self, kinds: int, error: int = errno.EIO, every: int = 1, under: str = "") -> Iterator[None]:
        """Within, calls fail as with `begin`."""
        self.begin(kinds, error, every, under)
        try:
            yield
        finally:
            self.end()
