# SPDX-License-Identifier: Apache-2.0
"""The hash tree of RFC 6962 section 2.1, kept by its frontier, with both proofs and their verifiers (RFC 9162 2.1.3, 2.1.4).

A leaf is the SHA-256 of 0x00 and the leaf's bytes, a node that of 0x01 and its two children.  The frontier of a tree is the
roots of its perfect subtrees, largest first: all that is needed to go on appending, about 20 hashes for a million leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A growing tree; `size` leaves, `frontier` as above."""

    def __init__(self, size: int = 0, frontier: Iterable[bytes] = ()) -> None:
        self.size = size
        self.frontier = list(frontier)
        if len(self.frontier) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has a frontier of {size.bit_count()} hashes, not {len(self.frontier)}")

    def append(self, leaf: bytes) -> None:
        self.append_hash(leaf_hash(leaf))

    def append_hash(self, digest: bytes) -> None:
        """Adds a leaf by its leaf hash; merges as a binary counter carries."""
        size = self.size
        while size & 1:
            digest = node_hash(self.frontier.pop(), digest)
            size >>= 1
        self.frontier.append(digest)
        self.size += 1

    def root(self) -> bytes:
        if not self.frontier:
            return EMPTY_ROOT
        digest = self.frontier[-1]
        for left in reversed(self.frontier[:-1]):
            digest = node_hash(left, digest)
        return digest

    def copy(self) -> Tree:
        return Tree(self.size, self.frontier)


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Root over leaf hashes."""
    tree = Tree()
    for digest in hashes:
        tree.append_hash(digest)
    return tree.root()


def inclusion_proof(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The path from leaf `index` to the root over `hashes`, lowest sibling first."""
    if not 0 <= index < len(hashes):
        raise ValueError(f"leaf {index} is not in a tree of {len(hashes)}")
    if len(hashes) == 1:
        return []
    split = _split(len(hashes))
    if index < split:
        return [*inclusion_proof(hashes[:split], index), root_of(hashes[split:])]
    return [*inclusion_proof(hashes[split:], index - split), root_of(hashes[:split])]


def consistency_proof(hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """That the first `old_size` leaves are the old tree of the tree over `hashes`."""
    if not 0 < old_size <= len(hashes):
        raise ValueError(f"no proof from {old_size} to {len(hashes)} leaves")
    return _subproof(hashes, old_size, whole=True)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether leaf hash `leaf` is leaf `index` of the tree of `size` leaves with `root`."""
    if not 0 <= index < size:
        return False
    fn, sn, digest = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            digest = node_hash(sibling, digest)
            while fn & 1 == 0 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            digest = node_hash(digest, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and digest == root


def verify_consistency(old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree (`old_size`, `old_root`) is a prefix of the tree (`size`, `root`)."""
    if not 0 < old_size <= size:
        return False
    if old_size == size:
        return not proof and old_root == root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    fn, sn = old_size - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old, new = path[0], path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while fn & 1 == 0 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == old_root and new == root


def _split(size: int) -> int:
    """Largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _subproof(hashes: Sequence[bytes], old_size: int, *, whole: bool) -> list[bytes]:
    size = len(hashes)
    if old_size == size:
        return [] if whole else [root_of(hashes)]
    split = _split(size)
    if old_size <= split:
        return [*_subproof(hashes[:split], old_size, whole=whole), root_of(hashes[split:])]
    return [*_subproof(hashes[split:], old_size - split, whole=False), root_of(hashes[:split])]
