"""What botocore raises, as errors of the one tree: what is wrong, where, and what to do next.

Only error codes and our own words go into messages: what a server says may repeat parts of a request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from botocore import exceptions as boto

from dpac_api.errors import (
    Conflict,
    Corruption,
    Denied,
    DpacError,
    Invalid,
    NotFound,
    Temporary,
    TimedOut,
    Unreachable,
    Unsupported,
)
from dpac_engine.core.ports import TargetMissing

_DENIED = {
    "ExpiredToken": "the credentials have expired. Renew what `credentials` refers to.",
    "ExpiredTokenException": "the credentials have expired. Renew what `credentials` refers to.",
    "TokenRefreshRequired": "the credentials have expired. Renew what `credentials` refers to.",
    "InvalidToken": "the session token is not valid. Renew what `credentials` refers to.",
    "InvalidAccessKeyId": "the server does not know the access key. Correct what `credentials` refers to.",
    # versitygw, with HTTP 404: by its status it would be a missing object.
    "XAdminUserNotFound": "the server does not know the access key. Correct what `credentials` refers to.",
    "SignatureDoesNotMatch": "the secret key is not that of the access key. Correct what `credentials` refers to.",
    "RequestTimeTooSkewed": "the clocks of this host and of the server differ too much. Set this host's clock (NTP).",
    "InvalidObjectState": "the object lies in an archive. Thaw it, and take it out of the bucket's archiving rules.",
}
_DENIED_ELSE = "these credentials may not do this. Allow it in the access policy (docs/s3.md has one)."
_BROKEN_ON_THE_WAY = {
    "BadDigest",
    "InvalidDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}
_ELSEWHERE = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
_THROTTLED = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
    "RequestThrottled",
    "BandwidthLimitExceeded",
}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioStorageQuotaExceeded", "InsufficientStorage"}
_MISSING = {"NoSuchKey", "NoSuchVersion", "404"}
"""No other 404 says that an object is missing. `404` is what an answer to HEAD comes to, which has no words."""
_AGAIN = {"RequestTimeout", "NoSuchUpload", "OperationAborted", "ConditionalRequestConflict", "InternalError"}


@contextlib.contextmanager
def mapped(what: str, where: str) -> Iterator[None]:
    """Errors of botocore while it does `what` (`write m/1`) at `where` (`s3://bucket`)."""
    try:
        yield
    except boto.ClientError as error:
        raise _of_answer(f"Cannot {what} at {where}", error) from error
    except boto.BotoCoreError as error:
        raise _of_failure(f"Cannot {what} at {where}", error) from error


def is_out_of_range(error: boto.ClientError) -> bool:
    """The object has no byte in the asked range."""
    return _code(error) in ("InvalidRange", "416") or _status(error) == 416


def _code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _of_answer(cannot: str, error: boto.ClientError) -> DpacError:
    """For what the server answered."""
    code, status = _code(error), _status(error)
    said = f"HTTP {status}, {code}" if code != str(status) else f"HTTP {status}"
    if code == "NoSuchBucket":
        return TargetMissing(f"{cannot}: there is no such bucket. Create it, or correct the target's `bucket`.")
    if code == "PreconditionFailed" or status == 412:
        return Conflict(f"{cannot}: the object exists already.")
    if code in _ELSEWHERE or status in (301, 307):
        return Invalid(f"{cannot}: the bucket lies in another region ({said}). Correct the target's `region`.")
    if code in _BROKEN_ON_THE_WAY:
        return Temporary(f"{cannot}: the bytes arrived damaged and were not stored ({said}). It is tried again.")
    if code in _THROTTLED or status == 429:
        return Temporary(f"{cannot}: the server throttles ({said}). It is tried again, more slowly.")
    if code in _FULL or status == 507:
        return Temporary(f"{cannot}: the server's storage or quota is full ({said}). Free or add space there.")
    if code in _AGAIN:
        return Temporary(f"{cannot}: {said}. It is tried again.")
    if code in _DENIED or status in (401, 403):
        return Denied(f"{cannot}: {_DENIED.get(code, _DENIED_ELSE)} ({said})")
    if code in _MISSING:
        return NotFound(f"{cannot}: it is not there.")
    if status == 501 or code == "NotImplemented":
        return Unsupported(f"{cannot}: the server does not know how ({said}). Use one that keeps S3's contract.")
    if status >= 500:
        return Temporary(f"{cannot}: the server failed ({said}). It is tried again; see the server's log if it lasts.")
    return DpacError(f"{cannot}: the server refused ({said}). `dpac target check` tells what it does not do.")


def _of_failure(cannot: str, error: boto.BotoCoreError) -> DpacError:
    """For what went wrong before, or instead of, an answer."""
    match error:
        case boto.FlexibleChecksumError() | boto.ChecksumError():
            return Corruption(f"{cannot}: its bytes are not those that were stored (checksum). Run `dpac verify`.")
        case boto.NoCredentialsError() | boto.PartialCredentialsError() | boto.ProfileNotFound():
            return Denied(f"{cannot}: there are no credentials where `credentials` refers to. Put them there.")
        case (
            boto.CredentialRetrievalError()
            | boto.TokenRetrievalError()
            | boto.SSOError()
            | boto.UnauthorizedSSOTokenError()
            | boto.NoAuthTokenError()
            | boto.LoginError()
        ):
            return Denied(f"{cannot}: the credentials cannot be got or renewed ({type(error).__name__}). Log in again.")
        case boto.ReadTimeoutError():
            return TimedOut(f"{cannot}: no answer in time. It is tried again; check the server and the network.")
        case boto.SSLError():
            return Unreachable(
                f"{cannot}: the server's certificate is not trusted, or TLS failed. Set the target's `ca_file`, or correct "
                "its `endpoint`."
            )
        case boto.ProxyConnectionError():
            return Unreachable(f"{cannot}: the proxy does not answer. Check the target's `proxy`.")
        case boto.IncompleteReadError() | boto.ResponseStreamingError() | boto.ConnectionClosedError():
            return Temporary(f"{cannot}: the connection broke off. It is tried again.")
        case boto.ConnectionError() | boto.HTTPClientError():
            return Unreachable(
                f"{cannot}: nothing answers ({type(error).__name__}). Check that the server runs and that the target's "
                "`endpoint` and `region` are right."
            )
        case _:
            return DpacError(f"{cannot}: {type(error).__name__}. Check the target's arguments (`dpac target list`).")
