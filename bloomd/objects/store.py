"""The boundary around the minio SDK: bounded worker threads, bounded waiting, its errors as ours.

The SDK blocks, so each call runs in a worker thread. A call that is cancelled leaves its thread behind until the SDK's
own timeouts end it; the few places for threads bound how many there can be, and whoever finds none waits, within its
own deadline.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import trio
import urllib3
from minio import Minio as Client
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.helpers import check_bucket_name
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


class Store:
    """One bucket on one server."""

    def __init__(self, settings: Minio) -> None:
        """Nothing is connected yet.

        Raises:
            Misconfigured: the settings name no server, or no keys.
        """
        self.address = address(settings)
        self._bucket = settings.bucket
        self._threads = trio.CapacityLimiter(THREADS)
        self._who = f"the object store at {self.address}"
        if not settings.access_key or not settings.secret_key:
            raise Misconfigured(f"{self._who} needs keys: set minio.access_key and minio.secret_key")
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=WAIT_SECONDS, read=WAIT_SECONDS),
            retries=False,
            maxsize=THREADS,
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
        if not await self._run(lambda: self._client.bucket_exists(self._bucket)):
            raise Misconfigured(f"{self._who} has no bucket {self._bucket!r}: create it, or correct minio.bucket")

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        except S3Error as error:
            raise self._refusal(error) from error
        except ServerError as error:
            raise Unavailable(f"{self._who} answered {error.status_code}") from error
        except InvalidResponseError as error:
            raise Unavailable(f"{self._who} does not answer like an S3 server") from error
        except (MinioException, HTTPError, OSError) as error:
            raise Unavailable(f"{self._who}: {_reason(error)}") from error
        except ValueError as error:  # the SDK trips over some answers: 409 without a body (minio 7.2.20)
            raise Unavailable(f"{self._who} does not answer like an S3 server") from error

    def _refusal(self, error: S3Error) -> Misconfigured | Unavailable:
        status = cast("Any", error.response).status
        if status == 403:
            return Misconfigured(
                f"{self._who} refuses the keys for bucket {self._bucket!r} (403):"
                " correct minio.access_key and minio.secret_key, or allow them the bucket"
            )
        if status in (301, 307, 400):
            return Misconfigured(
                f"{self._who} does not take the request ({status}, {error.message}):"
                " correct minio.region, minio.endpoint or minio.secure"
            )
        return Unavailable(f"{self._who} answered {status} ({error.code})")


def _reason(error: Exception) -> str:
    # urllib3 counts a refused connection among its timeouts.
    if isinstance(error, TimeoutError) and not isinstance(error, NewConnectionError):
        return "no answer in time"
    return why(error)
