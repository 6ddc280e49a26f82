"""S3-compatible object stores: what their URIs mean, how they are entered, what their errors say.

pyarrow makes the requests; credentials come the usual way (environment, profile, instance). An
object's URI is `s3://bucket/` and its key as it is, without percent escapes. Another store than
AWS is named by `AWS_ENDPOINT_URL`, or in the URI: `s3://bucket/key?endpoint_override=host:9000`.

A request is repeated where the store may recover, for about 50 s: when the connection fails or is
cut, when nothing comes for 10 s, and when the answer is 5xx or 429. At the first contact of a
process with a bucket, 25 s decide: a wrong address is found out there.
"""

import os
import re
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from pyarrow import fs

from cxr.errors import StorageError, UnavailableError

CONNECT_S: Final = 5.0
"""Longest time to open a connection."""

SILENCE_S: Final = 10.0
"""Longest time without a byte of an answer."""

RETRIES: Final = 11
"""Repeated attempts. The SDK waits 0, 50, 100 ms and so on between them, twice as long each time:
51 s in all, which a store that is restarted or that answers 503 for 20 s does not outlast."""

FIRST_CONTACT_S: Final = 20.0
"""How long attempts begin at the first contact with a bucket; with the last one, 25 s."""

PAUSE_S: Final = 1.0
"""Between two attempts at the first contact."""

SCHEME: Final = "s3://"

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
_CAUSE: Final = re.compile(r"AWS Error (.*?) during (.*)", re.DOTALL)
_TOLD: Final = re.compile(r"(?:Details: |curlCode: \d+, (?!.*Details: ))(.*)", re.DOTALL)


@dataclass(frozen=True)
class Store:
    """Where a bucket is."""

    bucket: str
    endpoint: str
    """Host and port; empty for AWS."""
    scheme: str
    region: str
    """Empty where it has to be asked."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.scheme}://{self.endpoint}" if self.endpoint else "AWS"


class Bucket(fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's S3 with this project's timeouts and retries, also in processes it is sent to."""

    def __init__(self, endpoint: str, scheme: str, region: str, retries: int) -> None:
        super().__init__(
            endpoint_override=endpoint or None,
            scheme=scheme,
            region=region,
            connect_timeout=CONNECT_S,
            request_timeout=SILENCE_S,
            retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=retries),
            allow_delayed_open=True,  # A small file is one request, and not three.
        )
        self._made_of = endpoint, scheme, region, retries

    def __reduce__(self) -> Any:
        # pyarrow's own forgets the retries.
        return Bucket, self._made_of

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        """Do nothing: a bucket has no folders, and pyarrow would write empty objects for them."""


def canonical(uri: str) -> str:
    """The URI with its options behind the bucket, so that paths can be joined to its end.

    Raises:
        StorageError: no bucket can be called so.
    """
    if not uri.startswith(SCHEME):
        return uri
    options = ""
    if late := _LATE_OPTIONS.search(uri):
        options, uri = late[1], uri[: late.start()]
    found = _ROOT.match(uri)
    if found is None or not _BUCKET.fullmatch(found[1]):
        bucket = uri[len(SCHEME) :].partition("/")[0]
        if "@" in bucket:
            # Such a URI would be printed and kept with everything that is made of it.
            raise StorageError(
                f"s3://...@{bucket.rpartition('@')[2]}: a secret does not belong in a URI. Set"
                " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        raise StorageError(
            f"{uri}: {bucket!r} cannot be a bucket. Give s3://bucket/path, the bucket with three"
            " letters or more."
        )
    options = found[2] or options
    values = dict(option.split("=", 1) for option in options.split("&") if option)
    scheme, _, host = unquote(values.get("endpoint_override", "")).rpartition("://")
    if host:
        values |= {"endpoint_override": host} | ({"scheme": scheme} if scheme else {})
    options = "&".join(f"{name}={values[name]}" for name in sorted(values))
    return f"{SCHEME}{found[1]}{'?' if options else ''}{options}{uri[found.end() :]}"


def root(uri: str) -> str:
    """The part of a canonical URI that names the bucket; empty of anything else."""
    found = _ROOT.match(uri)
    return found[0] if found else ""


