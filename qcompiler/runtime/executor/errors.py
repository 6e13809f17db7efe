"""Why a valid request has no result."""

from qcompiler.errors import Error


class Closed(Error):
    """The executor was closed before the request was begun."""


class Full(Error):
    """The queue is full, and the request was to be refused rather than to wait."""


class Late(Error):
    """The request's deadline cannot be met, or has passed."""


class WorkerLost(Error):
    """The worker that ran it died, or was ended because it hung, and so was the next one."""
