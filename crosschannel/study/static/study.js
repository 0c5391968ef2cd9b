// The pairs of a session: load, show each picture for a second, ask, send. Where it stands, the server knows.
"use strict";

const SHOWN_MS = 1000;
const BEFORE_MS = Number(document.getElementById("stage").dataset.before); // pause before the first picture
const BETWEEN_MS = Number(document.getElementById("stage").dataset.between); // and between the two
const PATIENCE_MS = 60000; // for an answer of the server: pictures are 200 KB
const LONGEST_MS = 1e7; // that is sent: whoever comes back the next day has taken long
const SIDES = ["left", "right"];
const find = (id) => document.getElementById(id);
const buttons = { left: find("choose-left"), right: find("choose-right") };
const canvases = { left: find("left"), right: find("right") };
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const frame = () => new Promise((done) => requestAnimationFrame(done));

let pair = null; // what is on the page: {trial, first, number, …}
let timing = null; // of it, once it can be answered
let wasHidden = false;

function say(words, kind = "") {
  find("said").textContent = words;
  find("said").className = kind;
}

// What the server says to a request, read as "json" or "blob"; null where it refuses. Lost connections are outlived: it
// is asked again until all of its answer is here.
async function ask(path, kind, options = {}) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const signal = AbortSignal.timeout(PATIENCE_MS);
      const answer = await fetch(path, { cache: "no-store", credentials: "same-origin", signal, ...options });
      if (answer.status < 500) return answer.ok ? await answer[kind]() : null;
      say("The server cannot save answers at the moment; trying again …", "problem");
    } catch (_error) {
      say("The connection is lost; trying again …", "problem"); // or broke during the response
    }
    await sleep(wait);
  }
}

async function bitmap(side) {
  const file = await ask(`picture/${pair.trial}/${side}`, "blob");
  return file && createImageBitmap(file);
}

// The next frame that is painted `ms` after another, as near as frames allow.
async function after(start, ms) {
  let before = start;
  for (;;) {
    const now = await frame();
    if (now - start + (now - before) / 2 >= ms) return now;
    before = now;
  }
}

// Show a picture for a second, a pause after a frame. Changes in a frame's callback are painted in that frame, so its
// time is the time of display.
async function show(side, start, pause) {
  const begun = await after(start, pause);
  canvases[side].classList.add("shown");
  const ended = await after(begun, SHOWN_MS);
  canvases[side].classList.remove("shown");
  return { begun, ended };
}

async function present() {
  place();
  find("go").hidden = true;
  say("Loading …");
  const pictures = await Promise.all(SIDES.map(bitmap));
  if (pictures.some((picture) => picture === null)) return load(); // answered elsewhere meanwhile
  SIDES.forEach((side, number) => canvases[side].getContext("2d").drawImage(pictures[number], 0, 0));
  say("Look …");
  wasHidden = document.hidden;
  const first = await show(pair.first, await frame(), BEFORE_MS);
  const second = await show(pair.first === "left" ? "right" : "left", first.ended, BETWEEN_MS);
  timing = { first_ms: first.ended - first.begun, second_ms: second.ended - second.begun, asked: performance.now() };
  for (const side of SIDES) {
    const canvas = canvases[side];
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    buttons[side].disabled = false;
  }
  say("Which one is fake?");
}

async function choose(side) {
  if (timing === null) return;
  const body = {
    trial: pair.trial,
    side,
    first_ms: Math.min(timing.first_ms, LONGEST_MS),
    second_ms: Math.min(timing.second_ms, LONGEST_MS),
    response_ms: Math.min(performance.now() - timing.asked, LONGEST_MS),
    hidden: wasHidden,
  };
  timing = null;
  for (const one of SIDES) buttons[one].disabled = true;
  const headers = { "Content-Type": "application/json" };
  const now = await ask("answer", "json", { method: "POST", headers, body: JSON.stringify(body) });
  if (now === null) return load();
  if (now.right === undefined) {
    advance(now);
    if (pair) present();
    return;
  }
  const other = side === "left" ? "right" : "left";
  if (now.right) say(`Right: the ${side} one was fake.`, "right");
  else say(`No: the ${other} one was fake.`, "wrong");
  advance(now);
  if (pair) offer(now.number === now.practice ? "The practice is over. Show the first pair" : "Show the next pair");
}

// Take the next pair, or go to the end.
function advance(state) {
  pair = state.trial ? state : null;
  if (!pair) location.assign("end");
}

// Say which pair this is.
function place() {
  const practising = pair.number < pair.practice;
  const [number, total] = practising
    ? [pair.number + 1, pair.practice]
    : [pair.number - pair.practice + 1, pair.total - pair.practice];
  find("where").textContent = `${practising ? "Practice, pair" : "Pair"} ${number} of ${total}`;
  find("progress").max = pair.total;
  find("progress").value = pair.number;
}

function offer(words) {
  find("go").textContent = words;
  find("go").hidden = false;
  find("go").focus({ preventScroll: true });
}

async function load() {
  const state = await ask("state", "json");
  if (state === null) {
    location.assign("./");
    return;
  }
  advance(state);
  if (!pair) return;
  place();
  say("");
  offer(pair.number ? "Go on" : "Show the first pair");
}

document.addEventListener("visibilitychange", () => {
  wasHidden = wasHidden || document.hidden;
});
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const side = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
  if (side && timing) {
    event.preventDefault();
    choose(side);
  }
});
for (const side of SIDES) buttons[side].addEventListener("click", () => choose(side));
find("go").addEventListener("click", present);
load();
