"""The HTTP interface of a desk, and the page. No path of a request reaches the file system: pictures are asked for by
number, and the page's few files are read when the server starts.
"""

from __future__ import annotations

from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.types import StringConstraints

from leanmask.annotate.desk import Desk
from leanmask.annotate.guard import Guard, Pass
from leanmask.annotate.pictures import Encoded, NotOnImage, Part, Pictures
from leanmask.annotate.store import Answer
from leanmask.annotate.tasks import MOST_BOXES, WHOLE
from leanmask.errors import DataError
from leanmask.version import __version__

MOST_ANSWERS, MOST_UNITS, MOST_SIDE_PX = 100, 20, 4096
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
TYPES |= {".svg": "image/svg+xml"}

Name = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{8,64}$")]
Number = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """Unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid")


class Who(Strict):
    """annotator: one of those that the server was started for. tab: a name that the page gives itself, in every tab
    another one.
    """

    annotator: Name
    tab: Key


class Claim(Who):
    """A wish for work."""

    count: int = Field(3, ge=1, le=MOST_UNITS)


class Detail(Strict):
    """What an answer says beyond its value. box: x, y, width, height in pixels of the image. extremes: the four clicks
    that made it. category_id: the class of a box, or the right one of a pseudo-label. exhaustive: of "done", whether
    every object on the image has a box.
    """

    box: tuple[Finite, Finite, Finite, Finite] | None = None
    extremes: list[tuple[Finite, Finite]] | None = Field(None, max_length=4)
    category_id: int | None = None
    exhaustive: bool | None = None


class Said(Strict):
    """One answer. id: made by the page; an answer that is sent twice is saved once. position: which point or box, -1
    about the whole. seconds: that the person took.
    """

    id: Key
    kind: Literal["points", "boxes", "review"]
    target: Number
    position: int = Field(ge=WHOLE, lt=MOST_BOXES)
    value: Name
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
    detail: Detail | None = None


class Answers(Who):
    """Answers in the order in which they were given."""

    answers: list[Said] = Field(min_length=1, max_length=MOST_ANSWERS)


class Undo(Who):
    """Which answer to take back."""

    id: Key


class Cut(Strict):
    """A region of an image: x, y, width, height in its pixels. longest: the longer side of what is sent, at most."""

    x: int = Field(ge=0, lt=2**31)
    y: int = Field(ge=0, lt=2**31)
    width: int = Field(ge=1, lt=2**31)
    height: int = Field(ge=1, lt=2**31)
    longest: int = Field(1024, ge=1, le=MOST_SIDE_PX)

    def part(self) -> Part:
        return Part((self.x, self.y, self.width, self.height), self.longest)


router = APIRouter()


def _desk(request: Request, annotator: str) -> Desk:
    desk: Desk = request.app.state.desk
    if annotator not in desk.annotators:
        raise HTTPException(403, f"'{annotator}' is none of the annotators: {', '.join(desk.annotators)}")
    return desk


@router.get("/api/state")
def state(request: Request) -> dict[str, Any]:
    """What this session is about: kind of work, classes, annotators, progress."""
    desk: Desk = request.app.state.desk
    source = desk.source
    return {
        "version": __version__,
        "name": source.origin.name,
        "store": request.app.state.store_key,
        "kind": desk.job.kind,
        "points": desk.job.points,
        "annotators": list(desk.annotators),
        "categories": [{"id": key, "name": name} for key, name in source.categories.items()],
        "progress": desk.progress(),
    }


@router.post("/api/claim", responses={403: {"description": "Not one of the annotators."}})
async def claim(request: Request, wish: Claim) -> dict[str, Any]:
    """Units to work on, with what the page needs to show them; none when everything is done or lent to others."""
    desk = _desk(request, wish.annotator)
    return {"units": desk.claim(wish.annotator, wish.tab, wish.count), "progress": desk.progress()}


@router.post("/api/answers", responses={403: {"description": "Not one of the annotators."}})
async def answers(request: Request, given: Answers) -> dict[str, Any]:
    """Save answers. Each is "saved", "known" (sent before), "conflict" (this annotator has answered that question
    already; the earlier answer stands) or "refused" (with the reason).
    """
    desk = _desk(request, given.annotator)
    results = []
    for said in given.answers:
        detail = None if said.detail is None else said.detail.model_dump(exclude_none=True)
        values = {**said.model_dump(exclude={"detail"}), "annotator": given.annotator, "detail": detail}
        status, reason = desk.take(Answer(**values), given.tab)
        results.append({"id": said.id, "status": status, "reason": reason})
    return {"results": results, "progress": desk.progress()}


@router.post("/api/undo", responses={403: {"description": "Not one of the annotators."}})
async def undo(request: Request, wish: Undo) -> dict[str, Any]:
    """Take back an answer of one's own: "undone", or "unknown" where there is no such answer."""
    desk = _desk(request, wish.annotator)
    return {"status": desk.undo(wish.id, wish.annotator, wish.tab), "progress": desk.progress()}


