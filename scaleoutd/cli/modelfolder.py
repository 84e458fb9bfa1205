# SPDX-License-Identifier: Apache-2.0
"""`scaleoutctl verify --model-signature`: a folder against what OpenSSF model-signing signed.

What is walked is what a project is held to (runner/tree.py, runner/verify.py), not what model-signing looks at: a file that is
not signed is refused by name, also below .git and whatever else the signer left out; so are links, devices, special mode bits
and folders with nothing signed in them.  The signature's own file may lie in the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from scaleoutd.cli.certificates import load_certificates
from scaleoutd.cli.modelcertificate import signing_key
from scaleoutd.cli.modelsignature import Shard, SignedModel, parse_bundle, verify_bundle
from scaleoutd.cli.progress import Progress
from scaleoutd.core.envelope import MAX_ENVELOPE_BYTES
from scaleoutd.core.keys import PublicKey
from scaleoutd.core.manifest import FileEntry
from scaleoutd.durable import storage_errors
from scaleoutd.errors import CredentialError, VerificationError
from scaleoutd.runner.hashing import BUFFER_BYTES, Difference, check_files
from scaleoutd.runner.tree import Node, Tree, kind_of
from scaleoutd.runner.verify import unsafe

MAX_PEM_BYTES = 1024 * 1024
_HINTS = {
    "file-changed": "Get the file again from who signed the model, then `scaleoutctl verify` again.",
    "file-missing": "Get the file again from who signed the model, then `scaleoutctl verify` again.",
    "file-extra": "Remove it, or ask for a signature that has it (`model_signing sign` with --no-ignore-git-paths for .git).",
    "file-mode": "Take the bit off: `chmod u-s,g-s,-t FILE`.",
    "file-type": "Replace it by a regular file with one link (`cp -L`); the signer signs files, not links.",
    "file-name": "Ask who signed for the model under plain names.",
}


@dataclass(frozen=True)
class Signer:
    """Who signed: the key's id (SHA-256 of its SPKI), and the certificate's subject when there is one."""

    keyid: str
    subject: str | None = None


@dataclass(frozen=True)
class _Checked:
    differences: list[Difference]
    size_bytes: int


def verify_model(folder: Path, signature: Path, public_key: Path | None, chain: Sequence[Path], *, as_json: bool) -> None:
    """Prints what was proven and every difference; raises for the first."""
    model, signer = read_signed_model(signature, public_key, chain, datetime.now(UTC).replace(tzinfo=None))
    with Tree(folder) as tree, Progress("reading the model", sum(node.size_bytes for node in tree.walk())) as done:
        checked = _check_folder(tree, model, signature, done)
    if as_json:
        click.echo(json.dumps(_report(model, signer, checked), indent=2))
    else:
        _print_report(model, signer, checked)
    _refuse(checked.differences)


def read_signed_model(
    signature: Path, public_key: Path | None, chain: Sequence[Path], now: datetime
) -> tuple[SignedModel, Signer]:
    """The signature's statement, proven by the key, or by a certificate below a CA of `chain`; `now` is naive, UTC."""
    bundle = parse_bundle(_read(signature, "the model signature", MAX_ENVELOPE_BYTES))
    if public_key is not None:
        if bundle.certificates:
            raise _other_kind("a key", "a certificate", "--certificate-chain CA")
        key = PublicKey.from_pem(_read(public_key, "the public key", MAX_PEM_BYTES).decode("utf-8", "replace"))
        return verify_bundle(bundle, key), Signer(key.keyid)
    if not bundle.certificates:
        raise _other_kind("a certificate", "a key", "--public-key PEM")
    try:
        given = [item for path in chain for item in load_certificates(_read(path, "the CA", MAX_PEM_BYTES), str(path))]
    except CredentialError as exc:
        cause = exc.message.partition(": ")[2]
        raise VerificationError(f"cannot accept the model signature: {cause}", hint="Give the CA's certificate, PEM.") from exc
    key, subject = signing_key(bundle.certificates, given, now)
    return verify_bundle(bundle, key), Signer(key.keyid, subject)


def _check_folder(tree: Tree, model: SignedModel, signature: Path, on_bytes: Callable[[int], None]) -> _Checked:
    with storage_errors(f"read the model {tree.root}"):
        nodes = _without(signature, tree.walk(folders=True), model)
        differences = _compare(model, nodes)
        bad = {difference.path for difference in differences}
        good = [node for node in nodes if node.path in model.files and node.path not in bad]
        whole = [
            FileEntry(node.path, node.size_bytes, model.files[node.path][0].sha256)
            for node in good
            if model.files[node.path][0].end is None
        ]
        differences += check_files(tree, whole, None, on_bytes)
        for node in good:
            shards = model.files[node.path]
            if shards[-1].end is not None:
                difference = _check_shards(tree, node.path, shards, on_bytes)
                differences += [difference] if difference else []
    return _Checked(sorted(differences, key=lambda item: item.path), sum(node.size_bytes for node in good))


