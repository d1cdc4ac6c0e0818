"""A record of what a program does to a folder, and all the states in which a crash may leave the disk."""

import itertools
import os
import sys
import threading
from pathlib import Path

TORN = (lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-1])


class Recorder:
    """Records what happens to names below a folder, and to the files' content, as a list of tuples.

    Names come from Python's audit events, so no caller escapes; content is looked at before each event; a sync is seen
    through os.fsync. Whatever a file has gained between two events counts as one unsynced write.
    """

    _active = None
    _is_hooked = False
    _own_work = threading.local()  # What the recorder itself does, in its thread, is not recorded.

    def __init__(self, root):
        self.root = str(root)
        self.operations = []
        self._inodes = {}  # path -> number of the file
        self._content = {}  # number of the file -> bytes as last seen
        self._lock = threading.RLock()

    def __enter__(self):
        if not Recorder._is_hooked:  # An audit hook cannot be removed: there is one for all recorders.
            sys.addaudithook(Recorder._hook)
            Recorder._is_hooked = True
        Recorder._active = self
        self._fsync, os.fsync = os.fsync, self._sync
        return self

    def __exit__(self, *error):
        os.fsync = self._fsync
        Recorder._active = None

    def mark(self, note):
        """Note that the program has come so far."""
        self._add("mark", note)

    @staticmethod
    def _hook(event, arguments):
        recorder = Recorder._active
        is_own = getattr(Recorder._own_work, "going_on", False)
        if recorder and not is_own and event in ("open", "os.mkdir", "os.rmdir", "os.remove", "os.rename"):
            recorder._record(event, arguments)

    def _record(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str) and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
                path = self._below(path, -1)
                if path and path not in self._inodes:
                    self._add("create", path)
        elif event == "os.rename":
            source, target = (self._below(arguments[i], arguments[i + 2]) for i in (0, 1))
            if source and target:
                self._add("rename", source, target)
        else:
            path = self._below(arguments[0], arguments[-1])
            if path and (event != "os.remove" or path in self._inodes):
                self._add(event.removeprefix("os."), path)

    def _sync(self, descriptor):
        path = _path_of(descriptor)
        if path in self._inodes:
            self._add("sync", path)
        elif path.startswith(self.root):
            self._add("sync folder", path)
        self._fsync(descriptor)

    def _add(self, kind, *rest):
        Recorder._own_work.going_on = True
        with self._lock:
            self._look_at_files()
            if kind == "create":
                rest = (*rest, self._inodes.setdefault(rest[0], len(self._content)))
                self._content[rest[1]] = b""
            elif kind == "rename":
                self._inodes[rest[1]] = self._inodes.pop(rest[0])
                rest = (*rest, self._inodes[rest[1]])
            elif kind == "remove":
                self._inodes.pop(rest[0], None)
            elif kind == "sync":
                rest = (self._inodes[rest[0]],)
            self.operations.append((kind, *rest))
        Recorder._own_work.going_on = False

    def _look_at_files(self):
        for path, inode in self._inodes.items():
            if Path(path).exists():
                content = Path(path).read_bytes()
                if content != self._content[inode]:
                    self._content[inode] = content
                    self.operations.append(("write", inode, content))

    def _below(self, path, folder):
        """Return the absolute path, or None where it does not lie below the recorded folder."""
        place = Path(_path_of(folder)) if isinstance(folder, int) and folder >= 0 else Path.cwd()
        path = str(place / os.fsdecode(path))
        return path if path.startswith(self.root + os.sep) else None


class Disk:
    """What may be left of a sequence of operations.

    Content that was not synced since it was written may be whole, torn or empty. A change of a name that was not
    followed by a sync of its folder may be lost, each by itself, whatever happened after it.
    """

    def __init__(self, root):
        self._root = Path(root)
        self._content = {}
        self._synced = {}
        self._changes = []  # [operation, has reached the disk]

    def apply(self, operation):
        kind, *rest = operation
        if kind == "write":
            self._content[rest[0]] = rest[1]
        elif kind == "sync":
            self._synced[rest[0]] = self._content[rest[0]]
        elif kind == "sync folder":
            for change in self._changes:
                change[1] |= _folder_of(change[0]) == rest[0]
        elif kind != "mark":
            if kind == "create":
                self._content[rest[1]] = b""
            self._changes.append([operation, False])
            if kind == "rmdir":  # What happened in a folder that is gone makes no difference any more.
                for change in self._changes:
                    change[1] |= _folder_of(change[0]) == rest[0]

    def crash(self):
        """Yield each tree, {path: content} with None for a folder, that the disk may hold now."""
        pending = [index for index, (_, is_safe) in enumerate(self._changes) if not is_safe]
        for lost in itertools.chain.from_iterable(
            itertools.combinations(pending, count) for count in range(len(pending) + 1)
        ):
            names = self._names(set(lost))
            files = {path: inode for path, inode in names.items() if inode is not None}
            choices = [self._possible_content(inode) for inode in files.values()]
            for contents in itertools.product(*choices):
                yield names | dict(zip(files, contents, strict=True))

    def _possible_content(self, inode):
        content = self._content[inode]
        if self._synced.get(inode) == content:
            return [content]
        return list({content, *(tear(content) for tear in TORN)})

    def _names(self, lost):
        names = {}
        for index, ((kind, *rest), _) in enumerate(self._changes):
            if index in lost:
                continue
            if kind == "create":
                names[rest[0]] = rest[1]
            elif kind == "rename":
                names.pop(rest[0], None)
                names[rest[1]] = rest[2]
            elif kind == "mkdir":
                names.setdefault(rest[0], None)
            else:
                names.pop(rest[0], None)
        return {path: inode for path, inode in names.items() if self._is_reachable(path, names)}

    def _is_reachable(self, path, names):
        """Tell whether the folders above a path exist; the root always does."""
        parents = Path(path).relative_to(self._root).parents
        return all(str(self._root / parent) in names for parent in parents if parent != Path())


def _folder_of(change):
    kind, *rest = change
    return str(Path(rest[1] if kind == "rename" else rest[0]).parent)


def _path_of(descriptor):
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())
