"""The pages of a study, over HTTP: what a participant can do, and what they cannot."""

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from crosschannel.cli import main
from crosschannel.errors import UserError
from crosschannel.study.answers import DATABASE, Answers, read_answers
from crosschannel.study.config import StudyServeConfig
from crosschannel.study.manifest import MANIFEST, PICTURES, TRUTH, read_study
from crosschannel.study.server import create, read_codes
from crosschannel.web import GuardedApp

TIMING = {"first_ms": 1000.0, "second_ms": 1001.5, "response_ms": 700.0, "hidden": False}


@pytest.fixture
def app(study):
    folder, manifest = study
    answers = Answers(folder, manifest)
    config = StudyServeConfig(str(folder), title="Faces & places", contact="me@example.org")
    yield GuardedApp(create(folder, manifest, answers, config, [], None), 4096)
    answers.close()


def client(app) -> TestClient:
    return TestClient(app, base_url="http://study", follow_redirects=False)


def form(code: str, colour_vision: str = "normal") -> dict[str, str]:
    return {"code": code, "agreed": "yes", "colour_vision": colour_vision}


def begun(app, code: str) -> TestClient:
    someone = client(app)
    answer = someone.post("/begin", data=form(code))
    assert answer.status_code == 303 and answer.headers["location"] == "pairs"
    return someone


def answer_one(someone, side="left", **more):
    trial = someone.get("/state").json()["trial"]
    return someone.post("/answer", json={"trial": trial, "side": side, **TIMING, **more})


def test_a_session_from_consent_to_code(app, study):
    folder, manifest = study
    someone = client(app)
    first = someone.get("/?code=ab<c")
    assert "Faces &amp; places" in first.text and "me@example.org" in first.text and "ab&lt;c" in first.text
    assert someone.get("/pairs").headers["location"] == "./" and someone.get("/end").headers["location"] == "./"
    someone = begun(app, "p1")
    told = someone.get("/state").json()
    assert told.keys() == {"number", "total", "practice", "trial", "first"}
    assert (told["number"], told["total"], told["practice"]) == (0, 8, 2)
    seen = []
    for number in range(8):
        now = someone.get("/state").json()
        assert now["number"] == number
        shown = {side: someone.get(f"/picture/{now['trial']}/{side}").content for side in ("left", "right")}
        assert someone.get(f"/picture/{now['trial']}/left").content == shown["left"]  # after a reload
        files = {(folder / PICTURES / file).read_bytes(): file for file in manifest.sha256}
        owners = [p for p in manifest.photographs if {files[data] for data in shown.values()} <= set(p.files.values())]
        assert len(owners) == 1 and owners[0].practice == (number < 2)
        truth = next(side for side, data in shown.items() if files[data] == owners[0].files[TRUTH])
        fake = "right" if truth == "left" else "left"
        said = answer_one(someone, fake).json()
        assert ("right" in said) == (number < 2) and said.get("right", True) is True
        seen.append(owners[0].name)
    assert len(set(seen)) == 8 and said == {"number": 8, "total": 8, "practice": 2}
    assert someone.get("/pairs").headers["location"] == "end" and someone.get("/").headers["location"] == "pairs"
    code = re.search(r"<output>([\w-]+)</output>", someone.get("/end").text)[1]
    sessions, trials = read_answers(folder)
    assert sessions[0]["code"] == code and sessions[0]["finished"] and sessions[0]["participant"] == "p1"
    assert [trial["kind"] for trial in trials].count("check") == 2
    assert all(trial["answer"] == trial["fake"] and trial["loads"] == 3 for trial in trials)
    assert {trial["first_ms"] for trial in trials} == {1000.0}


def test_nothing_tells_which_is_fake(app, study):
    _, manifest = study
    told = {**dict.fromkeys(manifest.sha256), **dict.fromkeys(p.name for p in manifest.photographs)}
    someone = begun(app, "p1")
    now = someone.get("/state").json()
    pictures = [someone.get(f"/picture/{now['trial']}/{side}") for side in ("left", "right")]
    headers = [{k: v for k, v in picture.headers.items() if k != "date"} for picture in pictures]
    assert headers[0] == headers[1] and "etag" not in headers[0] and "last-modified" not in headers[0]
    assert "no-store" in headers[0]["cache-control"]
    for page in ("/pairs", "/state", "/static/study.js"):
        text = someone.get(page).text
        assert not any(word in text for word in (*told, *manifest.methods, 'fake"', TRUTH)), page
    other = begun(app, "p2")
    assert other.get("/state").json()["trial"] != now["trial"]


