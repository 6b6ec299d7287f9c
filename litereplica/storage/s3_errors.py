"""Translates boto's errors and S3's error codes into those of the storage contract. No message holds a credential."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from litereplica.errors import (
    AccessDenied,
    BucketNotFound,
    NotFound,
    NotSupported,
    PreconditionFailed,
    StorageError,
    TransientStorageError,
)

MAX_REASON_CHARACTERS = 300
"""Stores repeat whole requests or HTML pages in their messages."""

_WRONG_CREDENTIALS = frozenset(
    {
        "AuthorizationHeaderMissing",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_WRONG_CLOCK = frozenset({"RequestExpired", "RequestTimeTooSkewed"})
_WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
_TRANSIENT = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "NoSuchUpload",
        "OperationAborted",
        "RequestCanceled",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "TemporaryRedirect",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})

HINT_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
HINT_RIGHTS = "check the credentials, and that they allow to list, read and (for a writer) write and delete here"
HINT_BUCKET = "create the bucket, or correct its name, the endpoint or the region in the URL"
HINT_ENDPOINT = "check that the endpoint in the URL is right and that its server is running"
HINT_REGION = "name the bucket's region in the URL: region=…"
HINT_CERTIFICATE = "name the certificate authority in AWS_CA_BUNDLE"
HINT_LATER = "try again later"
HINT_LACKING = "the store does not offer this operation: see its documentation, or use another store"
HINT_REFUSED = "the reason is specific to the store: see its documentation, or ask its operator"
HINT_CONDITIONS = (
    "use a store that supports conditional requests, or make sure that no other writer ever publishes there and add "
    "--no-lease"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed. `doing` is a verb with its object, such as `read 0000/….ltx`.

    `conditional` is True if the request had a condition, such as If-None-Match.
    """

    doing: str
    key: str
    url: str
    conditional: bool = False

    def error(self, kind: type[StorageError], reason: str, hint: str | None = None) -> StorageError:
        """Return an error of this class, whose message names the request and the reason."""
        one_line = " ".join(reason.split())[:MAX_REASON_CHARACTERS]
        return kind(f"cannot {self.doing} in {self.url}: {one_line}", key=self.key, hint=hint)


def refuses_credentials(code: str) -> bool:
    """True if an S3 error code means that the credentials are unknown, wrong or expired."""
    return code in _WRONG_CREDENTIALS


def wants_content_md5(message: str) -> bool:
    """True if an error means that a request lacks Content-MD5 or the checksum header that may replace it."""
    return "content-md5" in message.lower()


def translated(exc: Exception, failure: Failure) -> StorageError | None:
    """The error of the storage contract for an exception; None if neither the store nor the network caused it."""
    match exc:  # before botocore is imported, which takes long
        case StorageError():
            return exc
        case ssl.SSLCertVerificationError():
            return failure.error(StorageError, "the server's certificate is not trusted", HINT_CERTIFICATE)
        case ConnectionError() | TimeoutError():
            return failure.error(TransientStorageError, str(exc) or type(exc).__name__, HINT_ENDPOINT)
    import urllib3.exceptions
    from botocore import exceptions as boto

    match exc:
        case boto.ClientError():
            answer = exc.response
            code = answer.get("Error", {}).get("Code", "")
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            message = answer.get("Error", {}).get("Message") or "no reason given"
            return of_code(str(code), status, message, failure)
        case boto.NoCredentialsError() | boto.PartialCredentialsError() | boto.CredentialRetrievalError():
            return failure.error(AccessDenied, str(exc), HINT_CREDENTIALS)
        case boto.TokenRetrievalError() | boto.SSOError() | boto.ProfileNotFound():
            return failure.error(AccessDenied, str(exc), HINT_CREDENTIALS)
        case boto.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(exc):
            return failure.error(StorageError, "the server's certificate is not trusted", HINT_CERTIFICATE)
        case boto.HTTPClientError() | boto.ConnectionError() | boto.IncompleteReadError():
            return failure.error(TransientStorageError, str(exc), HINT_ENDPOINT)
        case urllib3.exceptions.HTTPError():
            return failure.error(TransientStorageError, str(exc) or type(exc).__name__, HINT_ENDPOINT)
        case OSError():
            return failure.error(StorageError, str(exc), "check the local file that is uploaded")
        case KeyError() | ValueError() | TypeError() | AttributeError():
            is_secret = isinstance(exc, UnicodeError) or "header value" in str(exc)  # it may be a part of a credential
            reason = f"the store's answer has an unexpected form: {type(exc).__name__ if is_secret else repr(exc)}"
            return failure.error(TransientStorageError, reason, HINT_ENDPOINT)
        case boto.BotoCoreError():
            return failure.error(StorageError, str(exc), HINT_ENDPOINT)
    return None


def of_code(code: str, status: int, message: str, failure: Failure) -> StorageError:
    """The error for an S3 error code and HTTP status; either may be missing ("" or 0)."""
    reason = message if not code or code.isdigit() else f"{message} ({code})"
    if code == "NoSuchBucket":
        return failure.error(BucketNotFound, "the bucket does not exist", HINT_BUCKET)
    if code in _WRONG_REGION:
        return failure.error(StorageError, reason, HINT_REGION)
    if code in _WRONG_CLOCK:
        return failure.error(AccessDenied, reason, "set this machine's clock")
    if code in _WRONG_CREDENTIALS:
        return failure.error(AccessDenied, reason, HINT_CREDENTIALS)
    if code == "NotImplemented" or status == 501:
        return failure.error(NotSupported, reason, HINT_CONDITIONS if failure.conditional else HINT_LACKING)
    if code in _TRANSIENT or status in _TRANSIENT_STATUS or status >= 500:
        return failure.error(TransientStorageError, reason, HINT_LATER)
    if code == "NoSuchKey" or status == 404:
        return failure.error(NotFound, "it does not exist")
    if code == "AccessDenied" or status in (401, 403):
        unspecific = not code or code.isdigit() or code in ("AccessDenied", "Forbidden")
        return failure.error(AccessDenied, reason, HINT_RIGHTS if unspecific else HINT_REFUSED)
    if code == "PreconditionFailed" or status == 412:
        return failure.error(PreconditionFailed, "it is in another state")
    return failure.error(StorageError, reason, HINT_ENDPOINT)
