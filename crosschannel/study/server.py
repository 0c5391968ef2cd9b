"""`crosschannel study serve`: the pages of a study. They tell a browser nothing but which pair is next."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, cast
from urllib.parse import parse_qs

from crosschannel.console import print_stderr
from crosschannel.errors import UserError
from crosschannel.files import FolderLock, read_text, user_path
from crosschannel.study.answers import Answers, ColourVision, Refused, State, Timing, Unavailable
from crosschannel.study.config import StudyServeConfig
from crosschannel.study.manifest import PICTURES, Manifest, check_pictures, read_study
from crosschannel.web import FastAPI, Guarded, create_app, ended_by_signals, serve

try:
    from fastapi import Cookie, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from pydantic import BaseModel, ConfigDict, Field
except ImportError:
    raise UserError("web pages need more: pip install 'crosschannel[web]'") from None

_CODE = re.compile(r"[\w.@+-]{1,100}")  # of participants
_LIMIT = 4096  # bytes of a request
_RETRY_S = 5  # until a failed page is requested again
_STATIC = {"study.css": "text/css", "study.js": "text/javascript", "retry.js": "text/javascript"}
_PAGES = {"", "begin", "pairs", "end"}  # seen by people; study.js requests the others
_VISIONS: dict[ColourVision, str] = {"normal": "Yes", "deficient": "No", "unknown": "I do not know"}
_PAIRS_A_MINUTE = 5  # with reading, and thinking
_WAIT = 1e7  # ms that an answer may take, or a picture be there

Milliseconds = Annotated[float, Field(ge=0, le=_WAIT, allow_inf_nan=False)]


class Answer(BaseModel):
    """What a browser sends for a pair."""

    model_config = ConfigDict(extra="forbid", strict=True)

    trial: Annotated[str, Field(max_length=64)]
    side: Literal["left", "right"]
    first_ms: Milliseconds
    second_ms: Milliseconds
    response_ms: Milliseconds
    hidden: bool


def run(config: StudyServeConfig) -> None:
    """Serve a study until Ctrl-C.

    Raises:
        UserError: no study, a damaged one or one that another process serves; an unreadable file; or an address that
            is not available.
    """
    folder, manifest = read_study(config.study)
    check_pictures(folder, manifest)
    words = read_text(user_path(config.consent)) if config.consent else ""
    codes = read_codes(config.codes) if config.codes else None
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", words)]
    with FolderLock(folder), ended_by_signals():
        answers = Answers(folder, manifest)
        try:
            app = create(folder, manifest, answers, config, paragraphs, codes)
            serve(Guarded(app, _LIMIT), config.host, config.port, f"study {folder}")
        finally:
            answers.close()


def read_codes(path: str) -> set[str]:
    """The participant codes of a file, one a line.

    Raises:
        UserError: a line that can be none, or no lines at all.
    """
    lines = read_text(user_path(path)).removeprefix("\ufeff").splitlines()
    codes = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    wrong = next((number for number, code in codes.items() if not _CODE.fullmatch(code)), None)
    if wrong is not None:
        raise UserError(
            f"{path}, line {wrong}: {codes[wrong]!r} is no participant code (letters, digits and . @ + - _, no spaces)"
        )
    if not codes:
        raise UserError(f"{path} has no participant codes")
    return set(codes.values())


def create(
    folder: Path,
    manifest: Manifest,
    answers: Answers,
    config: StudyServeConfig,
    consent: list[str],
    codes: set[str] | None,
) -> FastAPI:
    """The application.

    Args:
        folder: of the study.
        manifest: what it holds.
        answers: its database.
        config: title and contact.
        consent: paragraphs of the first page; empty ones take ours.
        codes: of the participants that are let in; None lets in any.
    """
    app = create_app()
    pages = Environment(loader=PackageLoader("crosschannel.study", "pages"), autoescape=True, undefined=StrictUndefined)
    static = {name: (files("crosschannel.study") / "static" / name).read_bytes() for name in _STATIC}
    told = {"title": config.title, "contact": config.contact, "manifest": manifest}
    reported: set[str] = set()
    # A browser sends cookies to all ports of a host: each study has one of its own.
    cookie = f"study-{answers.digest[:8]}"
    Session = Annotated[str, Cookie(alias=cookie, max_length=100)]

    def page(name: str, status: int = 200, **values: object) -> HTMLResponse:
        return HTMLResponse(pages.get_template(name).render(**told, **values), status)

    def report(error: Unavailable) -> None:
        if str(error) not in reported:
            reported.add(str(error))
            print_stderr(f"{answers.path.parent}: {error}; participants are asked to wait until it works again")

    def busy_page(error: Unavailable, form: Mapping[str, list[str]] = MappingProxyType({})) -> Response:
        report(error)
        response = page("busy.html", 503, form=form, seconds=_RETRY_S)
        response.headers["Retry-After"] = str(_RETRY_S)
        return response

    def first_page(status: int = 200, code: str = "", vision: str = "", problem: str = "") -> HTMLResponse:
        minutes = max(1, round((manifest.practice + manifest.pairs) / _PAIRS_A_MINUTE))
        takes = "one minute" if minutes == 1 else f"{minutes} minutes"
        paragraphs = [part for part in consent if part]
        values = {"code": code, "vision": vision, "problem": problem, "visions": _VISIONS}
        return page("first.html", status, consent=paragraphs, minutes=takes, **values)

    @app.exception_handler(Unavailable)
    def unavailable(request: Request, error: Unavailable) -> Response:
        if request.scope["path"].rpartition("/")[2] in _PAGES:
            return busy_page(error)
        report(error)
        problem = {"problem": "The server cannot save answers at the moment; try again."}
        return JSONResponse(problem, 503, {"Retry-After": str(_RETRY_S)})

    @app.exception_handler(RequestValidationError)
    def unreadable(_request: Request, _error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"problem": "This cannot be read."}, 422)

    @app.get("/")
    def consent_page(code: str | None = None, study: Session = "") -> Response:
        whose = answers.participant(study)
        if whose is not None and code in (None, whose):
            return _go("pairs")
        return first_page(code=(code or "")[:100])

    @app.post("/begin")
    async def begin(request: Request) -> Response:
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        try:
            return await run_in_threadpool(_begun, request, form)
        except Unavailable as error:
            return busy_page(error, form)

    def _begun(request: Request, form: Mapping[str, list[str]]) -> Response:
        code, vision = (form.get(name, [""])[0].strip() for name in ("code", "colour_vision"))
        if code and code == answers.participant(request.cookies.get(cookie, "")):
            return _go("pairs")

        def refuse(status: int, problem: str) -> Response:
            return first_page(status, code[:100], vision, problem)

        if form.get("agreed") != ["yes"]:
            return refuse(400, "Please agree to take part first.")
        if not _CODE.fullmatch(code):
            return refuse(400, "Please give your participant code: letters and digits, without spaces.")
        if vision not in _VISIONS:
            return refuse(400, "Please say whether you have normal colour vision.")
        if codes is not None and code not in codes:
            return refuse(403, "This code is not one of this study's.")
        try:
            session = answers.begin(code, cast(ColourVision, vision))
        except Refused as error:
            return refuse(409, str(error))
        answer = _go("pairs")
        # Without a path the cookie is for the folder that this page is in, wherever a proxy has put it.
        answer.set_cookie(
            cookie,
            session,
            path=None,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
            max_age=10**7,
        )
        return answer

    @app.get("/pairs")
    def pairs_page(study: Session = "") -> Response:
        state = answers.state(study)
        if state is None:
            return _go("./")
        return page("pairs.html") if state.trial else _go("end")

    @app.get("/state")
    def state(study: Session = "") -> Response:
        found = answers.state(study)
        return JSONResponse({"problem": "There is no such session."}, 404) if found is None else _told(found)

    @app.get("/picture/{trial}/{side}")
    def picture(trial: str, side: str, study: Session = "") -> Response:
        file = answers.picture(study, trial, side)
        if file is None:
            return JSONResponse({"problem": "There is no such picture."}, 404)
        try:
            return Response((folder / PICTURES / file).read_bytes(), media_type="image/png")
        except OSError as error:
            raise Unavailable(f"{PICTURES}/{file}: {error.strerror}") from None

    @app.post("/answer")
    def answer(answer: Answer, study: Session = "") -> Response:
        timing = Timing(answer.first_ms, answer.second_ms, answer.response_ms, answer.hidden)
        try:
            state, right = answers.answer(study, answer.trial, answer.side, timing)
        except Refused as error:
            return JSONResponse({"problem": str(error)}, 409)
        return _told(state, right)

    @app.get("/end")
    def end_page(study: Session = "") -> Response:
        code = answers.code(study)
        return _go("./") if code is None else page("end.html", code=code)

    @app.get("/static/{name}")
    def static_file(name: str) -> Response:
        if name not in static:
            return JSONResponse({"problem": "There is no such file."}, 404)
        return Response(static[name], media_type=_STATIC[name])

    return app


def _go(place: str) -> RedirectResponse:
    """To another page beside this one."""
    return RedirectResponse(place, 303)


def _told(state: State, right: bool | None = None) -> JSONResponse:
    told = {"number": state.number, "total": state.total, "practice": state.practice}
    if state.trial:
        told |= {"trial": state.trial, "first": state.first}
    return JSONResponse(told if right is None else {**told, "right": right})
