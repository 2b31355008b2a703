"""Build hook: compiles the sandbox's two C programs and puts them into the wheel, which so fits one platform.

Where no compiler works, an editable install goes on without them (the server tries again at its start), and a
wheel fails: one without them would be broken everywhere.
"""

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_LOCAL = Path("src/fermata/sandboxes/providers/local")


class NativeProgramsHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """A compiler to be fetched where the machine has none."""
        has_compiler = any(shutil.which(name) for name in ("musl-gcc", "cc", "gcc", "clang"))
        return [] if has_compiler or sys.platform != "linux" else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or sys.platform != "linux":
            return
        native = _load(Path(self.root) / _LOCAL / "native" / "build.py")
        target = Path(self.root) / _LOCAL / "bin"
        if not native.is_built(target):
            try:
                compiler = native.build(target)
            except native.BuildError as error:
                if version == "editable":
                    self.app.display_warning(f"sandbox programs not built: {error}")
                    return
                raise
            self.app.display_info(f"sandbox programs built with {compiler}")
        if version == "editable":
            return
        for name in native.FILES:
            build_data["force_include"][str(target / name)] = f"fermata/sandboxes/providers/local/bin/{name}"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        # Static programs need no libc of the machine, so any Linux of this processor will do.
        machine = platform.removeprefix("linux_")
        build_data["tag"] = f"py3-none-manylinux_2_17_{machine}.musllinux_1_1_{machine}"


def _load(path: Path) -> Any:
    """The package cannot be imported while it is being built."""
    spec = importlib.util.spec_from_file_location("fermata_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
