# SPDX-License-Identifier: Apache-2.0
"""The wire's messages, shared by the agent and the embedded combiner. Holds no gRPC: see methods.py."""

from __future__ import annotations
