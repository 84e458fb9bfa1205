# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: one target for each parser, one registry, one set of promises (docs/fuzzing.md)."""
