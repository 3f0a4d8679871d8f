"""Checks of files and folders in the scratch folder, and of what else a program asks about its place."""

import errno
import os
import stat
import struct

import msgspec

from ptserver.conformance.caller import AT_FDCWD, AT_REMOVEDIR, Caller
from ptserver.conformance.checks import Check, Server, check, fail, require
from ptserver.conformance.client import POINTER
from ptserver.messages import MAX_TRANSFER_BYTES

_GROUP = "files"
_DT_DIR, _DT_REG = 4, 8  # <dirent.h>
_MOST_UNREAD = 300
_PATIENCE = 0.5  # seconds without progress after which a server is taken to have stopped reading
_CREATE = os.O_RDWR | os.O_CREAT | os.O_TRUNC


@check(_GROUP, "what is written can be read again")
def _round_trip(server: Server) -> None:
    data = os.urandom(10_000)
    with server.own_session() as client, server.folder(client) as folder:
        fd = client.open(folder + b"/file", _CREATE)
        require(client.write(fd, data) == len(data), "a file took less than was written")
        require(client.do("lseek", fd, 0, os.SEEK_SET).value == 0, "lseek does not return the new place")
        require(client.read(fd, 20_000) == data, "read gave other data")
        require(client.read(fd, 10) == b"", "there is data after the end")
        require(client.pread(fd, 100, 500) == data[500:600], "pread64 gave other data")
        client.do("pwrite64", fd, POINTER, 3, 0, ins={1: b"abc"})
        require(client.pread(fd, 4, 0) == b"abc" + data[3:4], "pwrite64 wrote something else")
        client.close_fd(fd)
        again = client.open(folder + b"/file")
        require(client.read(again, 3) == b"abc", "a second look at the file gave other data")


@check(_GROUP, "the largest transfer goes through, both ways")
def _large(server: Server) -> None:
    data = os.urandom(1 << 16) * (MAX_TRANSFER_BYTES >> 16)
    with server.own_session() as client, server.folder(client) as folder:
        fd = client.open(folder + b"/large", _CREATE)
        require(client.write(fd, data) == len(data), "the file took less than was written")
        require(client.pread(fd, len(data), 0) == data, "pread64 gave other data, or less")


@check(_GROUP, "a host that does not read is held up, it alone, and loses nothing")
def _back_pressure(server: Server) -> None:
    with server.own_session() as bystander, server.own_session() as client, server.folder(client) as folder:
        fd = client.open(folder + b"/file", _CREATE)
        data = os.urandom(1 << 16) * 16
        client.write(fd, data)
        numbers = []
        for place in range(_MOST_UNREAD):  # each asks for much, and brings enough to fill what holds input
            call = client.make_call("pread64", fd, POINTER, len(data), outs={1: len(data)}, tid=8000 + place)
            filler = msgspec.structs.replace(call, ins={5: bytes(1 << 16)})
            numbers.append(call.id)
            if not client.offer(filler, _PATIENCE):
                break
        else:
            fail(f"the server took {len(numbers)} calls of a MiB each from a host that reads nothing")
        bystander.ping()
        for number in numbers:
            require(client.data(client.result(number)) == data, "a result is not what was written")


@check(_GROUP, "a new descriptor has the lowest free number")
def _lowest(server: Server) -> None:
    with server.own_session() as client, server.folder(client) as folder:
        first, second = client.open(folder), client.open(folder)
        require(second == first + 1, f"after {first} came {second}")
        require(first > 2, f"{first} is a standard stream")
        client.close_fd(first)
        again = client.open(folder)
        require(again == first, f"{first} was closed, and {again} came")
        twin = client.do("dup3", again, 700, os.O_CLOEXEC).value
        require(twin == 700, f"dup3 to 700 gave {twin}")
        require(client.do("fcntl", 700, 1).value == 1, "F_GETFD does not show FD_CLOEXEC")  # F_GETFD


@check(_GROUP, "fstat and newfstatat tell size and kind")
def _stat(server: Server) -> None:
    with server.own_session() as client, server.folder(client) as folder:
        fd = client.open(folder + b"/file", _CREATE, 0o640)
        client.write(fd, bytes(1234))
        outs = {2: 144}
        by_name = client.do(
            "newfstatat", AT_FDCWD, POINTER, POINTER, 0, ins={1: folder + b"/file"}, outs=outs
        )
        for result, index in ((client.do("fstat", fd, POINTER, outs={1: 144}), 1), (by_name, 2)):
            data = client.structure(result, index, 144)
            mode, size = struct.unpack_from("<I", data, 24)[0], struct.unpack_from("<q", data, 48)[0]
            require(stat.S_ISREG(mode), f"the mode is {mode:o}")
            require(size == 1234, f"the size is {size}")