@router.get("/api/statistics")
def statistics(request: Request) -> dict[str, Any]:
    """Speed of every annotator, and agreement where several answered the same."""
    desk: Desk = request.app.state.desk
    return desk.measured().to_json()


_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}, "image/jpeg": {}}},
    404: {"description": "No such picture, or it cannot be read, or the region does not lie on it."},
}


@router.get("/api/pictures/{picture}", response_class=Response, responses=_PICTURE)
def picture(request: Request, picture: Number, cut: Annotated[Cut, Query()]) -> Response:
    """A region of an image, made smaller where its longer side exceeds `longest`."""
    desk: Desk = request.app.state.desk
    pictures: Pictures = request.app.state.pictures
    if picture >= len(desk.source.pictures):
        raise HTTPException(404, f"there is no picture {picture}")
    try:
        return _sent(pictures.part(picture, cut.part()))
    except NotOnImage:
        raise
    except DataError as error:
        desk.set_aside(picture, str(error))
        raise


@router.get("/api/masks/{thing}", response_class=Response, responses=_PICTURE)
def mask(request: Request, thing: Number, cut: Annotated[Cut, Query()]) -> Response:
    """The mask of the object with this annotation id on a region of its image, to be laid over it."""
    desk: Desk = request.app.state.desk
    index = desk.source.thing_index.get(thing)
    if index is None or not desk.source.holds(desk.source.things[index].picture, (cut.x, cut.y, cut.width, cut.height)):
        raise HTTPException(404, f"there is no object {thing}, or the region does not lie on its image")
    pictures: Pictures = request.app.state.pictures
    try:
        return _sent(pictures.mask(index, cut.part()))
    except DataError as error:
        desk.set_object_aside(thing, str(error))
        raise


def _sent(encoded: Encoded) -> Response:
    # The same address always gives the same picture, and the next ones are loaded ahead.
    headers = {"cache-control": "private, max-age=3600"}
    return Response(encoded.content, media_type=encoded.media_type, headers=headers)


def create_app(desk: Desk, store_key: str) -> FastAPI:
    """The application, without its guard. store_key: a name of this store, under which the page keeps what it could not
    send yet.
    """
    app = FastAPI(
        title="leanmask annotate",
        version=__version__,
        description="Hands out objects to label, takes answers, shows pictures. Needs the token of the server.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.desk, app.state.store_key, app.state.pictures = desk, store_key, Pictures(desk.source)
    app.include_router(router)
    app.add_exception_handler(DataError, _not_there)
    app.add_exception_handler(RequestValidationError, _not_valid)
    for name, content, media_type in _page():
        _serve(app, name, content, media_type)
    return app


def guarded(app: FastAPI, allowed: Pass) -> Guard:
    """The application as it meets the network."""
    return Guard(app, allowed)


def _not_there(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 404)


def _not_valid(_: Request, error: Exception) -> JSONResponse:
    """Where the mistakes are, without what was sent: that may be anything, text or not."""
    assert isinstance(error, RequestValidationError)
    found = [{"loc": list(item["loc"]), "msg": item["msg"], "type": item["type"]} for item in error.errors()]
    return JSONResponse({"detail": found}, 422)


def _page() -> list[tuple[str, bytes, str]]:
    """Name, content and type of every file of the page."""
    found = []
    for file in resources.files("leanmask.annotate").joinpath("static").iterdir():
        suffix = "." + file.name.rpartition(".")[2]
        if suffix in TYPES:
            found.append((file.name, file.read_bytes(), TYPES[suffix]))
    return found


def _serve(app: FastAPI, name: str, content: bytes, media_type: str) -> None:
    def send() -> Response:
        return Response(content, media_type=media_type)

    app.add_api_route("/" if name == "index.html" else f"/{name}", send, methods=["GET"], include_in_schema=False)
