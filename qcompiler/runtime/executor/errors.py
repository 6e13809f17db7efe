"""Why a request has no result, besides what is wrong with itself."""

from qcompiler.errors import Error


class Closed(Error):
    """The executor was closed before the request was begun."""


class Full(Error):
    """As many requests wait as may, and it was asked to refuse rather than to wait."""


class Late(Error):
    """It cannot be in time, or could not."""


class WorkerLost(Error):
    """The worker that ran it died, or was ended because it hung, and so was the next one."""
