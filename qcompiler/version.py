"""The compiler's version, as printed by `--version` and stored in manifests."""

__version__ = "0.1.0"
