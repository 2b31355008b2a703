"""The system calls that a sandbox may not make, as a program for the kernel's filter.

Built here from numbers, for the machine it runs on, so that nothing has to be installed. What is not named is
allowed up to the newest call that was judged; younger ones do not exist inside, until somebody judged them.
"""

import errno
import platform
import struct

from fermata.kit.errors import SandboxUnsupportedError

_LOAD, _EQUAL, _ABOVE, _SET, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERROR = 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16

#: Newest call that was judged: futex_requeue.
_NEWEST = 456

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: name: (x86-64, aarch64). The error is what a program gets that lacks the right, or a kernel without it.
_REFUSED: dict[int, dict[str, tuple[int | None, int | None]]] = {
    errno.EPERM: {
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "unshare": (272, 97),
        "setns": (308, 268),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "reboot": (169, 142),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "acct": (163, 89),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
        "iopl": (172, None),
        "ioperm": (173, None),
        "syslog": (103, 116),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "open_by_handle_at": (304, 265),
        "name_to_handle_at": (303, 264),
        "lookup_dcookie": (212, 18),
        "vhangup": (153, 58),
        "sethostname": (170, 161),
        "setdomainname": (171, 162),
        "kcmp": (312, 272),
        "pidfd_getfd": (438, 438),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "process_madvise": (440, 440),
        "fanotify_init": (300, 262),
        "fanotify_mark": (301, 263),
        "move_pages": (279, 239),
        "migrate_pages": (256, 238),
    },
    errno.ENOSYS: {
        "clone3": (435, 435),  # its flags lie in memory, where no filter sees them; libc falls back to clone
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "memfd_secret": (447, 447),
        "nfsservctl": (180, 42),
        "uselib": (134, None),
        "_sysctl": (156, None),
        "create_module": (174, None),
        "query_module": (178, None),
        "get_kernel_syms": (177, None),
        "sysfs": (139, None),
        "ustat": (136, None),
    },
    # Takes a disk's whole room in an instant; libc then writes zeros, which the limits bound.
    errno.EOPNOTSUPP: {"fallocate": (285, 47)},
}

_CLONE, _PERSONALITY = (56, 220), (135, 92)
_SOCKET, _IOCTL, _MKNOD, _MKNODAT = (41, 198), (16, 29), (133, None), (259, 33)
_NAMESPACES = 0x7E020000
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_INET_PROTOCOLS = (0, 1, 6, 17, 58)
_STREAM, _DATAGRAM, _RAW = 1, 2, 3
#: Typing into the terminal of another, and loading line disciplines.
_TERMINAL_REQUESTS = (0x5412, 0x541C, 0x5423)
_DEVICES = (0o020000, 0o060000)


class _Program:
    """Straight code: each test skips the one instruction, or block, that follows it."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int]] = []

    def load(self, offset: int) -> None:
        self.code.append((_LOAD, 0, 0, offset))

    def load_argument(self, index: int) -> None:
        self.load(_ARGUMENTS + 8 * index)

    def mask(self, bits: int) -> None:
        self.code.append((_AND, 0, 0, bits))

    def give(self, what: int) -> None:
        self.code.append((_RETURN, 0, 0, what))

    def give_if(self, test: int, value: int, what: int) -> None:
        self.code.append((test, 0, 1, value))
        self.give(what)

    def on_call(self, number: int, block: "_Program") -> None:
        """`block` must end in a return."""
        self.code.append((_EQUAL, 0, len(block.code), number))
        self.code += block.code

    def packed(self) -> bytes:
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in self.code)


def _error(number: int) -> int:
    return _ERROR | number


def _allow_only(argument: int, values: tuple[int, ...], error: int, mask: int | None = None) -> _Program:
    block = _Program()
    block.load_argument(argument)
    if mask is not None:
        block.mask(mask)
    for value in values:
        block.give_if(_EQUAL, value, _ALLOW)
    block.give(_error(error))
    return block


def _refuse(argument: int, values: tuple[int, ...], error: int, mask: int | None = None) -> _Program:
    block = _Program()
    block.load_argument(argument)
    if mask is not None:
        block.mask(mask)
    for value in values:
        block.give_if(_EQUAL, value, _error(error))
    block.give(_ALLOW)
    return block


def _sockets() -> _Program:
    inet = _Program()
    inet.load_argument(1)
    inet.mask(0xF)
    kinds = (_STREAM, _DATAGRAM, _RAW)
    for place, kind in enumerate(kinds):
        left = len(kinds) - place - 1
        inet.code.append((_EQUAL, left + 1, 0, kind))  # on to the protocol
    inet.give(_error(errno.EPROTONOSUPPORT))
    inet.code += _allow_only(2, _INET_PROTOCOLS, errno.EPROTONOSUPPORT).code
    block = _Program()
    block.load_argument(0)
    block.give_if(_EQUAL, _UNIX, _ALLOW)
    block.on_call(_NETLINK, _allow_only(2, (0,), errno.EPROTONOSUPPORT))
    block.on_call(_INET, inet)
    block.on_call(_INET6, inet)
    block.give(_error(errno.EAFNOSUPPORT))
    return block


def build_filter(machine: str | None = None) -> bytes:
    """The program, as bubblewrap and the kernel take it. `machine` as `uname -m` says it."""
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise SandboxUnsupportedError(
            f"no system call filter for {machine} processors: run on x86_64 or aarch64"
        )
    which = list(_ARCHITECTURES).index(machine)
    program = _Program()
    program.load(_ARCH)
    program.code.append((_EQUAL, 1, 0, _ARCHITECTURES[machine]))
    program.give(_KILL)  # another architecture's numbers mean other calls
    program.load(_NUMBER)
    program.give_if(_ABOVE, _NEWEST, _error(errno.ENOSYS))
    for error, calls in _REFUSED.items():
        for numbers in calls.values():
            number = numbers[which]
            if number is not None:
                program.give_if(_EQUAL, number, _error(error))
    namespaces = _Program()
    namespaces.load_argument(0)
    namespaces.give_if(_SET, _NAMESPACES, _error(errno.EPERM))
    namespaces.give(_ALLOW)
    for numbers, block in (
        (_CLONE, namespaces),
        (_PERSONALITY, _allow_only(0, _PERSONALITIES, errno.EPERM)),
        (_IOCTL, _refuse(1, _TERMINAL_REQUESTS, errno.EPERM)),
        (_MKNOD, _refuse(1, _DEVICES, errno.EPERM, mask=0o170000)),
        (_MKNODAT, _refuse(2, _DEVICES, errno.EPERM, mask=0o170000)),
        (_SOCKET, _sockets()),
    ):
        number = numbers[which]
        if number is not None:
            program.on_call(number, block)
    program.give(_ALLOW)
    return program.packed()
