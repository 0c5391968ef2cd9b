"""`crosschannel study serve`: serve the web pages of a study, which do not reveal which picture of a pair is fake."""

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
from crosschannel.web import FastAPI, GuardedApp, create_app, interrupt_on_signals, serve

try:
    from fastapi import Cookie, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from pydantic import BaseModel, ConfigDict, Field
except ImportError:
    raise UserError("the web server requires extra packages: pip install 'crosschannel[web]'") from None

_PARTICIPANT_CODE = re.compile(r"[\w.@+-]{1,100}")
_MAX_BODY = 4096  # maximum size of a request body, in bytes
_RETRY_S = 5  # seconds until a failed page is requested again
_STATIC = {"study.css": "text/css", "study.js": "text/javascript", "retry.js": "text/javascript"}
_PAGES = {"", "begin", "pairs", "end"}  # addresses of HTML pages; the others are for study.js
_VISION_LABELS: dict[ColourVision, str] = {"normal": "Yes", "deficient": "No", "unknown": "I do not know"}
_PAIRS_PER_MINUTE = 5  # estimate, including the time to read and think
_MAX_MS = 1e7  # maximum of the measured times

Milliseconds = Annotated[float, Field(ge=0, le=_MAX_MS, allow_inf_nan=False)]


class Answer(BaseModel):
    """Answer to a pair, as sent by study.js."""

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
        UserError: the study is missing, damaged or served by another process, a file is unreadable, or the address is
            not available.
    """
    folder, manifest = read_study(config.study)
    check_pictures(folder, manifest)
    consent = read_text(user_path(config.consent)) if config.consent else ""
    codes = read_codes(config.codes) if config.codes else None
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", consent)]
    with FolderLock(folder), interrupt_on_signals():
        answers = Answers(folder, manifest)
        try:
            app = create(folder, manifest, answers, config, paragraphs, codes)
            serve(GuardedApp(app, _MAX_BODY), config.host, config.port, f"study {folder}")
        finally:
            answers.close()


def read_codes(path: str) -> set[str]:
    """Read participant codes from a file with one code per line.

    Raises:
        UserError: a code is invalid, or the file contains none.
    """
    lines = read_text(user_path(path)).removeprefix("\ufeff").splitlines()
    codes = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    invalid = next((number for number, code in codes.items() if not _PARTICIPANT_CODE.fullmatch(code)), None)
    if invalid is not None:
        raise UserError(
            f"{path}, line {invalid}: invalid participant code {codes[invalid]!r}; codes may contain letters, digits "
            "and . @ + - _, but no spaces"
        )
    if not codes:
        raise UserError(f"{path} contains no participant codes")
    return set(codes.values())


def create(
    folder: Path,
    manifest: Manifest,
    answers: Answers,
    config: StudyServeConfig,
    consent: list[str],
    codes: set[str] | None,
) -> FastAPI:
    """Create the web application.

    Args:
        folder: study folder.
        manifest: manifest of the study.
        answers: database of the study.
        config: config of the server, with the title and contact.
        consent: paragraphs of the first page; the default text is used if all are empty.
        codes: accepted participant codes; None: accept any code.
    """
    app = create_app()
    pages = Environment(loader=PackageLoader("crosschannel.study", "pages"), autoescape=True, undefined=StrictUndefined)
    static = {name: (files("crosschannel.study") / "static" / name).read_bytes() for name in _STATIC}
    common = {"title": config.title, "contact": config.contact, "manifest": manifest}
    logged_errors: set[str] = set()
    # Browsers send cookies to all ports of a host, so the cookie name differs between studies.
    cookie = f"study-{answers.digest[:8]}"
    Session = Annotated[str, Cookie(alias=cookie, max_length=100)]

    def page(name: str, status: int = 200, **values: object) -> HTMLResponse:
        return HTMLResponse(pages.get_template(name).render(**common, **values), status)

    def report(error: Unavailable) -> None:
        if str(error) not in logged_errors:
            logged_errors.add(str(error))
            print_stderr(
                f"{answers.path.parent}: {error}; participants are asked to wait until the problem is resolved"
            )

    def busy_page(error: Unavailable, form: Mapping[str, list[str]] = MappingProxyType({})) -> Response:
        report(error)
        response = page("busy.html", 503, form=form, seconds=_RETRY_S)
        response.headers["Retry-After"] = str(_RETRY_S)
        return response

    def first_page(status: int = 200, code: str = "", vision: str = "", problem: str = "") -> HTMLResponse:
        minutes = max(1, round((manifest.practice + manifest.pairs) / _PAIRS_PER_MINUTE))
        duration = "one minute" if minutes == 1 else f"{minutes} minutes"
        paragraphs = [paragraph for paragraph in consent if paragraph]
        values = {"code": code, "vision": vision, "problem": problem, "visions": _VISION_LABELS}
        return page("first.html", status, consent=paragraphs, minutes=duration, **values)

    @app.exception_handler(Unavailable)
    def unavailable(request: Request, error: Unavailable) -> Response:
        if request.scope["path"].rpartition("/")[2] in _PAGES:
            return busy_page(error)
        report(error)
        problem = {"problem": "The server cannot save answers at the moment; try again."}
        return JSONResponse(problem, 503, {"Retry-After": str(_RETRY_S)})

    @app.exception_handler(RequestValidationError)
    def invalid_request(_request: Request, _error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"problem": "The request is invalid."}, 422)

    @app.get("/")
    def consent_page(code: str | None = None, session: Session = "") -> Response:
        participant = answers.participant(session)
        if participant is not None and code in (None, participant):
            return _redirect("pairs")
        return first_page(code=(code or "")[:100])

    @app.post("/begin")
    async def begin(request: Request) -> Response:
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        try:
            return await run_in_threadpool(_begin_session, request, form)
        except Unavailable as error:
            return busy_page(error, form)

    def _begin_session(request: Request, form: Mapping[str, list[str]]) -> Response:
        code, vision = (form.get(name, [""])[0].strip() for name in ("code", "colour_vision"))
        if code and code == answers.participant(request.cookies.get(cookie, "")):
            return _redirect("pairs")

        def refuse(status: int, problem: str) -> Response:
            return first_page(status, code[:100], vision, problem)

        if form.get("agreed") != ["yes"]:
            return refuse(400, "Please agree to take part first.")
        if not _PARTICIPANT_CODE.fullmatch(code):
            return refuse(400, "Please enter your participant code: letters and digits, without spaces.")
        if vision not in _VISION_LABELS:
            return refuse(400, "Please answer whether you have normal colour vision.")
        if codes is not None and code not in codes:
            return refuse(403, "This code is not valid for this study.")
        try:
            session = answers.begin(code, cast(ColourVision, vision))
        except Refused as error:
            return refuse(409, str(error))
        response = _redirect("pairs")
        # Without a path, the cookie applies to the folder of this page, even behind a proxy that adds a prefix.
        response.set_cookie(
            cookie,
            session,
            path=None,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
            max_age=10**7,
        )
        return response

    @app.get("/pairs")
    def pairs_page(session: Session = "") -> Response:
        state = answers.state(session)
        if state is None:
            return _redirect("./")
        return page("pairs.html") if state.trial else _redirect("end")

    @app.get("/state")
    def state(session: Session = "") -> Response:
        progress = answers.state(session)
        return (
            JSONResponse({"problem": "This session does not exist."}, 404) if progress is None else _as_json(progress)
        )

    @app.get("/picture/{trial}/{side}")
    def picture(trial: str, side: str, session: Session = "") -> Response:
        file = answers.picture(session, trial, side)
        if file is None:
            return JSONResponse({"problem": "This picture does not exist."}, 404)
        try:
            return Response((folder / PICTURES / file).read_bytes(), media_type="image/png")
        except OSError as error:
            raise Unavailable(f"{PICTURES}/{file}: {error.strerror}") from None

    @app.post("/answer")
    def answer(answer: Answer, session: Session = "") -> Response:
        timing = Timing(answer.first_ms, answer.second_ms, answer.response_ms, answer.hidden)
        try:
            state, right = answers.answer(session, answer.trial, answer.side, timing)
        except Refused as error:
            return JSONResponse({"problem": str(error)}, 409)
        return _as_json(state, right)

    @app.get("/end")
    def end_page(session: Session = "") -> Response:
        code = answers.code(session)
        return _redirect("./") if code is None else page("end.html", code=code)

    @app.get("/static/{name}")
    def static_file(name: str) -> Response:
        if name not in static:
            return JSONResponse({"problem": "This file does not exist."}, 404)
        return Response(static[name], media_type=_STATIC[name])

    return app


def _redirect(page: str) -> RedirectResponse:
    """Redirect to another page of the study, by relative address."""
    return RedirectResponse(page, 303)


def _as_json(state: State, right: bool | None = None) -> JSONResponse:
    """Return the progress of a session, and whether the last answer was right, for study.js."""
    content = {"number": state.number, "total": state.total, "practice": state.practice}
    if state.trial:
        content |= {"trial": state.trial, "first": state.first}
    return JSONResponse(content if right is None else {**content, "right": right})
