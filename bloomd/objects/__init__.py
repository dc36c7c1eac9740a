"""The object store: MinIO, or any other S3 server."""

from bloomd.objects.store import Store, address

__all__ = ["Store", "address"]