def test_sides_are_drawn_and_the_left_picture_comes_first(app, study):
    for number in range(30):
        begun(app, f"p{number}")
    _, trials = read_answers(study[0])
    assert 0.4 < [trial["fake"] for trial in trials].count("left") / len(trials) < 0.6
    assert {trial["first"] for trial in trials} == {"left"}


def test_sides_and_order_are_drawn(study):
    folder, manifest = study
    answers = Answers(folder, replace(manifest, first="random"))
    for number in range(30):
        answers.begin(f"p{number}")
    answers.close()
    _, trials = read_answers(study[0])
    pairs = [(trial["fake"], trial["first"]) for trial in trials]
    shares = [pairs.count(pair) / len(pairs) for pair in {("left", "left"), ("left", "right"), ("right", "left")}]
    assert all(0.15 < share < 0.35 for share in shares), shares
    places = [trial["number"] for trial in trials if trial["kind"] == "check"]
    assert set(places) == set(range(2, 8))


def test_methods_and_photographs_are_shown_evenly(app, study):
    for number in range(21):
        begun(app, f"p{number}")
    sessions, trials = read_answers(study[0])
    methods = {session["id"]: session["method"] for session in sessions}
    counts = [list(methods.values()).count(method) for method in study[1].methods]
    assert sum(counts) == 21 and max(counts) - min(counts) <= 1
    for method in study[1].methods:
        shown = [t["photograph"] for t in trials if t["kind"] == "pair" and methods[t["session"]] == method]
        times = [shown.count(number) for number in range(2, 9)]
        assert max(times) - min(times) <= 1


def test_no_answer_twice_out_of_order_for_another_or_after_the_end(app, study):
    one, two = begun(app, "p1"), begun(app, "p2")
    first = one.get("/state").json()["trial"]
    theirs = two.get("/state").json()["trial"]
    assert one.post("/answer", json={"trial": theirs, "side": "left", **TIMING}).status_code == 409
    assert one.get(f"/picture/{theirs}/left").status_code == 404
    _, trials = read_answers(study[0])
    later = next(t["token"] for t in trials if t["session"] == 1 and t["number"] == 3)
    assert one.post("/answer", json={"trial": later, "side": "left", **TIMING}).status_code == 409
    assert one.get(f"/picture/{later}/left").status_code == 404
    assert client(app).post("/answer", json={"trial": first, "side": "left", **TIMING}).status_code == 409
    once = answer_one(one, "left")
    again = one.post("/answer", json={"trial": first, "side": "right", **TIMING})  # as after a lost reply
    assert again.status_code == 200 and again.json() == once.json()
    _, trials = read_answers(study[0])
    assert next(t for t in trials if t["token"] == first)["answer"] == "left"
    assert one.get(f"/picture/{first}/left").status_code == 404
    for _ in range(7):
        assert answer_one(one).status_code == 200
    assert "trial" not in one.get("/state").json()
    assert one.post("/answer", json={"trial": "", "side": "left", **TIMING}).status_code == 409
    assert two.get("/end").status_code == 303


def test_one_session_a_code_and_a_lost_cookie_gets_none(app, study):
    lost, one = begun(app, "p1"), begun(app, "p1")  # the first one's reply did not arrive: nothing was shown yet
    assert lost.get("/state").json() == one.get("/state").json()
    one.get(f"/picture/{one.get('/state').json()['trial']}/left")
    assert client(app).post("/begin", data=form("p1")).status_code == 409
    assert one.post("/begin", data={"code": "p1"}).headers["location"] == "pairs"  # goes on
    assert len(read_answers(study[0])[0]) == 1
    stranger = client(app)
    (cookie,) = one.cookies
    stranger.cookies.set(cookie, "guess")
    assert stranger.get("/state").status_code == 404 and stranger.get("/pairs").headers["location"] == "./"


def test_several_people_at_one_computer(app, study):
    browser = begun(app, "p1")
    browser.get(f"/picture/{browser.get('/state').json()['trial']}/left")
    assert browser.get("/").headers["location"] == browser.get("/?code=p1").headers["location"] == "pairs"
    assert 'value="p2"' in browser.get("/?code=p2").text and browser.get("/?code=").status_code == 200
    first = browser.get("/state").json()["trial"]
    assert browser.post("/begin", data=form("p2")).headers["location"] == "pairs"
    assert browser.get("/state").json()["trial"] != first
    assert [session["participant"] for session in read_answers(study[0])[0]] == ["p1", "p2"]


