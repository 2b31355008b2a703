"""The host base: the machine's own programs, and nothing else of it.

`/usr` is bound read-only; everything around it is generated here. What a distribution keeps in `/etc` for
its programs (alternatives, the loader's cache, certificates of public authorities, settings of Python,
Java and fontconfig) is copied; accounts, keys, names and addresses of the machine are not. Directories
below `/usr` that hold an administrator's settings are covered with an empty one: a registry token in
`/usr/etc/npmrc` is a secret of the host. Tools that the host has elsewhere, such as `/opt` or a version
manager in a home directory, are not there.
"""

import os
import shutil
import stat
from pathlib import Path

from fermata.kit.errors import SandboxUnsupportedError

#: Raised when what is generated below changes, so that new sandboxes do not keep an older layout.
LAYOUT = 1

_DIRECTORIES = {
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "srv": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "var": 0o755,
    "var/cache": 0o755,
    "var/lib": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
    "workspace": 0o755,
}
_COMPANIONS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
#: Settings of the host below /usr, hidden from a sandbox.
_HIDDEN = ("/usr/etc", "/usr/local/etc")
#: What programs below /usr need of /etc, as glob patterns. Only what everybody may read is taken.
_COPIED = (
    "alternatives",
    "debian_version",
    "fonts",
    "java*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "mime.types",
    "pki/ca-trust/extracted",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "python3*",
    "ssl/cert.pem",
    "ssl/certs/ca-certificates.crt",
    "ssl/openssl.cnf",
)
_FILES = {
    "group": "root:x:0:\nmail:x:8:\nshadow:x:42:\nutmp:x:43:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\n",
    "hostname": "sandbox\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n",
    "machine-id": "",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "profile": 'export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"\n',
    "protocols": "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n",
    "resolv.conf": "",
    "services": "ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\ngit 9418/tcp\n",
    "shells": "/bin/sh\n/bin/bash\n",
}
_ENTRIES_AT_MOST = 20_000
_BYTES_AT_MOST = 200_000_000


def build_host_root(root: Path, empty: Path, *, host: Path = Path("/")) -> tuple[tuple[str, str], ...]:
    """Fill the empty directory `root` and return what is to be bound over it, in this order.

    `empty` is made as an empty directory beside `root`; a bind of it has its bare name as source.

    Raises `SandboxUnsupportedError` where the host has no shell in `/usr/bin` or `/bin`: such a machine
    keeps its programs elsewhere and needs a base of its own.
    """
    if not any((host / place / "sh").exists() for place in ("usr/bin", "bin")):
        raise SandboxUnsupportedError(
            "this machine keeps its programs outside /usr, so they cannot be lent to a sandbox: "
            "name a root file system in FERMATA_SANDBOX_BASE"
        )
    for name in _DIRECTORIES:
        (root / name).mkdir()
    binds = [(str(host / "usr"), "/usr")]
    for name in _COMPANIONS:
        there = host / name
        if there.is_symlink():
            (root / name).symlink_to(f"usr/{name}")
        elif there.is_dir():
            (root / name).mkdir()
            binds.append((str(there), f"/{name}"))
    empty.mkdir()
    for hidden in _HIDDEN:
        there = host / hidden[1:]
        if there.is_dir() and there.resolve() == host.resolve() / hidden[1:]:
            binds.append((empty.name, hidden))
    _write_etc(root / "etc", host)
    # Whatever the umask: users inside are not the owner of all this.
    for place, _, _ in os.walk(root):
        os.chmod(place, _DIRECTORIES.get(os.path.relpath(place, root), 0o755))
    empty.chmod(0o755)
    return tuple(binds)


def _write_etc(etc: Path, host: Path) -> None:
    for name, text in _FILES.items():
        (etc / name).write_text(text)
        (etc / name).chmod(0o644)
    (etc / "mtab").symlink_to("../proc/self/mounts")
    if (host / "usr/lib/os-release").exists():
        (etc / "os-release").symlink_to("../usr/lib/os-release")
    budget = _Budget()
    for pattern in _COPIED:
        for there in sorted((host / "etc").glob(pattern)):
            budget.copy(there, etc / there.relative_to(host / "etc"))
    _link_authorities(host, etc / "ssl" / "certs")


def _link_authorities(host: Path, certs: Path) -> None:
    """Links by name and by hash to the public authorities that the distribution ships below /usr.

    A certificate that lies in /etc/ssl/certs itself is the machine's own, and is left out.
    """
    shipped = tuple(
        f"{(host / place).resolve()}/"
        for place in ("usr/share/ca-certificates", "usr/local/share/ca-certificates")
    )
    source = host / "etc/ssl/certs"
    if not source.is_dir():
        return
    certs.mkdir(parents=True, exist_ok=True)
    for link in sorted(source.iterdir()):
        if link.is_symlink() and str(link.resolve()).startswith(shipped):
            (certs / link.name).symlink_to(link.readlink())


class _Budget:
    """Copies what is world-readable, within fixed ceilings: /etc is small, and if not, something is odd."""

    def __init__(self) -> None:
        self.entries = 0
        self.bytes = 0

    def copy(self, source: Path, target: Path) -> None:
        found = source.lstat()
        self.entries += 1
        self.bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
        if self.entries > _ENTRIES_AT_MOST or self.bytes > _BYTES_AT_MOST:
            raise SandboxUnsupportedError(
                "the settings of this machine's programs in /etc are too large to copy: "
                "name a root file system in FERMATA_SANDBOX_BASE"
            )
        if target.is_symlink() or target.is_file():
            return
        if stat.S_ISLNK(found.st_mode):
            if _stays_inside(source):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.readlink())
        elif stat.S_ISDIR(found.st_mode):
            if found.st_mode & 0o005 == 0o005:
                target.mkdir(parents=True, exist_ok=True)
                for name in sorted(os.listdir(source)):
                    self.copy(source / name, target / name)
        elif stat.S_ISREG(found.st_mode) and found.st_mode & 0o004:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if found.st_mode & 0o111 else 0o644)


def _stays_inside(link: Path) -> bool:
    """Whether a link leads below /usr or stays in /etc; any other would only tell a path of the host."""
    target = os.path.normpath(link.parent / link.readlink())
    return target.startswith(("/usr/", "/bin/", "/sbin/", "/lib", "/etc/"))
