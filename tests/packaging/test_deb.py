# SPDX-License-Identifier: Apache-2.0
"""The Debian package as a file: the same bits however it is built, nothing in it that does not belong there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging import deb as package
from tests.packaging.deb import ROOT, WHEELS, build, copy_tree, members

MAX_DEB_MB, MAX_INSTALLED_MB = 7.0, 25.0
CONFFILE = "etc/needrestart/conf.d/scaleoutd.conf"


@pytest.fixture
def fixed_time(deb: Path) -> dict[str, str]:
    """What the first build took from git, which a copy of the tree does not have."""
    return {"SOURCE_DATE_EPOCH": str(members(deb)["usr/bin/scaleoutd"].mtime)}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="scaleoutd-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


# The same bits


def test_an_ordinary_user_elsewhere_without_a_network_builds_the_same(
    deb: Path, fixed_time: dict[str, str], open_folder: Path
) -> None:
    """Another path, umask, zone, language, home; as root also another user and no network, else what there is."""
    tree, out = copy_tree(open_folder / "theirs"), open_folder / "out"
    out.mkdir()
    wheels = Path(shutil.copytree(WHEELS, open_folder / "wheels"))
    before = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    if os.geteuid() == 0:
        for path in (tree, out, *tree.rglob("*")):
            os.chown(path, 65534, 65534)
        wheels.chmod(0o755)
        before = ["unshare", "--net", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *before]
    there = {"PATH": "/usr/bin:/bin", "TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": "/nonexistent", **fixed_time}
    again = build(out, tree, wheels=wheels, before=before, python="/usr/bin/python3", environment=there)
    assert again.name == deb.name and again.read_bytes() == deb.read_bytes()


def test_another_version_is_another_package(deb: Path) -> None:
    """The control of the one above."""
    assert package.of_next_version().read_bytes() != deb.read_bytes()


def test_a_wheel_that_is_not_the_locks_is_not_taken(deb: Path, tmp_path: Path) -> None:
    wheels = Path(shutil.copytree(WHEELS, tmp_path / "wheels"))
    changed = next(wheels.glob("click-*.whl"))
    changed.write_bytes(changed.read_bytes() + b"\0")
    command: list[str | Path] = [sys.executable, "-B", ROOT / "packaging/deb.py", "--into", tmp_path, "--wheels", wheels]
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    ran = subprocess.run(command, env=offline, capture_output=True, text=True)
    assert ran.returncode != 0 and not list(tmp_path.glob("*.deb"))
    assert re.search(r"hash|no wheel", ran.stderr, re.IGNORECASE), ran.stderr


def test_the_lock_of_the_libraries_has_the_pins_that_are_tested() -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / f"requirements/{name}.txt").read_text(), re.MULTILINE))

    site = pins("site")
    assert site and site.items() <= pins("runtime").items()
    assert not {"cryptography", "pyyaml"} & site.keys(), "these are the system's"


def test_a_version_that_is_not_the_python_packages_is_refused(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    path = tree / "packaging/debian/changelog"
    path.write_text(path.read_text().replace("(0.1.0-", "(0.2.0-"))
    ran = subprocess.run(
        [sys.executable, "-B", tree / "packaging/deb.py", "--into", tmp_path, "--wheels", WHEELS],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0 and "pyproject.toml" in ran.stderr


# What is in it


def test_everything_is_roots_with_the_mode_that_it_must_have(deb: Path) -> None:
    programs = {"usr/bin/scaleoutd", "usr/bin/scaleoutctl", "usr/lib/scaleoutd/room", "usr/lib/scaleoutd/renew"}
    found = members(deb)
    for name, member in found.items():
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "root", "root"), name
        assert member.isdir() or member.isreg(), f"{name} is neither file nor folder"
        assert member.mode == (0o755 if member.isdir() or name in programs else 0o644), f"{name} {member.mode:o}"
    assert programs <= found.keys()
    assert len({member.mtime for member in found.values()}) == 1


def test_no_byte_code_no_sources_of_others_no_tests(deb: Path) -> None:
    wrong = re.compile(r"\.(pyc|pyi?x?d|cc|h|a|la)$|__pycache__|/tests?/|roots\.pem$|\.(git|pytest|mypy|ruff)")
    allowed = {"usr/lib/scaleoutd/scaleoutd/proto/edge_pb2.pyi"}
    assert not [name for name in members(deb) if wrong.search(name) and name not in allowed]


def test_all_of_the_package_is_there(deb: Path) -> None:
    ours = {
        f"usr/lib/scaleoutd/{path.relative_to(ROOT)}"
        for path in (ROOT / "scaleoutd").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = members(deb).keys()
    assert not ours - found
    units = {f"usr/lib/systemd/system/{path.name}" for path in (ROOT / "systemd").glob("*.s[eol]*[ect]*")}
    assert "usr/lib/systemd/system/scaleoutd.service" in units and not units - found


def test_no_path_of_the_machine_that_built_it(unpacked: Path) -> None:
    words = [str(ROOT).encode(), str(Path.home()).encode() + b"/", str(unpacked.parent).encode(), b"/" + b"opt/wheels"]
    words = [word for word in words if len(word) > 4]
    bad = [
        (str(path.relative_to(unpacked)), word)
        for path in unpacked.rglob("*")
        if path.is_file()
        for word in words
        if word in path.read_bytes() and not (word == b"/root/" and path.suffix in (".gz", ".so", ".py", ".md"))
    ]
    assert not bad


def test_the_checksums_name_every_file_but_the_conffile(unpacked: Path) -> None:
    lines = (unpacked / "DEBIAN/md5sums").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    files = {str(path.relative_to(unpacked)): path for path in unpacked.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if not name.startswith("DEBIAN/")}
    assert set(listed) == set(files) - {CONFFILE}
    for name, digest in listed.items():
        assert hashlib.md5(files[name].read_bytes()).hexdigest() == digest, name
    assert (unpacked / "DEBIAN/conffiles").read_text().split() == [f"/{CONFFILE}"]


def test_nothing_of_a_sites_configuration_is_shipped(deb: Path) -> None:
    under_etc = {name for name, member in members(deb).items() if name.startswith(("etc/", "var/", "run/")) and member.isreg()}
    assert under_etc == {CONFFILE}


def test_it_names_what_it_needs(deb: Path) -> None:
    depends = subprocess.run(["dpkg-deb", "-f", deb, "Depends"], check=True, capture_output=True, text=True).stdout
    for wanted in ("python3 (>= 3.11)", "python3 (<< 3.12)", "python3-cryptography (>= 38", "python3-yaml", "systemd (>= 252)"):
        assert wanted in depends


def test_its_size(deb: Path) -> None:
    told = subprocess.run(["dpkg-deb", "-f", deb, "Installed-Size"], check=True, capture_output=True, text=True).stdout
    size_mb, installed_mb = deb.stat().st_size / 1e6, int(told) * 1024 / 1e6
    print(f"deb {size_mb:.2f} MB, installed {installed_mb:.1f} MB")
    assert size_mb <= MAX_DEB_MB and installed_mb <= MAX_INSTALLED_MB


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_the_maintainer_scripts_are_whole(unpacked: Path, script: str) -> None:
    """As written, parsed by sh; a word that dpkg never says is an error."""
    path = unpacked / "DEBIAN" / script
    assert path.read_bytes() == (ROOT / "packaging/debian" / script).read_bytes()
    subprocess.run(["sh", "-n", path], check=True)
    ran = subprocess.run(["sh", path, "no-such-word"], capture_output=True, text=True)
    assert ran.returncode != 0 and "unknown argument" in ran.stderr


def test_lintian_has_nothing_to_say(deb: Path) -> None:
    if not shutil.which("lintian"):
        pytest.skip("lintian not found: tools/setup.sh package installs it")
    ran = subprocess.run(["lintian", "--allow-root", "--fail-on=error,warning", deb], capture_output=True, text=True)
    assert ran.returncode == 0 and not ran.stdout.strip(), ran.stdout + ran.stderr
    told = subprocess.run(["lintian", "--allow-root", "--show-overrides", "--info", "-I", deb], capture_output=True, text=True)
    assert "unused-override" not in told.stdout, told.stdout
    assert "O: scaleoutd: embedded-library" in told.stdout, "the control: lintian did look"


@pytest.mark.skipif(shutil.which("perl") is None, reason="perl not found, which needrestart is written in")
def test_needrestart_leaves_our_units_alone(unpacked: Path) -> None:
    program = (
        "our %nrconf; my $told = do $ARGV[0]; die $@ || $! unless $told; shift; foreach my $unit (@ARGV) {"
        "  my $found = 'asks'; foreach my $re (keys %{$nrconf{override_rc}}) {"
        '    $found = $nrconf{override_rc}{$re} if $unit =~ /$re/ } print "$unit $found\\n" }'
    )
    units = ["scaleoutd.service", "scaleoutd-runner.service", "scaleoutd-step@0-12-0.service", "ssh.service"]
    ran = subprocess.run(["perl", "-e", program, unpacked / CONFFILE, *units], check=True, capture_output=True, text=True)
    assert ran.stdout.split("\n")[:-1] == [f"{unit} {'asks' if unit == 'ssh.service' else '0'}" for unit in units]


def test_what_is_built_can_be_built_here() -> None:
    """Says in the summary what is missing, when something is."""
    if reason := package.missing("lintian", "mandoc"):
        pytest.skip(reason)
