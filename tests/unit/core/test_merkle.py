# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pymerkle
import pytest

from scaleoutd.core import merkle

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "audit"
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 13, 31, 32, 33, 64, 100]


def leaves(size: int) -> list[bytes]:
    return [f"leaf {number}".encode() for number in range(size)]


def oracle(size: int) -> pymerkle.InmemoryTree:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for leaf in leaves(size):
        tree.append_entry(leaf)
    return tree


@pytest.mark.parametrize("size", SIZES)
def test_the_root_is_that_of_pymerkle(size: int) -> None:
    tree = merkle.Tree()
    for leaf in leaves(size):
        tree.append(leaf)
    assert tree.root() == oracle(size).get_root()
    assert tree.root() == merkle.root_of([merkle.leaf_hash(leaf) for leaf in leaves(size)])
    assert len(tree.frontier) == size.bit_count()


def test_an_empty_tree_has_the_hash_of_nothing() -> None:
    assert merkle.Tree().root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_goes_on_from_its_frontier(size: int) -> None:
    whole = merkle.Tree()
    for leaf in leaves(size + 9):
        whole.append(leaf)
    part = merkle.Tree()
    for leaf in leaves(size):
        part.append(leaf)
    resumed = merkle.Tree(part.size, part.frontier)
    for leaf in leaves(size + 9)[size:]:
        resumed.append(leaf)
    assert resumed.root() == whole.root()
    with pytest.raises(ValueError, match="frontier"):
        merkle.Tree(size + 1 if (size + 1).bit_count() != size.bit_count() else size + 2, part.frontier)


@pytest.mark.parametrize("size", SIZES)
def test_every_inclusion_is_proven_and_no_other(size: int) -> None:
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves(size)]
    root = merkle.root_of(hashes)
    other = merkle.leaf_hash(b"other")
    for index in range(size):
        proof = merkle.inclusion_proof(hashes, index)
        assert merkle.verify_inclusion(hashes[index], index, size, proof, root)
        assert not merkle.verify_inclusion(other, index, size, proof, root)
        assert not merkle.verify_inclusion(hashes[index], index, size, [*proof, other], root)
        if size > 1:
            assert not merkle.verify_inclusion(hashes[index], (index + 1) % size, size, proof, root)
            assert not merkle.verify_inclusion(hashes[index], index, size, proof[:-1], root)


@pytest.mark.parametrize("size", SIZES)
def test_every_prefix_is_proven_and_a_changed_history_is_not(size: int) -> None:
    hashes = [merkle.leaf_hash(leaf) for leaf in leaves(size)]
    root = merkle.root_of(hashes)
    for old_size in range(1, size + 1):
        old_root = merkle.root_of(hashes[:old_size])
        proof = merkle.consistency_proof(hashes, old_size)
        assert merkle.verify_consistency(old_size, size, old_root, root, proof)
        changed = merkle.root_of([merkle.leaf_hash(b"other"), *hashes[1:old_size]])
        assert not merkle.verify_consistency(old_size, size, changed, root, proof)
        if proof:
            assert not merkle.verify_consistency(old_size, size, old_root, root, proof[:-1])
            assert not merkle.verify_consistency(old_size, size, old_root, root, [*proof, root])
    assert not merkle.verify_consistency(0, size, merkle.EMPTY_ROOT, root, [])


def test_vectors() -> None:
    vectors = json.loads((VECTORS / "merkle.json").read_text())
    hashes = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in vectors["leaves"]]
    for size, root in vectors["roots"].items():
        assert merkle.root_of(hashes[: int(size)]).hex() == root
    for case in vectors["inclusion"]:
        assert [item.hex() for item in merkle.inclusion_proof(hashes[: case["size"]], case["index"])] == case["proof"]
    for case in vectors["consistency"]:
        assert [item.hex() for item in merkle.consistency_proof(hashes[: case["size"]], case["old_size"])] == case["proof"]
