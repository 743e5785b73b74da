"""`leanmask annotate`: serves the page until it is stopped, and writes the labels then."""

from __future__ import annotations

import gc
import hashlib
import ipaddress
import secrets
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from filelock import FileLock, Timeout
from PIL import Image

from leanmask.annotate.desk import Desk
from leanmask.annotate.guard import Pass
from leanmask.annotate.labels import labelling_folder
from leanmask.annotate.server import create_app, guarded
from leanmask.annotate.source import text_of
from leanmask.annotate.work import AnnotateOptions, AnnotateSummary, Work
from leanmask.data.layout import labelled_data, photo_folder
from leanmask.errors import RunError
from leanmask.options import check_fields, require_options

PORT, PORTS_TRIED = 8765, 50
LARGEST_IMAGE_PIXELS = 500_000_000  # Pillow refuses twice as many; its own limit is for pictures of strangers
SHUTDOWN_SECONDS = 3
PROBLEMS_SAID = 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class ServeOptions:
    """Where the page is served. host: others than 127.0.0.1 let other machines in. port: the next free one from it."""

    host: str = "127.0.0.1"
    port: int = PORT
    browser: bool = True

    def __post_init__(self) -> None:
        check_fields(self, port=(0, 65535))


def annotate_data(
    data: str | Path,
    options: AnnotateOptions = AnnotateOptions(),
    serve: ServeOptions = ServeOptions(),
    *,
    say: Say = lambda message: None,
) -> AnnotateSummary:
    """Serve the annotation page until it is stopped (Ctrl-C, SIGTERM), then write the labels.

    say: called with each sentence for the user, the page's address among them. Raises DataError, ConfigError or
    RunError.
    """
    require_options(options, AnnotateOptions)
    photos = photo_folder(data)
    if photos is not None and options.store is None and not labelling_folder(labelled_data(data)).exists():
        say(f"reading the photographs in {photos} once, to know them again under other names")
    with _uncollected():
        work = Work.open(data, options)
    begun = False
    try:
        with _alone(work.store.path):
            with _uncollected():
                desk, masks = work.desk()
            begun = True
            for note in work.labels.notes:
                say(note)
            if work.review and work.review.left_out:
                say(
                    f"{work.review.left_out} pseudo-labels are not asked about: they are on images that are gone or "
                    "held out for validation, or of objects that have labels"
                )
            if masks:
                say(f"{masks} of the queue's items are masks, which this page does not draw: see `leanmask convert`")
            _serve(desk, serve, say)
            _say_problems(desk, say)
            return work.export()
    finally:
        if begun:
            work.close()
        else:
            work.discard()


def export_annotations(
    data: str | Path, out: Path | None, options: AnnotateOptions = AnnotateOptions()
) -> AnnotateSummary:
    """Write what has been answered so far: to the new file `out`, None = into the session's own folder."""
    work = Work.open(data, options)
    try:
        return work.export(out)
    finally:
        work.close()


def _say_problems(desk: Desk, say: Say) -> None:
    reasons = list(desk.problems.values())
    for reason in reasons[:PROBLEMS_SAID]:
        say(f"left out: {reason}")
    if len(reasons) > PROBLEMS_SAID:
        say(f"left out: {len(reasons) - PROBLEMS_SAID} more images or objects")


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    lock = FileLock(store.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{store} is being labelled by another leanmask annotate; open its page, or stop it first"
        ) from None
    except OSError as error:
        raise RunError(f"cannot write beside {store}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _serve(desk: Desk, options: ServeOptions, say: Say) -> None:
    listening = _listen(options)
    port = listening.getsockname()[1]
    if port != options.port and options.port:
        say(f"port {options.port} is taken; using {port}")
    allowed = Pass(_token(desk), options.host, port)
    app = guarded(create_app(desk, _store_key(desk)), allowed)
    name = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}/?token={allowed.token}"
    if not _is_local(options.host):
        where = f"{options.host}:{port}"
        say(f"warning: every machine that reaches {where} and knows the token can label; nothing is encrypted")
    say(f"labelling page: {url}")
    say("Ctrl-C stops and writes the labels")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    if options.browser:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    with _large_images(), _stop_on_sigterm(), listening:
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            return


def _token(desk: Desk) -> str:
    """Random, and the same again for a store, so that open pages go on when the server is started anew."""
    known = desk.store.about().get("token")
    if not known:
        known = secrets.token_urlsafe(24)
        desk.store.tell("token", known)
    return str(known)


def _store_key(desk: Desk) -> str:
    told = text_of([desk.source.fingerprint(), str(desk.store.path.resolve())])
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _listen(options: ServeOptions) -> socket.socket:
    """A socket on the first free port. Raises RunError for a host or port that cannot be."""
    problem = ""
    for port in range(options.port, min(options.port + PORTS_TRIED, 65_536)):
        try:
            return socket.create_server((options.host, port), family=_family(options.host), backlog=128)
        except OverflowError:
            break
        except OSError as error:
            problem = error.strerror or str(error)
    raise RunError(f"cannot listen on {options.host}, ports from {options.port}: {problem or 'no such port'}")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _uncollected() -> Iterator[None]:
    """Reading a large file frees nothing, and looking for garbage among its objects takes half of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if before:
            gc.enable()


@contextmanager
def _large_images() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = LARGEST_IMAGE_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the server as Ctrl-C does, so that the labels are written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
