"""S3-compatible object stores: URIs, connections with timeouts and retries, meaning of errors.

pyarrow writes objects and reads parts of them. botocore lists them, since pyarrow returns a listing
only whole; reads whole ones, since pyarrow makes two requests for each; and writes locks, since
pyarrow has no conditional writes. Credentials come the usual way (environment, profile, instance).
The URI of an object is `s3://bucket/` followed by its key, without percent escapes. A store other
than AWS is given by `AWS_ENDPOINT_URL`, or in the URI:
`s3://bucket/key?endpoint_override=host:9000`.

A request is retried for about 50 s if the store may recover: when the connection fails or is cut,
when no byte arrives for 10 s, and when the status is 5xx or 429. The first contact of a process
with a bucket is given up after 25 s, so that a wrong address is reported soon.
"""

import os
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar
from urllib.parse import unquote

from pyarrow import fs

from cxr.errors import StorageError, UnavailableError

CONNECT_S: Final = 5.0
"""Longest time to open a connection."""

SILENCE_S: Final = 10.0
"""Longest time without a byte of a response."""

RETRIES: Final = 11
"""Retries of a request. The SDK waits 0, 50, 100 ms and so on between them, doubling: 51 s in all,
longer than a restart of a store, or than 20 s of status 503."""

FIRST_CONTACT_S: Final = 20.0
"""How long new attempts are started at the first contact with a bucket; with the last, 25 s."""

PAUSE_S: Final = 1.0
"""Between two attempts at the first contact."""

SCHEME: Final = "s3://"

MAX_CONNECTIONS: Final = 32
"""Connections that botocore keeps to a store."""

Result = TypeVar("Result")

Meaning = Literal["no bucket", "refused", "failing", "network", "other"]
"""Of a failed request: what it says about the store as a whole."""

_OPTION: Final = (
    r"(?:endpoint_override=(?:https?(?:://|%3A%2F%2F))?[^/&?]+|region=[\w-]+|scheme=https?)"
)
_LATE_OPTIONS: Final = re.compile(rf"\?({_OPTION}(?:&{_OPTION})*)$", re.IGNORECASE)
_ROOT: Final = re.compile(rf"s3://([^/?]*)(?:\?({_OPTION}(?:&{_OPTION})*))?(?=/|$)", re.IGNORECASE)
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")

_REFUSED: Final = re.compile(
    r"AWS Error (?:ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|EXPIRED_TOKEN"
    r"|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT"
    r"|INVALID_SIGNATURE|REQUEST_EXPIRED|REQUEST_TIME_TOO_SKEWED"
    r"|UNKNOWN \(HTTP status (?:400|401|403|412)\))"
)
_FAILING: Final = re.compile(
    r"AWS Error (?:SERVICE_UNAVAILABLE|INTERNAL_FAILURE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT"
    r"|UNKNOWN \(HTTP status (?:5\d\d|429)\))"
)
_NETWORK: Final = re.compile(r"AWS Error NETWORK_CONNECTION")
_NO_BUCKET: Final = re.compile(r"AWS Error NO_SUCH_BUCKET|Bucket '.*' not found")
_MEANINGS: Final[dict[Meaning, re.Pattern[str]]] = {
    "no bucket": _NO_BUCKET, "refused": _REFUSED, "failing": _FAILING, "network": _NETWORK,
}  # fmt: skip
_CAUSE: Final = re.compile(r"AWS Error (.*?) during (.*)", re.DOTALL)
_DETAIL: Final = re.compile(r"(?:Details: |curlCode: \d+, (?!.*Details: ))(.*)", re.DOTALL)


@dataclass(frozen=True)
class Store:
    """Address of a bucket."""

    bucket: str
    endpoint: str
    """Host and port; empty for AWS."""
    scheme: str
    region: str
    """Empty if the store has to be asked for it."""

    @property
    def name(self) -> str:
        """Name of the store in messages."""
        return f"{self.scheme}://{self.endpoint}" if self.endpoint else "AWS"


