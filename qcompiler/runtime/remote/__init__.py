"""Artifacts on another machine: `connect` to a device that runs `qcompiler serve-device`."""

from qcompiler.runtime.remote.client import Answer, Device, RemoteModel, connect

__all__ = ["Answer", "Device", "RemoteModel", "connect"]
