"""The boundary around the minio SDK: bounded worker threads, bounded waiting, its errors as ours.

The SDK blocks, so each call runs in a worker thread. A call that is cancelled leaves its thread behind until the SDK's
own timeouts end it; the few places for threads bound how many there can be, and whoever finds none waits, within its
own deadline.
"""

import io
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn, TypeVar, cast

import msgspec
import trio
import urllib3
from minio import Minio as Client
from minio.datatypes import Object
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.helpers import check_bucket_name, check_object_name
from urllib3.exceptions import HTTPError, NewConnectionError, TimeoutError

from bloomd.errors import Misconfigured, Unavailable
from bloomd.exchange import trust, why
from bloomd.objects.address import address
from bloomd.settings.model import Minio

T = TypeVar("T")

# A second call may still work while the first one's thread waits for a server that is gone.
THREADS = 2

# For connecting, and for each wait for the server: how long a thread that nobody waits for any more may stay.
WAIT_SECONDS = 10.0

# What is longer goes in parts of this size, one in memory at a time. (S3 takes 10,000 of them, each of 5 MiB or more.)
PART_BYTES = 8 << 20

# Names of a listing that are fetched at once, as many as S3 gives in one answer.
LISTED = 1000

Read = Callable[[int], Awaitable[bytes]]
"""Gives some bytes of a content, from this place on."""


class Missing(Unavailable):
    """There is no such object."""


class NoBucket(Misconfigured):
    """There is no such bucket."""


class _Beyond(Unavailable):
    """The object ends before what was asked for."""


class Stat(msgspec.Struct, frozen=True):
    """What the store says of an object."""

    key: str
    size: int
    content_type: str | None
    """Not said in a listing."""
    changed_at: datetime


