"""`taskflow dashboard`: serves the dashboard to one browser. Only this machine can reach it, unless `--host` says otherwise."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import secrets
import signal
from socket import socket
from typing import Final

from taskflow.app.app import App
from taskflow.app.bulk_actions import this_operator
from taskflow.cli import command
from taskflow.cli.command import existing_broker
from taskflow.cli.exit_codes import Exit
from taskflow.cli.health_server import listener
from taskflow.cli.startup import raising
from taskflow.cli.terminal import print_now, warn
from taskflow.model.errors import DriverMissing

GRACE: Final = 2  # seconds for open requests to finish


def dashboard(arguments: argparse.Namespace) -> int:
    with raising(signal.SIGTERM):  # uvicorn raises the signal again once it has stopped; then the store is closed
        return command.with_store(_serve, arguments)


async def _serve(app: App, arguments: argparse.Namespace) -> int:
    try:
        import uvicorn
    except ImportError as error:
        raise DriverMissing("taskflow dashboard needs uvicorn: install the extra 'dashboard'") from error
    from taskflow.dashboard.acts import Acts
    from taskflow.dashboard.alone import dashboard_alone  # may raise DriverMissing too
    from taskflow.dashboard.live import Live

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket] | None = None) -> None:
            live.sampler().end()
            await super().shutdown(sockets)
            await acts.end()  # while the store is open, so that the audit log records what the actions did

    live, acts = Live(), Acts()
    await existing_broker(app)
    with listener(arguments.host, arguments.port, "--port") as listening:
        address, port = listening.getsockname()[:2]
        token = secrets.token_urlsafe(32)
        if not ipaddress.ip_address(address).is_loopback:
            warn("the connection is not encrypted, and other machines can reach this port: prefer 127.0.0.1 and a tunnel, such as ssh -L")
        # Browsers send a cookie to all ports of a host, so the cookie's name includes the port.
        config = uvicorn.Config(
            dashboard_alone(live, acts, this_operator(), token, f"taskflow_dashboard_{port}"),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE,
        )
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print_now(f"http://{host}:{port}/?token={token}")
        server, codes = Server(config), list[int]()

        def hang_up() -> None:  # uvicorn does not handle this signal
            codes.append(128 + signal.SIGHUP)
            server.should_exit = True

        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
        await server.serve(sockets=[listening])
    return codes[0] if codes else Exit.OK