def _without(signature: Path, nodes: list[Node], model: SignedModel) -> list[Node]:
    """The signature cannot be signed by itself; another file of its name, or a second name of it, is no exception."""
    own = signature.stat()
    return [
        node
        for node in nodes
        if (node.device, node.inode) != (own.st_dev, own.st_ino) or node.links != 1 or node.path in model.files
    ]


def _compare(model: SignedModel, nodes: Sequence[Node]) -> list[Difference]:
    """Names and types of the folder against the signature; the bytes come after."""
    files = [node for node in nodes if kind_of(node.mode) != "a folder"]
    links = Counter((node.device, node.inode) for node in files)
    parents = {parent for node in files for parent in _parents(node.path)}
    left_out: Counter[str] = Counter()
    differences: list[Difference] = []
    missing = dict.fromkeys(model.files)
    for node in files:
        is_signed = missing.pop(node.path, "") is None
        if (difference := unsafe(node, links[(node.device, node.inode)])) is not None:
            differences.append(difference)
        elif not is_signed:
            ignored = next((path for path in (node.path, *_parents(node.path)) if path in model.ignored), None)
            if ignored is not None:
                left_out[ignored] += 1
            else:
                found = f"a file of {node.size_bytes} bytes"
                differences.append(Difference("file-extra", node.path, "no such file in the signature", found))
    for path, count in left_out.items():
        found = f"{count} unsigned file(s) that the signer left out; model-signing does not look at them"
        differences.append(Difference("file-extra", path, "nothing that is not signed", found))
    for node in nodes:
        if kind_of(node.mode) == "a folder" and node.path not in parents:
            differences.append(Difference("file-extra", node.path, "no folder without signed files", "an empty folder"))
    differences += [Difference("file-missing", path, "a regular file", "none") for path in missing]
    return differences


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _check_shards(tree: Tree, path: str, shards: Sequence[Shard], on_bytes: Callable[[int], None]) -> Difference | None:
    expected = shards[-1].end or 0
    buffer = memoryview(bytearray(BUFFER_BYTES))
    fd = tree.open_file(path)
    try:
        if (found := os.fstat(fd).st_size) != expected:
            return Difference("file-changed", path, f"{expected} bytes", f"{found} bytes")
        for shard in shards:
            digest, at, end = hashlib.sha256(), shard.start, shard.end or 0
            while at < end and (count := os.preadv(fd, [buffer[: end - at]], at)):
                digest.update(buffer[:count])
                at += count
                on_bytes(count)
            if digest.hexdigest() != shard.sha256:
                where = f"bytes {shard.start} to {shard.end}: sha256"
                return Difference("file-changed", path, f"{where} {shard.sha256}", f"{where} {digest.hexdigest()}")
    finally:
        os.close(fd)
    return None


def _report(model: SignedModel, signer: Signer, checked: _Checked) -> dict[str, object]:
    return {
        "verified": not checked.differences,
        "model": model.name,
        "model_sha256": model.sha256,
        "serialization": model.method,
        "keyid": signer.keyid,
        "certificate": signer.subject,
        "files": len(model.files),
        "size_bytes": checked.size_bytes,
        "left_out_by_signer": list(model.ignored),
        "differences": [vars(difference) for difference in checked.differences],
    }


def _print_report(model: SignedModel, signer: Signer, checked: _Checked) -> None:
    by = f"key {signer.keyid}" + (f" of {signer.subject}" if signer.subject else "")
    click.echo(f"{_plain(model.name)}, signed with model-signing by {by}; no version and no end are signed")
    if model.ignored:
        click.echo(f"left out by the signer, so not signed: {', '.join(map(_plain, model.ignored))}")
    for difference in checked.differences:
        click.echo(f"  {difference.code:13} {_plain(difference.path)}: expected {difference.expected}, found {difference.found}")
    if not checked.differences:
        click.echo(f"all {len(model.files)} files are as signed ({checked.size_bytes} bytes)")


def _refuse(differences: Sequence[Difference]) -> None:
    if not differences:
        return
    first = differences[0]
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    raise VerificationError(
        f"cannot accept the model: {_plain(first.path)}: expected {first.expected}, found {first.found}{more}",
        code=first.code,
        hint=_HINTS[first.code],
        facts={"file": _plain(first.path), "expected": first.expected, "found": first.found},
    )


def _other_kind(expected: str, found: str, option: str) -> VerificationError:
    return VerificationError(
        f"cannot accept the model signature: expected one by {expected}, found one by {found}",
        code="signature-invalid",
        hint=f"Give {option} in its place.",
        facts={"expected": expected, "found": found},
    )


def _read(path: Path, what: str, max_bytes: int) -> bytes:
    """One byte more than may be, so that what reads it refuses."""
    with storage_errors(f"read {what} {path}"), path.open("rb") as file:
        return file.read(max_bytes + 1)


def _plain(text: str) -> str:
    return text.encode("unicode_escape", "surrogatepass").decode("ascii")[:200]