class Bucket(fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's S3 file system with this project's timeouts and retries, kept when pickled."""

    def __init__(self, endpoint: str, scheme: str, region: str, retries: int) -> None:
        super().__init__(
            endpoint_override=endpoint or None,
            scheme=scheme,
            region=region,
            connect_timeout=CONNECT_S,
            request_timeout=SILENCE_S,
            retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=retries),
            allow_delayed_open=True,  # A small file takes one request instead of three.
        )
        self._arguments = endpoint, scheme, region, retries

    def __reduce__(self) -> Any:
        # pyarrow's own loses the retries.
        return Bucket, self._arguments

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        """Do nothing: buckets have no folders, and pyarrow would write empty objects for them."""


def canonical(uri: str) -> str:
    """Move the options of a URI behind the bucket, so that paths can be appended to it.

    Raises:
        StorageError: the bucket's name is not valid.
    """
    if not uri.startswith(SCHEME):
        return uri
    options = ""
    if late := _LATE_OPTIONS.search(uri):
        options, uri = late[1], uri[: late.start()]
    match = _ROOT.match(uri)
    if match is None or not _BUCKET.fullmatch(match[1]):
        bucket = uri[len(SCHEME) :].partition("/")[0]
        if "@" in bucket:
            # Such a URI would be printed, and stored in results.
            raise StorageError(
                f"s3://...@{bucket.rpartition('@')[2]}: a secret does not belong in a URI. Set"
                " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        raise StorageError(
            f"{uri}: {bucket!r} cannot be a bucket. Give s3://bucket/path, the bucket with three"
            " letters or more."
        )
    options = match[2] or options
    values = dict(option.split("=", 1) for option in options.split("&") if option)
    scheme, _, host = unquote(values.get("endpoint_override", "")).rpartition("://")
    if host:
        values |= {"endpoint_override": host} | ({"scheme": scheme} if scheme else {})
    options = "&".join(f"{name}={values[name]}" for name in sorted(values))
    return f"{SCHEME}{match[1]}{'?' if options else ''}{options}{uri[match.end() :]}"


def root(uri: str) -> str:
    """The part of a canonical URI that names the bucket; empty for a path."""
    match = _ROOT.match(uri)
    return match[0] if match else ""


def store(uri: str) -> Store:
    """The address of a canonical URI's bucket, from its options and the environment."""
    match = _ROOT.match(uri)
    assert match is not None, uri
    values = dict(option.split("=", 1) for option in (match[2] or "").split("&") if option)
    scheme, endpoint = values.get("scheme", "https"), values.get("endpoint_override", "")
    configured = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    if configured and not endpoint:
        given_scheme, _, endpoint = configured.rstrip("/").rpartition("://")
        scheme = given_scheme or "https"
    region = values.get("region", "")
    if endpoint and not region:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    return Store(match[1], endpoint, scheme, region)


_entered: dict[object, Bucket] = {}
_clients: dict[object, Any] = {}
_contacts = threading.RLock()
"""Held while a process first contacts a bucket: threads that start together wait for one of them,
instead of opening two file systems each."""

if hasattr(os, "register_at_fork"):
    # A fork while a thread held the lock would wait for it forever.
    os.register_at_fork(after_in_child=lambda: globals().update(_contacts=threading.RLock()))


def _key(address: Store) -> object:
    settings = frozenset(pair for pair in os.environ.items() if pair[0].startswith("AWS_"))
    # Connections cannot be shared with a forked process.
    return os.getpid(), address, settings


def enter(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a canonical URI, and the path in it.

    Raises:
        UnavailableError: the store cannot be reached, or has no such bucket.
    """
    address = store(uri)
    key = _key(address)
    if key not in _entered:
        with _contacts:
            if key not in _entered:
                _entered[key] = _first_contact(address)
    return _entered[key], address.bucket + uri[len(root(uri)) :].rstrip("/")


def client(uri: str) -> Any:
    """botocore's client of the store of a canonical URI, one per process; call it by `request`.

    Raises:
        UnavailableError: the store cannot be reached, or has no such bucket.
    """
    address = store(uri)
    key = _key(address)
    if key not in _clients:
        with _contacts:
            if key not in _clients:
                enter(uri)
                _clients[key] = _new_client(address, _entered[key].region)
    return _clients[key]


def _new_client(address: Store, region: str) -> Any:
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    session = botocore.session.Session()
    # The default parser takes three quarters of the time of a listing.
    factory = session.get_component("response_parser_factory")
    factory.set_parser_defaults(timestamp_parser=lambda text: text)
    return session.create_client(
        "s3",
        region_name=region,
        endpoint_url=f"{address.scheme}://{address.endpoint}" if address.endpoint else None,
        # As pyarrow, which uses the system's certificates and no proxy.
        verify=None if "AWS_CA_BUNDLE" in os.environ else ssl.get_default_verify_paths().cafile,
        config=Config(
            signature_version=None if session.get_credentials() else UNSIGNED,
            connect_timeout=CONNECT_S,
            read_timeout=SILENCE_S,
            retries={"total_max_attempts": 1},  # `request` retries, for as long as pyarrow does.
            max_pool_connections=MAX_CONNECTIONS,
            proxies={},
            s3={"addressing_style": "path" if address.endpoint else "auto"},
        ),
    )


def request(uri: str, call: Callable[[Any], Result]) -> Result:
    """Make a request through botocore, retried as pyarrow's are.

    Args:
        uri: canonical URI that is requested.
        call: makes the request with the client that it is given.

    Raises:
        UnavailableError: the store as a whole fails.
        botocore.exceptions.ClientError: the store refuses this request.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    connected = client(uri)
    pause_s = 0.0
    for retries_left in range(RETRIES, -1, -1):
        try:
            return call(connected)
        except (BotoCoreError, ClientError) as error:
            if not retries_left or _meaning(error)[0] not in ("failing", "network"):
                if unavailable := failure(uri, error):
                    raise unavailable from None
                raise
        time.sleep(pause_s)
        pause_s = 2 * pause_s or 0.05  # As the SDK in pyarrow.
    raise AssertionError("the last attempt returns or raises")


def read_object(uri: str) -> bytes | None:
    """Read an object of a canonical URI by one request; None if the store does not give it.

    pyarrow takes two, the first for the size.

    Raises:
        UnavailableError: the store as a whole fails.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = store(uri).bucket, uri[len(root(uri)) + 1 :]
    if not key:
        return None
    try:
        return request(
            uri, lambda client: bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        )
    except (BotoCoreError, ClientError):
        return None


def _first_contact(address: Store) -> Bucket:
    end = time.monotonic() + FIRST_CONTACT_S
    while True:
        try:
            region = address.region or str(fs.resolve_s3_region(address.bucket))
            probe = Bucket(address.endpoint, address.scheme, region, retries=0)
            bucket_type = probe.get_file_info(address.bucket).type
            break
        except OSError as error:
            if _REFUSED.search(str(error)):
                # Reading objects may be allowed without asking for the bucket; if not, the next
                # request fails.
                bucket_type = fs.FileType.Directory
                break
            if time.monotonic() > end or _NO_BUCKET.search(str(error)):
                raise _failure(address, error) or StorageError(
                    f"{SCHEME}{address.bucket}: cannot be opened: {cause(str(error))}."
                ) from None
        time.sleep(PAUSE_S)
    if bucket_type == fs.FileType.NotFound:
        raise _no_bucket(address)
    return Bucket(address.endpoint, address.scheme, region, RETRIES)


def failure(uri: str, error: Exception) -> UnavailableError | None:
    """The error of the store as a whole behind a failed request; None if it concerns one file.

    Args:
        uri: canonical URI that was requested.
        error: raised by pyarrow or botocore.
    """
    if not uri.startswith(SCHEME):
        return None
    address = store(uri)
    if _meaning(error)[0] == "refused":
        try:
            probe = Bucket(
                address.endpoint, address.scheme, address.region or "us-east-1", retries=0
            )
            probe.get_file_info(address.bucket)
        except OSError as bucket_error:
            return _failure(address, bucket_error)
        return None  # The bucket can be accessed, one object of it cannot.
    return _failure(address, error)


def _meaning(error: Exception) -> tuple[Meaning, str]:
    """What a failed request says about the store, and the cause in words."""
    from botocore.exceptions import (
        ClientError,
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
    )

    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code, text = (str(error.response["Error"].get(name, "")) for name in ("Code", "Message"))
        detail = text or code
        if code == "NoSuchBucket":
            return "no bucket", detail
        if (
            (status >= 500 and status != 501)
            or status == 429
            or code in ("SlowDown", "RequestTimeout")
        ):
            return "failing", f"HTTP status {status}"
        return ("refused" if status in (400, 401, 403) else "other"), detail
    if isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError)):
        return "network", str(error).rstrip(".")
    if isinstance(error, NoCredentialsError):
        return "refused", str(error)
    text = str(error)
    detail = cause(text)
    for meaning, pattern in _MEANINGS.items():
        if pattern.search(text):
            return meaning, detail
    return "other", detail


def _failure(address: Store, error: Exception) -> UnavailableError | None:
    meaning, detail = _meaning(error)
    if meaning == "no bucket":
        return _no_bucket(address)
    if meaning == "refused":
        return UnavailableError(
            f"{SCHEME}{address.bucket}: {address.name} refuses access ({detail}). Check the"
            " credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the"
            " machine's role) and the rights to list and read the bucket."
        )
    if meaning == "failing":
        return UnavailableError(
            f"{SCHEME}{address.bucket}: {address.name} answers with errors ({detail}). Try again"
            " later; the same command resumes."
        )
    if meaning == "network":
        return UnavailableError(
            f"{SCHEME}{address.bucket}: {address.name} cannot be reached ({detail}). Check"
            " AWS_ENDPOINT_URL and the network."
        )
    return None


def _no_bucket(address: Store) -> UnavailableError:
    return UnavailableError(
        f"{SCHEME}{address.bucket}: {address.name} has no bucket of this name. Check it, or"
        " create it."
    )


def cause(text: str) -> str:
    """The part of a pyarrow message that says what happened."""
    if not (match := _CAUSE.search(text)):
        return text
    detail = _DETAIL.search(match[2])
    return detail[1].strip().rstrip(".") if detail else match[1]
