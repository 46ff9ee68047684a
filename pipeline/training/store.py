"""The key-value store at which the ranks meet, listening on one address only.

Torch's own store listens on all interfaces, and anyone who can reach the store of a run can stop
or steer the run.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore

from pipeline.errors import ConfigError

LOOPBACK = "127.0.0.1"
_BACKLOG = 4096


def serve(address: str, port: int, *, ranks: int | None, timeout: timedelta) -> TCPStore:
    """Start a store that listens on `address` alone.

    Args:
        port: TCP port; 0 takes a free one, which `TCPStore.port` tells.
        ranks: number of ranks to wait for, this one included; None = do not wait.
    Raises ConfigError when `address` is not one of this machine or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {address} port {port} on {socket.gethostname()}: {error.strerror}; "
            "set MASTER_ADDR to an address that this machine has and the others reach"
        ) from error
    port = listener.getsockname()[1]
    return TCPStore(
        address,
        port,
        world_size=ranks,
        is_master=True,
        timeout=timeout,
        wait_for_workers=ranks is not None,
        master_listen_fd=listener.detach(),  # the store closes the socket
    )


def meet(rank: int, ranks: int, timeout: timedelta) -> Store | None:
    """Return the run's store at MASTER_ADDR and MASTER_PORT, which rank 0 serves.

    Collective. Returns None under a launcher that provides its own store.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    port = int(os.environ["MASTER_PORT"])
    everybody_is_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == ranks
    host = LOOPBACK if everybody_is_here else os.environ["MASTER_ADDR"]
    if rank == 0:
        return serve(own_address(host), port, ranks=ranks, timeout=timeout)
    return TCPStore(host, port, world_size=ranks, is_master=False, timeout=timeout)


def own_address(host: str) -> str:
    """Return the numeric address at which other machines reach this one as `host`.

    Some systems resolve the machine's own name to a loopback address, which no other node can
    reach. The result is then the address of the interface that outgoing traffic uses.
    Raises ConfigError when `host` does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"MASTER_ADDR={host}: {error.strerror or error}") from error
    address = str(found[0][4][0])
    if not address.startswith("127.") or host == "localhost" or host.startswith("127."):
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: no host; UDP connect sends nothing
        except OSError:
            return address
        return str(probe.getsockname()[0])