def test_a_participant_is_deleted_as_the_docs_say(app, study):
    for code in ("p1", "p17"):
        begun(app, code)
    text = (Path(__file__).parents[2] / "docs/study.md").read_text()
    with closing(sqlite3.connect(study[0] / DATABASE)) as db:
        db.executescript(re.search(r"```sql\n(.+?)```", text, re.S)[1])
    begun(app, "p18")
    sessions, trials = read_answers(study[0])
    assert [session["participant"] for session in sessions] == ["p1", "p18"]
    assert {trial["session"] for trial in trials} == {session["id"] for session in sessions} == {1, 3}
    with closing(sqlite3.connect(study[0] / DATABASE)) as db, db:
        db.execute("DELETE FROM sessions WHERE participant = 'p18'")
    assert {trial["session"] for trial in read_answers(study[0])[1]} == {1}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"agreed": "no"}, 400),
        ({"code": ""}, 400),
        ({"code": "two words"}, 400),
        ({"code": "a" * 101}, 400),
        ({"code": "<b>"}, 400),
        ({"colour_vision": ""}, 400),
        ({"colour_vision": "<b>"}, 400),
    ],
)
def test_a_form_that_is_not_filled_in(change, status, app, study):
    answer = client(app).post("/begin", data=form("p1") | change)
    assert answer.status_code == status and 'role="alert"' in answer.text and "<b>" not in answer.text
    assert not read_answers(study[0])[0]


def test_only_known_codes(study):
    folder, manifest = study
    answers = Answers(folder, manifest)
    app = GuardedApp(create(folder, manifest, answers, StudyServeConfig(str(folder)), ["Our own words."], {"in"}), 4096)
    assert "Our own words." in client(app).get("/").text and "computer" not in client(app).get("/").text
    assert client(app).post("/begin", data=form("out")).status_code == 403
    begun(app, "in")
    answers.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [("a\n\nb c\n", "line 3: invalid participant code 'b c'"), ("\n", "contains no participant codes")],
)
def test_codes_that_nobody_could_give(text, words, tmp_path):
    (tmp_path / "codes.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        read_codes(str(tmp_path / "codes.txt"))


def test_codes_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "codes.txt").write_bytes("\ufeffp1\r\np2\r\n".encode())
    assert read_codes(str(tmp_path / "codes.txt")) == {"p1", "p2"}


@pytest.mark.parametrize(
    "change",
    [
        {"side": "up"},
        {"first_ms": -1},
        {"first_ms": 1e9},
        {"second_ms": "long"},
        {"hidden": 3},
        {"more": 1},
        {"trial": "x" * 65},
    ],
)
def test_answers_that_cannot_be_read(change, app, study):
    someone = begun(app, "p1")
    assert answer_one(someone, **change).status_code == 422
    text = '{"trial": "a", "side": "left", "first_ms": NaN, "second_ms": 1, "response_ms": 1, "hidden": false}'
    answer = someone.post("/answer", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "NaN" not in answer.text
    assert all(trial["answer"] is None for trial in read_answers(study[0])[1])


def test_safe_headers_and_limits(app):
    someone = begun(app, "p1")
    for path in ("/", "/pairs", "/state", "/static/study.css", "/nothing"):
        headers = someone.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert not any(name.startswith("access-control") for name in headers)
    assert someone.post("/begin", content=b"a" * 5000).status_code == 413

    def pieces():
        for _ in range(10):
            yield b"a" * 1000

    assert someone.post("/begin", content=pieces()).status_code == 413
    cookie = client(app).post("/begin", data=form("p2")).headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path" not in cookie


@pytest.mark.parametrize(
    "path",
    [
        "/study.json",
        "/answers.db",
        "/pictures/a.png",
        "/static/../study.json",
        "/static/%2e%2e%2fstudy.json",
        "/picture/..%2f..%2fstudy.json/left",
        "/docs",
        "/openapi.json",
    ],
)
def test_the_data_are_not_served(path, app):
    someone = begun(app, "p1")
    assert someone.get(path).status_code == 404


def test_answers_of_other_pictures_are_refused(study):
    folder, manifest = study
    Answers(folder, manifest).close()
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text + " ")
    for use in (lambda: Answers(folder, manifest), lambda: read_answers(folder)):
        with pytest.raises(UserError, match="other pictures"):
            use()
    (folder / MANIFEST).write_text(text)
    (folder / "answers.db").write_bytes(b"no database" * 100)
    for path in Path(folder).glob("answers.db-*"):
        path.unlink()
    with pytest.raises(UserError, match="is not an SQLite database"):
        Answers(folder, manifest)


