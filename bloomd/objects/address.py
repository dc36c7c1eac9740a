"""Where the object store is."""

from bloomd.errors import Misconfigured
from bloomd.settings.model import Minio

DEFAULT_PORT = 9000


def address(settings: Minio) -> str:
    """`host:port` of the server.

    Raises:
        Misconfigured: no server is configured.
    """
    if settings.endpoint is None:
        raise Misconfigured("no object store is configured: set minio.endpoint")
    host, separator, port = settings.endpoint.rpartition(":")
    has_port = separator and port.isdigit() and not (":" in host and not host.endswith("]"))
    return settings.endpoint if has_port else f"{settings.endpoint}:{DEFAULT_PORT}"
