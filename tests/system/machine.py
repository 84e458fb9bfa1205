# SPDX-License-Identifier: Apache-2.0
"""A guest with a kernel of its own: Debian's, in QEMU, emulated (nothing of the host is needed but a user who may run QEMU).

For what a container cannot show: cgroup v2, AppArmor, the clock, sysctls of the kernel, a power cut.  It says whether, never how
fast: emulation is 20 to 50 times slower than the machine.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path

from tests.system.guest import Guest
from tests.system.image import BOOKWORM, image, seed

KERNEL_LINE = (
    "console=ttyS0 quiet panic=-1 root=/dev/vda rw mitigations=off nokaslr random.trust_cpu=on no_timer_check tsc=reliable "
    "audit=1 apparmor=1 security=apparmor systemd.show_status=0 systemd.log_target=journal"
)

MOST_RESETS = 2


class Machine(Guest):
    """One booted machine.  `kernel_options` are added to the kernel's command line."""

    patience = 6.0

    def __init__(self, *kernel_options: str, memory_mib: int = 1536, suite: str = BOOKWORM) -> None:
        made = image(machine=True, suite=suite) / "machine"
        super().__init__(suite)
        initrd = initrd_with_seed(made / "initrd", self.folder)
        self.boot(
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"),
            *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem", "-smp", "2", "-m", str(memory_mib)),
            *("-kernel", str(made / "vmlinux"), "-initrd", str(initrd), "-append", " ".join((KERNEL_LINE, *kernel_options))),
            *("-drive", f"if=none,id=root,file={made}/root.img,format=raw,snapshot=on,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-chardev", f"file,id=console,path={self.folder}/console", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=line,path={self.folder}/line", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=line,name=guest"),
            *("-chardev", f"socket,id=monitor,path={self.folder}/monitor,server=on,wait=off", "-monitor", "chardev:monitor"),
        )

    def monitor(self, command: str) -> str:
        """One command of QEMU's monitor, and what it printed."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.folder / "monitor"))
            told = b""
            for request in (b"", command.encode() + b"\n"):
                line.sendall(request)
                told = b""
                while not told.endswith(b"(qemu) "):
                    told += line.recv(4096)
        return told.decode().partition("\n")[2].removesuffix("(qemu) ").strip()

    def keep(self, name: str) -> None:
        """Keeps the state of everything, memory too, under a name."""
        told = self.monitor(f"savevm {name}")
        assert not told, told

    def back_to(self, name: str) -> None:
        """Goes back to a state that was kept; the clock alone goes on."""
        told = self.monitor(f"loadvm {name}") + self.monitor("cont")
        assert not told, told
        self.forget()
        self.run(["date", "-s", f"@{time.time():.3f}"])

    def pause(self) -> None:
        """Takes no processor time until it goes back to a state."""
        self.monitor("stop")

    def wait_ready(self, boots: int = 1, timeout_s: float = 60) -> None:
        self._looked, self._resets = len(self.console()), 0
        super().wait_ready(boots, timeout_s)

    def _started_over(self) -> bool:
        """Now and then the emulator lets both processors of a booting kernel wait for one another for good, and Linux says so.

        Nothing of ours runs by then, and a boot that is cut off is one more boot.
        """
        stuck = re.search(r"soft lockup - CPU#\d+ stuck for (?:[6-9]\d|\d{3,})s", self.console()[self._looked :])
        if stuck is None or self._resets == MOST_RESETS:
            return False
        print(f"the emulated kernel is locked up ({stuck[0]}): reset")
        self._looked, self._resets = len(self.console()), self._resets + 1
        self.monitor("system_reset")
        return True

    def cut_power(self) -> None:
        """Starts again without a word to the guest: what no program wrote through to the disk is lost."""
        boots = self._ready
        self.monitor("system_reset")
        self.wait_ready(boots + 1)


def initrd_with_seed(initrd: Path, folder: Path) -> Path:
    """The image's initrd and behind it a second archive, which the kernel unpacks over the first: it copies /seed to the root."""
    seed(folder / "seed", device=r"dev-virtio\x2dports-guest.device")
    names = "\n".join(str(path.relative_to(folder)) for path in sorted((folder / "seed").rglob("*")))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=folder, input=names.encode(), capture_output=True, check=True
    )
    both = folder / "initrd"
    both.write_bytes(initrd.read_bytes() + packed.stdout)
    return both
