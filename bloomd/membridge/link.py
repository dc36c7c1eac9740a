"""The client of the Membridge server that is configured at the moment; another one as soon as the settings change."""

from collections.abc import Callable

from bloomd.errors import Unavailable
from bloomd.membridge.client import Health, MembridgeClient
from bloomd.settings.model import Membridge

NOT_CONFIGURED = (
    "no Membridge server is configured; set membridge.server_url, or save a URL on the page or by POST /config"
)


class Link:
    """Holds one client, made when it is first needed."""

    def __init__(self, settings: Callable[[], Membridge]) -> None:
        self._settings = settings
        self._client: MembridgeClient | None = None

    @property
    def settings(self) -> Membridge:
        """By which it goes."""
        return self._settings()

    @property
    def configured(self) -> bool:
        return self._settings().server_url is not None

    @property
    def health(self) -> Health:
        """How the calls of the current client went."""
        return self._client.calls if self._client else Health()

    def client(self) -> MembridgeClient:
        """The client for the settings in force.

        Raises:
            Unavailable: no server is configured.
        """
        settings = self._settings()
        if settings.server_url is None:
            raise Unavailable(NOT_CONFIGURED)
        if self._client is None:
            self._client = MembridgeClient(settings.server_url, settings.admin_key, timeout=settings.timeout)
        return self._client

    def renew(self) -> None:
        """Forget the client: the settings have changed. Calls under way on the old one end as they began."""
        self._client = None
