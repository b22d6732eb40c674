"""What can go wrong at the Kubernetes API; every leaf says whether trying again can help.

KubeError
├── GoneError         the object, or its kind, is not there
├── ConflictError     the object is there already, or has changed meanwhile: look again, then decide anew
├── RefusedError      the request can never be right as it is (schema, admission, quota, rights)
├── UnavailableError  the API server does not answer, or is too busy: the same again later
└── NotLeaderError    this process may not write (any more)
"""

from evomerge_operator.errors import EvoMergeError


class KubeError(EvoMergeError):
    """The root."""


class GoneError(KubeError):
    """404: the object, or its kind, is not there."""


class ConflictError(KubeError):
    """409: the object is there already, or has changed since it was read."""


class RefusedError(KubeError):
    """4xx: the API server or an admission check refuses; the message is theirs."""


class UnavailableError(KubeError):
    """5xx, 429, a time-out or no connection."""


class NotLeaderError(KubeError):
    """The Lease is not held (any more), so nothing was written."""