@check(_GROUP, "folders are made, listed and removed")
def _folders(server: Server) -> None:
    with server.own_session() as client, server.folder(client) as folder:
        names = {b"name%03d-%s" % (number, b"x" * number): _DT_REG for number in range(100)}
        for name in names:
            client.close_fd(client.open(folder + b"/" + name, _CREATE))
        client.mkdir(folder + b"/sub")
        found = client.list_folder(folder)
        require(found == names | {b"sub": _DT_DIR}, f"of 101 names {len(found)} were found, or other kinds")
        result = client.call("mkdirat", AT_FDCWD, POINTER, 0o700, ins={1: folder + b"/sub"})
        require(result.errno == errno.EEXIST, f"a second mkdirat gave errno {result.errno}")
        client.unlink(folder + b"/sub", AT_REMOVEDIR)
        for name in names:
            client.unlink(folder + b"/" + name)
        require(client.list_folder(folder) == {}, "names are left")


@check(_GROUP, "names are bytes, not text")
def _byte_names(server: Server) -> None:
    with server.own_session() as client, server.folder(client) as folder:
        name = b"\xff\xfe \n \xc3\xa4 \x01"
        fd = client.open(folder + b"/" + name, _CREATE)
        client.write(fd, b"x")
        require([*client.list_folder(folder)] == [name], "the name was changed")


@check(_GROUP, "names are looked up from an open folder")
def _from_folder(server: Server) -> None:
    with server.own_session() as client, server.folder(client) as folder:
        dirfd = client.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        client.do("mkdirat", dirfd, POINTER, 0o700, ins={1: b"sub"})
        fd = client.open(b"sub/file", _CREATE, dirfd=dirfd)
        client.write(fd, b"x")
        client.do("renameat", dirfd, POINTER, dirfd, POINTER, ins={1: b"sub/file", 3: b"moved"})
        require(client.list_folder(folder) == {b"sub": _DT_DIR, b"moved": _DT_REG}, "renameat did not move")
        result = client.call("openat", fd, POINTER, 0, 0, ins={1: b"x"})
        require(result.errno == errno.ENOTDIR, f"a name from a file gave errno {result.errno}")


@check(_GROUP, "the working folder is the session's own")
def _working_folder(server: Server) -> None:
    with server.own_session() as client, server.own_session() as other, server.folder(client) as folder:

        def where(session: Caller) -> bytes:
            result = session.do("getcwd", POINTER, 4096, outs={0: 4096})
            return client.data(result, 0).rstrip(b"\0")

        before = where(other)
        client.do("chdir", POINTER, ins={0: folder})
        require(os.path.basename(where(client)) == os.path.basename(folder), f"it is {where(client)!r}")
        require(where(other) == before, "chdir moved another session")
        client.close_fd(client.open(b"here", _CREATE))
        require(client.list_folder(folder) == {b"here": _DT_REG}, "a relative name went elsewhere")
        result = other.call("openat", AT_FDCWD, POINTER, 0, 0, ins={1: b"here"})
        require(result.errno == errno.ENOENT, "another session finds the relative name")
        client.do("chdir", POINTER, ins={0: b"/"})


@check(_GROUP, "symbolic links are made and read")
def _links(server: Server) -> None:
    with server.own_session() as client, server.folder(client) as folder:
        client.do("symlinkat", POINTER, AT_FDCWD, POINTER, ins={0: b"\xfftarget", 2: folder + b"/link"})
        outs = {2: 100}
        result = client.do(
            "readlinkat", AT_FDCWD, POINTER, POINTER, 100, ins={1: folder + b"/link"}, outs=outs
        )
        require(client.data(result, 2) == b"\xfftarget", f"the link leads to {client.data(result, 2)!r}")


@check(_GROUP, "vectors are carried as one buffer")
def _vectors(server: Server) -> None:
    with server.own_session() as client:
        reader, writer = client.pipe()
        value = client.do("writev", writer, POINTER, 2, ins={1: b"onetwo"}).value
        require(value == 6, f"writev took {value} of 6 bytes")
        result = client.do("readv", reader, POINTER, 3, outs={1: 100})
        require(client.data(result) == b"onetwo", f"readv gave {client.data(result)!r}")


@check(_GROUP, "the host's name is the one of the welcome")
def _host_name(server: Server) -> None:
    with server.own_session() as client:
        data = client.structure(client.do("uname", POINTER, outs={0: 390}), 0, 390)
        system, node = data[:65].rstrip(b"\0"), data[65:130].rstrip(b"\0").decode(errors="replace")
        require(system == b"Linux", f"the system is {system!r}")
        require(node == client.welcome.host, f"the name is {node!r}, the welcome's {client.welcome.host!r}")


CHECKS: tuple[Check, ...] = (
    _round_trip,
    _large,
    _back_pressure,
    _lowest,
    _stat,
    _folders,
    _byte_names,
    _from_folder,
    _working_folder,
    _links,
    _vectors,
    _host_name,
)
