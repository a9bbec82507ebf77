"""User, process, network, IPC, host-name and mount namespaces around the server.

Where the kernel lets an ordinary process make them, the server and every run live in a world with
no network, no other processes and no files but the standard library, at no cost per run. Default
Docker, Ubuntu 24.04 and hardened clusters refuse; the other layers do not need them.
"""

from __future__ import annotations

import errno
import os
import signal

from rewards.sandbox import kernel
from rewards.sandbox.library import Library

_NEW_MOUNTS, _NEW_HOSTNAME, _NEW_IPC = 0x20000, 0x4000000, 0x8000000
_NEW_USERS, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_WITHOUT_USERS = _NEW_MOUNTS | _NEW_HOSTNAME | _NEW_IPC | _NEW_PROCESSES | _NEW_NETWORK
_MS_BIND, _MS_RECURSIVE, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 1, 2, 4
# Folders of shared libraries that are links on most systems; the loader's cache names them.
_LINKS = ("/lib", "/lib64", "/usr/lib64")
# The folder the new root is built on; /proc must stay in sight while that happens.
_BUILDING_PLACE = "/tmp"


def clone_confined(library: Library) -> int:
    """Fork a child into new namespaces with only `library` to see; returns 0 in the child.

    Raises:
        OSError: The kernel refuses; nothing has changed for the caller.
    """
    try:
        return _clone_and_report(_NEW_USERS | _WITHOUT_USERS, library)
    except OSError:
        if os.geteuid() != 0:
            raise
        # Root may do without a user namespace, for instance where those are switched off.
        return _clone_and_report(_WITHOUT_USERS, library)


def _clone_and_report(flags: int, library: Library) -> int:
    """Clone; the child enters its world and says so, or says why not and is gone."""
    user, group = os.geteuid(), os.getegid()
    ready, report = os.pipe()
    pid = kernel.clone(flags | signal.SIGCHLD)
    if pid == 0:
        os.close(ready)
        try:
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            if flags & _NEW_USERS:
                _map_to_itself(user, group)
            _see_only(library)
        except OSError as refused:
            os.write(report, str(refused).encode())
            os._exit(1)
        os.close(report)
        return 0
    os.close(report)
    problem = os.read(ready, 4096).decode()
    os.close(ready)
    if problem:
        os.waitpid(pid, 0)
        raise OSError(errno.EPERM, problem)
    return pid


def _map_to_itself(user: int, group: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _see_only(library: Library) -> None:
    """Replace the root by an empty one that has the library's files, read-only."""
    kernel.mount(None, "/", None, _MS_PRIVATE | _MS_RECURSIVE)
    # Opened first: the new root is built on a folder that may cover the way to them.
    folders = sorted(library.folders, key=len)
    opened = {path: os.open(path, os.O_PATH) for path in (*folders, *library.files)}
    kernel.mount("tmpfs", _BUILDING_PLACE, "tmpfs", 0, "mode=755")
    os.chdir(_BUILDING_PLACE)
    for path in folders:
        _bind(path, opened, is_folder=True)
    for path in set(library.hidden) - set(folders):
        kernel.mount("tmpfs", path.lstrip("/"), "tmpfs", 0, "mode=755")
    for path in library.files:
        _bind(path, opened, is_folder=False)
    for path in _LINKS:
        _link(path)
    for descriptor in opened.values():
        os.close(descriptor)
    kernel.pivot_root_here()
    os.chdir("/")
    kernel.mount_read_only("/", _READ_ONLY | _NO_SETUID | _NO_DEVICES)


def _bind(path: str, opened: dict[str, int], is_folder: bool) -> None:
    target = path.lstrip("/")
    if os.path.exists(target):
        return  # Inside a folder that is bound already.
    if is_folder:
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    source = f"/proc/self/fd/{opened[path]}"
    kernel.mount(source, target, None, _MS_BIND | _MS_RECURSIVE)


def _link(path: str) -> None:
    """Repeat a link of the old root, if what it leads to is in the new one."""
    target = path.lstrip("/")
    if os.path.islink(path) and not os.path.lexists(target):
        leads_to = os.path.realpath(path)
        if os.path.isdir(leads_to.lstrip("/")):
            os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
            os.symlink(leads_to, target)