def store(uri: str) -> Store:
    """Where the bucket of a canonical URI is, by its options and the environment."""
    found = _ROOT.match(uri)
    assert found is not None, uri
    values = dict(option.split("=", 1) for option in (found[2] or "").split("&") if option)
    scheme, endpoint = values.get("scheme", "https"), values.get("endpoint_override", "")
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    if named and not endpoint:
        before, _, endpoint = named.rstrip("/").rpartition("://")
        scheme = before or "https"
    region = values.get("region", "")
    if endpoint and not region:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    return Store(found[1], endpoint, scheme, region)


_entered: dict[object, Bucket] = {}


def enter(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a canonical URI, and the path in it.

    Raises:
        UnavailableError: the store cannot be reached, or has no such bucket.
    """
    where = store(uri)
    settings = frozenset(pair for pair in os.environ.items() if pair[0].startswith("AWS_"))
    # Not shared with a process that was forked off: connections cannot be.
    key = os.getpid(), where, settings
    if key not in _entered:
        # Two threads at once do it twice, which costs a request.
        _entered[key] = _first_contact(where)
    return _entered[key], where.bucket + uri[len(root(uri)) :].rstrip("/")


def _first_contact(where: Store) -> Bucket:
    end = time.monotonic() + FIRST_CONTACT_S
    while True:
        try:
            region = where.region or str(fs.resolve_s3_region(where.bucket))
            probe = Bucket(where.endpoint, where.scheme, region, retries=0)
            found = probe.get_file_info(where.bucket).type
            break
        except OSError as error:
            if _REFUSED.search(str(error)):
                # Who may read objects need not be allowed to ask for the bucket; if it is more,
                # the next request says so.
                found = fs.FileType.Directory
                break
            if time.monotonic() > end or _NO_BUCKET.search(str(error)):
                raise _failure(where, error) or StorageError(
                    f"{SCHEME}{where.bucket}: cannot be entered: {cause(str(error))}."
                ) from None
        time.sleep(PAUSE_S)
    if found == fs.FileType.NotFound:
        raise _no_bucket(where)
    return Bucket(where.endpoint, where.scheme, region, RETRIES)


def failure(uri: str, error: Exception) -> UnavailableError | None:
    """What a failed request says of the store itself, None if it says nothing.

    Args:
        uri: canonical URI of what was asked for.
        error: pyarrow's.
    """
    if not uri.startswith(SCHEME):
        return None
    where = store(uri)
    if _REFUSED.search(str(error)):
        try:
            probe = Bucket(where.endpoint, where.scheme, where.region or "us-east-1", retries=0)
            probe.get_file_info(where.bucket)
        except OSError as again:
            return _failure(where, again)
        return None  # The bucket is open to us, and one object of it is not.
    return _failure(where, error)


def _failure(where: Store, error: Exception) -> UnavailableError | None:
    said = str(error)
    detail = cause(said)
    if _NO_BUCKET.search(said):
        return _no_bucket(where)
    if _REFUSED.search(said):
        return UnavailableError(
            f"{SCHEME}{where.bucket}: {where.name} refuses access ({detail}). Check the"
            " credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the"
            " machine's role) and the rights to list and read the bucket."
        )
    if _FAILING.search(said):
        return UnavailableError(
            f"{SCHEME}{where.bucket}: {where.name} answers with errors ({detail}). Try again later;"
            " the same command goes on."
        )
    if _NETWORK.search(said):
        return UnavailableError(
            f"{SCHEME}{where.bucket}: {where.name} cannot be reached ({detail}). Check"
            " AWS_ENDPOINT_URL and the network."
        )
    return None


def _no_bucket(where: Store) -> UnavailableError:
    return UnavailableError(
        f"{SCHEME}{where.bucket}: {where.name} has no bucket of this name. Check it, or create it."
    )


def cause(said: str) -> str:
    """The part of a message of pyarrow's that tells what happened."""
    if not (found := _CAUSE.search(said)):
        return said
    told = _TOLD.search(found[2])
    return told[1].strip().rstrip(".") if told else found[1]
