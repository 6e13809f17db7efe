"""The version of the compiler: what `--version` and manifests say."""

__version__ = "0.1.0"