EDITS = {
    "no sessions": "DROP TABLE sessions",
    "no trials": "DROP TABLE trials",
    "not a study": "DROP TABLE study",
    "no manifest": "DELETE FROM study",
    "a column less": "ALTER TABLE trials DROP COLUMN first_ms",
    "a table of another shape": "DROP TABLE trials; CREATE TABLE trials (session, answer)",
    "a view": "ALTER TABLE trials RENAME TO t; CREATE VIEW trials AS SELECT * FROM t",
    "a method that is not compared": "UPDATE sessions SET method = 'other'",
    "a method that is a number": "UPDATE sessions SET method = x'00ff'",
    "a time in words": "UPDATE sessions SET finished = 'yesterday'",
    "a vision that nobody can choose": "UPDATE sessions SET colour_vision = 'blue'",
    "a photograph too many": "UPDATE trials SET photograph = 9",
    "a photograph before the first": "UPDATE trials SET photograph = -1",
    "a photograph in words": "UPDATE trials SET photograph = 'many'",
    "loads in words": "UPDATE trials SET loads = 'often'",
    "an answer without times": "UPDATE trials SET answer = 'left', first_ms = NULL",
    "an answer with a time in words": "UPDATE trials SET answer = 'left', first_ms = 'long', second_ms = 1, "
    "response_ms = 1, hidden = 0",
    "an answer after years": "UPDATE trials SET answer = 'left', first_ms = 1, second_ms = 1, response_ms = 9e9, "
    "hidden = 0",
    "an answer on no side": "PRAGMA ignore_check_constraints = 1; UPDATE trials SET answer = 'up'",
    "a fake on no side": "PRAGMA ignore_check_constraints = 1; UPDATE trials SET fake = 'up'",
    "a kind that there is not": "PRAGMA ignore_check_constraints = 1; UPDATE trials SET kind = 'test'",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_database_is_refused_in_a_sentence(edit, study, tmp_path, capsys):
    folder, manifest = study
    answers = Answers(folder, manifest)
    answers.begin("p1")
    answers.close()
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        db.executescript(edit)
    before = (folder / DATABASE).read_bytes()
    with pytest.raises(UserError, match=r"answers\.db"):  # as `study serve`
        Answers(folder, manifest)
    assert main(["study", "report", str(folder), f"--out={tmp_path / 'r'}"]) == 2
    err = capsys.readouterr().err
    assert "answers.db" in err and err.count("\n") == 1 and "Traceback" not in err, err
    assert (folder / DATABASE).read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {DATABASE, MANIFEST, PICTURES}


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + bytes(100), b"a"])
def test_a_file_that_is_not_a_database_is_refused_in_a_sentence(content, study, tmp_path, capsys):
    folder, manifest = study
    (folder / DATABASE).write_bytes(content)
    with pytest.raises(UserError, match=r"answers\.db"):  # as `study serve`
        Answers(folder, manifest)
    assert main(["study", "report", str(folder), f"--out={tmp_path / 'r'}"]) == 2
    err = capsys.readouterr().err
    assert "answers.db" in err and err.count("\n") == 1 and "Traceback" not in err, err


def test_a_database_of_another_program_is_left_alone(study):
    folder, manifest = study
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        db.executescript("CREATE TABLE sessions (id INTEGER); CREATE TABLE notes (text)")
    before = (folder / DATABASE).read_bytes()
    with pytest.raises(UserError, match="no table 'study'"):
        Answers(folder, manifest)
    assert (folder / DATABASE).read_bytes() == before


def test_a_study_of_an_earlier_version_keeps_its_settings(study):
    folder, manifest = study
    tree = json.loads((folder / MANIFEST).read_text())
    for key in ("gamut", "first", "before_ms", "between_ms"):
        del tree[key]
    (folder / MANIFEST).write_text(json.dumps(tree))
    _, manifest = read_study(folder)
    assert (manifest.gamut, manifest.first, manifest.before_ms, manifest.between_ms) == ("map", "random", 400, 400)
    answers = Answers(folder, manifest)
    answers.begin("p1")
    answers.close()
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        db.executescript("ALTER TABLE sessions DROP COLUMN colour_vision")
    assert "colour_vision" not in read_answers(folder)[0][0]
    answers = Answers(folder, manifest)
    answers.begin("p2", "deficient")
    answers.close()
    sessions, _ = read_answers(folder)
    assert [session["colour_vision"] for session in sessions] == [None, "deficient"]