class Store:
    """One server; where no other bucket is named, the bucket of the settings."""

    def __init__(self, settings: Minio, *, threads: int = THREADS) -> None:
        """Nothing is connected yet.

        Args:
            threads: so many calls run at once.

        Raises:
            Misconfigured: the settings name no server, or no keys.
        """
        self.address = address(settings)
        self._bucket = settings.bucket
        self._threads = trio.CapacityLimiter(threads)
        self._who = f"the object store at {self.address}"
        if not settings.access_key or not settings.secret_key:
            raise Misconfigured(f"{self._who} needs keys: set minio.access_key and minio.secret_key")
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=WAIT_SECONDS, read=WAIT_SECONDS),
            retries=False,
            maxsize=threads,
            ssl_context=trust(),
        )
        try:
            check_bucket_name(settings.bucket)
            self._client = Client(
                self.address,
                access_key=settings.access_key,
                secret_key=settings.secret_key,
                secure=settings.secure,
                region=settings.region,
                http_client=pool,
            )
        except ValueError as error:
            raise Misconfigured(
                f"{self._who}: correct minio.endpoint, minio.bucket or minio.region: {error}"
            ) from error

    async def check_bucket(self) -> None:
        """Make sure that the bucket is there and that the keys open it.

        Raises:
            Unavailable: the server is away.
            Misconfigured: it answers, and refuses the keys, or has no such bucket.
        """
        if not await self._has_bucket(self._bucket):
            raise Misconfigured(self._no_bucket(self._bucket))

    async def make_bucket(self, bucket: str | None = None) -> bool:
        """Make the bucket, unless it is there; whether it had to be made.

        Raises:
            Unavailable: the server is away.
            Misconfigured: it answers, and refuses the keys, or does not let them make the bucket.
        """
        bucket = bucket or self._bucket
        if await self._has_bucket(bucket):
            return False
        try:
            await self._run(lambda: self._client.make_bucket(bucket), bucket)
        except Misconfigured as error:
            raise Misconfigured(f"{self._no_bucket(bucket)} (it does not let these keys make one)") from error
        return True

    async def put(self, key: str, size: int, read: Read, *, content_type: str, bucket: str | None = None) -> None:
        """Store an object of this size under a key; one that was there is replaced, and seen whole until then.

        Raises:
            Unavailable: the server is away, or has no room; or what `read` raises.
            Misconfigured: it refuses the keys, or has no such bucket.
        """
        bucket = bucket or self._bucket
        source = _Source(size, read)

        def put() -> None:
            self._client.put_object(
                bucket,
                key,
                cast("Any", source),
                size,
                content_type=content_type,
                part_size=PART_BYTES,
                num_parallel_uploads=1,
            )

        try:
            await self._run(put, bucket)
        finally:
            source.close()

    async def read(self, key: str, at: int, most: int, *, bucket: str | None = None) -> bytes:
        """Bytes of an object, from this place on: `most`, or what there is; none beyond its end.

        Raises:
            Missing: there is no such object.
            Unavailable: the server is away, or breaks off.
            Misconfigured: it refuses the keys, or has no such bucket.
        """
        bucket = bucket or self._bucket

        _refuse_impossible(bucket, key)

        def read() -> bytes:
            answer = self._client.get_object(bucket, key, offset=at, length=most)
            try:
                return answer.read()
            finally:
                answer.close()
                answer.release_conn()

        try:
            return await self._run(read, bucket) if most else b""
        except _Beyond:
            return b""

    async def stat(self, key: str, *, bucket: str | None = None) -> Stat | None:
        """What there is under a key, if anything.

        Raises:
            Unavailable: the server is away.
            Misconfigured: it refuses the keys.
        """
        bucket = bucket or self._bucket
        try:
            _refuse_impossible(bucket, key)
            return _stat(await self._run(lambda: self._client.stat_object(bucket, key), bucket))
        except Missing:
            return None

    async def remove(self, key: str, *, bucket: str | None = None) -> None:
        """Remove an object; that it is gone already, or its bucket, is no error.

        Raises:
            Unavailable: the server is away.
            Misconfigured: it refuses the keys.
        """
        bucket = bucket or self._bucket
        with suppress(Missing, NoBucket):
            _refuse_impossible(bucket, key)
            await self._run(lambda: self._client.remove_object(bucket, key), bucket)

    async def listing(self, prefix: str, *, bucket: str | None = None) -> AsyncIterator[Stat]:
        """Every object whose key begins so, by key.

        Raises:
            Unavailable: the server is away.
            Misconfigured: it refuses the keys, or has no such bucket.
        """
        bucket = bucket or self._bucket
        listed = iter(self._client.list_objects(bucket, prefix=prefix, recursive=True))
        while some := await self._run(lambda: list(itertools.islice(listed, LISTED)), bucket):
            for each in some:
                yield _stat(each)

    async def _has_bucket(self, bucket: str) -> bool:
        try:
            return await self._run(lambda: self._client.bucket_exists(bucket), bucket)
        except Misconfigured:
            # The answer to HEAD has no body, so it cannot say what is wrong; this one may.
            with suppress(Unavailable):
                await self._run(lambda: list(itertools.islice(self._client.list_objects(bucket), 1)), bucket)
            raise

    async def _run(self, call: Callable[[], T], bucket: str) -> T:
        try:
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        except S3Error as error:
            self._refuse(cast("Any", error.response).status, str(error.code), str(error.message), bucket, error)
        except ServerError as error:
            raise Unavailable(f"{self._who} answered {error.status_code}") from error
        except InvalidResponseError as error:
            # To the SDK only application/xml is XML; some servers call it text/xml.
            said = re.search(r"Response code: (\d+).*<Code>(\w+)</Code>", str(error), re.DOTALL)
            if not said:
                raise Unavailable(f"{self._who} does not answer like an S3 server") from error
            self._refuse(int(said[1]), said[2], said[2], bucket, error)
        except (MinioException, HTTPError, OSError) as error:
            raise Unavailable(f"{self._who}: {_reason(error)}") from error
        except ValueError as error:  # the SDK trips over some answers: 409 without a body (minio 7.2.20)
            raise Unavailable(f"{self._who} does not answer like an S3 server") from error

    def _refuse(self, status: int, code: str, message: str, bucket: str, error: Exception) -> NoReturn:
        """Raise what the server's refusal means (Amazon S3 API Reference, "Error responses")."""
        if code in ("NoSuchKey", "NoSuchObject"):
            raise Missing(f"{self._who} does not have the object") from error
        if code == "InvalidRange":
            raise _Beyond(f"{self._who} has no more of the object") from error
        if code == "NoSuchBucket":
            raise NoBucket(self._no_bucket(bucket)) from error
        if code == "RequestTimeTooSkewed":
            raise Misconfigured(
                f"{self._who} has another time than this machine, by more than a quarter of an hour:"
                " set the clocks right (chrony, ntpd)"
            ) from error
        if code == "InvalidAccessKeyId":
            raise Misconfigured(f"{self._who} does not know the access key: correct minio.access_key") from error
        if code == "SignatureDoesNotMatch":
            raise Misconfigured(
                f"{self._who} refuses the signature: correct minio.secret_key, or minio.region"
            ) from error
        if status == 403:
            raise Misconfigured(
                f"{self._who} refuses the keys for bucket {bucket!r} (403):"
                " correct minio.access_key and minio.secret_key, or allow them the bucket"
            ) from error
        if status in (301, 307, 400):
            raise Misconfigured(
                f"{self._who} does not take the request ({status}, {message}):"
                " correct minio.region, minio.endpoint or minio.secure"
            ) from error
        raise Unavailable(f"{self._who} answered {status} ({code})") from error

    def _no_bucket(self, bucket: str) -> str:
        setting = ", or correct minio.bucket" if bucket == self._bucket else ""
        return f"{self._who} has no bucket {bucket!r}: create it{setting}"


class _Source(io.RawIOBase):
    """A content as the SDK reads it, in its thread."""

    def __init__(self, size: int, read: Read) -> None:
        self._size = size
        self._read = read
        self._at = 0
        self._waiting = b""

    def read(self, size: int = -1, /) -> bytes:
        """So many bytes, or what there is.

        Raises:
            ValueError: nobody waits any more for what this is read for.
        """
        if self.closed:
            raise ValueError("nobody waits for it any more")
        if not self._waiting and self._at < self._size:
            self._waiting = trio.from_thread.run(self._read, self._at)
            self._at += len(self._waiting)
        data = self._waiting[:size] if size >= 0 else self._waiting
        self._waiting = self._waiting[len(data) :]
        return data


def _refuse_impossible(bucket: str, key: str) -> None:
    """Raise Missing for what no store has: it comes from a row that another program wrote."""
    try:
        check_bucket_name(bucket)
        check_object_name(key)
    except ValueError as error:
        raise Missing(f"there cannot be such an object: {error}") from error


def _stat(found: Object) -> Stat:
    return Stat(str(found.object_name), found.size or 0, found.content_type, cast("datetime", found.last_modified))


def _reason(error: Exception) -> str:
    # urllib3 counts a refused connection among its timeouts.
    if isinstance(error, TimeoutError) and not isinstance(error, NewConnectionError):
        return "no answer in time"
    return why(error)
