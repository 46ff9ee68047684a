"""The loopback store at which torch's elastic launcher and its ranks on this machine meet."""

from __future__ import annotations

from datetime import timedelta

from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from pipeline.training.store import LOOPBACK, serve

BACKEND = "loopback"
_TIMEOUT = timedelta(minutes=10)


class LoopbackRendezvous(RendezvousHandler):
    """A rendezvous of one launcher: complete at once, and never changing."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._store = serve(LOOPBACK, 0, ranks=None, timeout=_TIMEOUT)
        self._closed = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Tell the ranks to use this store, so that none of them serves its own."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        place = RendezvousStoreInfo(LOOPBACK, self._store.port)
        return RendezvousInfo(self._store, 0, 1, place)

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


def register() -> None:
    """Make the backend known to torch's launcher. A second call changes nothing."""
    rendezvous_handler_registry.register(BACKEND, LoopbackRendezvous)