@pytest.fixture
def hurried(monkeypatch):
    """Requests wait only briefly for a locked database."""
    monkeypatch.setattr("crosschannel.study.answers._BUSY_S", 0.05)


@contextmanager
def locked(folder) -> Iterator[None]:
    with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


@contextmanager
def full(answers) -> Iterator[None]:
    """Simulate a full disk: the database cannot grow."""
    (pages,) = answers._db.execute("PRAGMA page_count").fetchone()
    answers._db.execute(f"PRAGMA max_page_count = {pages}")
    yield
    answers._db.execute("PRAGMA max_page_count = 100000")


def test_requests_to_a_locked_database_can_be_retried(hurried, study, capsys):
    folder, manifest = study
    answers = Answers(folder, manifest)
    app = GuardedApp(create(folder, manifest, answers, StudyServeConfig(str(folder)), [], None), 4096)
    one, two = begun(app, "p1"), client(app)
    trial = one.get("/state").json()["trial"]
    with locked(folder):
        page = two.post("/begin", data=form("p2", "deficient"))
        assert page.status_code == 503 and int(page.headers["retry-after"]) > 0
        sent = dict(re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', page.text))
        assert sent == form("p2", "deficient") and "retry.js" in page.text and "cannot save" in page.text
        for answer in (one.get(f"/picture/{trial}/left"), answer_one(one)):
            assert answer.status_code == 503 and "try again" in answer.json()["problem"]
        assert one.get("/state").json()["trial"] == trial
    err = capsys.readouterr().err
    assert err.count("database is locked") == 1 and "Traceback" not in err
    assert two.post("/begin", data=sent).status_code == 303 and answer_one(one).status_code == 200
    answers.close()
    sessions, trials = read_answers(folder)
    assert [session["participant"] for session in sessions] == ["p1", "p2"]
    assert sum(trial["answer"] is not None for trial in trials) == 1


def test_a_full_disk_loses_nothing_acknowledged(study, capsys):
    folder, manifest = study
    answers = Answers(folder, manifest)
    app = GuardedApp(create(folder, manifest, answers, StudyServeConfig(str(folder)), [], None), 4096)
    with full(answers):
        for number in range(1, 100):
            status = client(app).post("/begin", data=form(f"p{number}")).status_code
            if status != 303:
                break
        assert status == 503
        assert client(app).get("/").status_code == 200  # pages that store nothing still work
    begun(app, f"p{number}")
    answers.close()
    sessions, trials = read_answers(folder)
    assert [session["participant"] for session in sessions] == [f"p{n}" for n in range(1, number + 1)]
    assert len(trials) == 8 * number and "full" in capsys.readouterr().err


def test_pages_retry_after_the_database_is_closed(study):
    folder, manifest = study
    answers = Answers(folder, manifest)
    app = GuardedApp(create(folder, manifest, answers, StudyServeConfig(str(folder)), [], None), 4096)
    someone = begun(app, "p1")
    answers._db.close()
    for path in ("/", "/pairs", "/end"):
        page = someone.get(path)
        assert page.status_code == 503 and 'http-equiv="refresh"' in page.text
    assert someone.get("/state").status_code == 503


def test_an_unreadable_picture_can_be_requested_again(app, study):
    folder, _ = study
    someone = begun(app, "p1")
    trial = someone.get("/state").json()["trial"]
    (folder / PICTURES).rename(folder / "away")
    assert someone.get(f"/picture/{trial}/left").status_code == 503
    (folder / "away").rename(folder / PICTURES)
    assert someone.get(f"/picture/{trial}/left").status_code == 200


def test_serve_says_what_is_wrong(tmp_path, study, capsys):
    import socket

    assert main(["study", "serve", str(tmp_path)]) == 2
    assert "is not a study" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["study", "serve", str(study[0]), f"--port={taken.getsockname()[1]}"]) == 2
    assert "cannot listen" in capsys.readouterr().err
    assert main(["study", "serve", str(study[0]), "--codes=nowhere.txt"]) == 2
