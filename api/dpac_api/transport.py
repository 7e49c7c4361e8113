"""How a request travels: headers, token, TLS, time-outs, retries, and every foreign error mapped to the tree.

Only `Temporary` is retried, with exponential back-off and jitter, for a bounded time. A retried request is the same
request, `request_id` included, so the backend acts once.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Generator, Mapping
from typing import Any

import httpx
import tenacity

from dpac_api.errors import DpacError, Invalid, Temporary, TimedOut, Unauthenticated, Unreachable, from_wire
from dpac_api.models import API_VERSION
from dpac_api.resolve import Endpoint

VERSION_HEADER = "Dpac-Api-Version"
SITE_HEADER = "Dpac-Site"

BACKOFF_INITIAL_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 2.0


class FileToken(httpx.Auth):
    """A bearer token read from its file for every request, so that a rotated one is used at once; never kept, never shown."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        path = self._endpoint.token_file
        if path is not None:
            try:
                token = path.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not a token"
                raise Unauthenticated(
                    f"The token file {path} ({self._endpoint.source}) cannot be read: {reason}. Correct DPAC_TOKEN_FILE, or "
                    "make a token with `dpac token create`."
                ) from error
            if not token.isprintable() or not token or " " in token:
                raise Unauthenticated(f"The token file {path} ({self._endpoint.source}) does not hold one token.")
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


class Transport:
    """Sends requests to one endpoint and answers with JSON or an error of the tree."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        site_uid: str | None = None,
        timeout_seconds: float = 30.0,
        retry_seconds: float = 10.0,
        wire: httpx.BaseTransport | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.site_uid = site_uid or endpoint.site_uid
        self._retry_seconds = retry_seconds
        self._http = httpx.Client(
            base_url=endpoint.url,
            auth=FileToken(endpoint),
            timeout=httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
            verify=_trust(endpoint),
            # A proxy for the world must not be asked for this very host.
            trust_env=not _is_loopback(endpoint.url),
            transport=wire,
        )

    def close(self) -> None:
        """Close the connections; sending afterwards is a mistake."""
        self._http.close()

    def __repr__(self) -> str:
        return f"Transport({self.endpoint.url!r})"

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        retry: bool = True,
        timeout_seconds: float | None = None,
    ) -> httpx.Response:
        """The answer to one request, tried again while it fails as `Temporary`.

        Raises an error of the tree for every other answer than 2xx, and when there is none.
        """

        def once() -> httpx.Response:
            return self._once(method, path, query or {}, body, timeout_seconds)

        return self._retried(once) if retry else once()

    def _retried(self, once: Callable[[], httpx.Response]) -> httpx.Response:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Temporary),
            wait=tenacity.wait_random_exponential(multiplier=BACKOFF_INITIAL_SECONDS, max=BACKOFF_MAX_SECONDS),
            stop=tenacity.stop_before_delay(self._retry_seconds),
            reraise=True,
        )
        return retrying(once)

    def _once(
        self, method: str, path: str, query: Mapping[str, Any], body: Any, timeout_seconds: float | None
    ) -> httpx.Response:
        headers = {VERSION_HEADER: str(API_VERSION)}
        if self.site_uid is not None:
            headers[SITE_HEADER] = self.site_uid
        more: dict[str, Any] = {} if timeout_seconds is None else {"timeout": timeout_seconds}
        try:
            response = self._http.request(
                method,
                path,
                params={key: value for key, value in query.items() if value is not None},
                json=body,
                headers=headers,
                **more,
            )
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise foreign(error, self.endpoint) from error
        if response.is_success:
            return response
        raise from_wire(response.status_code, _json_or_none(response))


def foreign(error: Exception, endpoint: Endpoint) -> DpacError:
    """The error of the tree for one that httpx raised."""
    where = f"{endpoint.url} ({endpoint.source})"
    # A name in the chain of causes, because httpx and httpcore keep ssl's error only there.
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Invalid(
            f"The certificate of {where} is not trusted: {error}. Name the authority that signed it in DPAC_CA_FILE (or caFile)."
        )
    if isinstance(error, httpx.ConnectTimeout | httpx.NetworkError | httpx.ProxyError):
        return Unreachable(
            f"No backend answers at {where}: {error}. Start it with `dpac serve`, or correct the endpoint."
        )
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{where} did not answer in time. See `dpac status`; a repeat of the same request is safe.")
    if isinstance(error, httpx.RemoteProtocolError):
        return Unreachable(f"The connection to {where} broke: {error}.")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | httpx.LocalProtocolError):
        return Invalid(f"{where} cannot be asked: {error}. Correct the endpoint.")
    return DpacError(f"{where} gave no usable answer: {type(error).__name__}: {error}.")


def _json_or_none(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trust(endpoint: Endpoint) -> ssl.SSLContext | bool:
    if endpoint.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(endpoint.ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise Invalid(
            f"The CA file {endpoint.ca_file} ({endpoint.source}) cannot be used: {error.strerror or error}. "
            "It must hold certificates in PEM."
        ) from error
