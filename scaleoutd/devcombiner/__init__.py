# SPDX-License-Identifier: Apache-2.0
"""The embedded combiner of the demo and the tests: dialect edge, mTLS, loopback only, nothing kept after it ends.

It shares with the node only the messages (scaleoutd.proto) and the error tree.  Containers, arrays, tokens and TLS are
its own code, so that a mistake in the node's reading of the protocol cannot cancel itself out here.
"""

from __future__ import annotations
