// Pairs of a session: load the pictures, show each for a second, send the answer. The server stores the progress.
"use strict";

const DISPLAY_MS = 1000;
const BEFORE_MS = Number(document.getElementById("stage").dataset.before); // pause before the first picture
const BETWEEN_MS = Number(document.getElementById("stage").dataset.between); // pause between the two pictures
const TIMEOUT_MS = 60000; // timeout of a request; a picture has about 200 KB
const MAX_MS = 1e7; // times are capped at this value, in case a participant returns much later
const SIDES = ["left", "right"];
const find = (id) => document.getElementById(id);
const buttons = { left: find("choose-left"), right: find("choose-right") };
const canvases = { left: find("left"), right: find("right") };
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const nextFrame = () => new Promise((done) => requestAnimationFrame(done));

let pair = null; // current pair: {trial, first, number, …}
let timing = null; // times of the current pair; null until the participant can answer
let wasHidden = false;

function showMessage(text, kind = "") {
  find("message").textContent = text;
  find("message").className = kind;
}

// Send a request, and return the response as "json" or "blob"; null if the server rejects the request. Requests are
// repeated after lost connections and server errors, until a response is complete.
async function request(path, format, options = {}) {
  for (let delay = 500; ; delay = Math.min(2 * delay, 8000)) {
    try {
      const signal = AbortSignal.timeout(TIMEOUT_MS);
      const response = await fetch(path, { cache: "no-store", credentials: "same-origin", signal, ...options });
      if (response.status < 500) return response.ok ? await response[format]() : null;
      showMessage("The server cannot save answers at the moment; trying again …", "problem");
    } catch (_error) {
      showMessage("The connection was lost; trying again …", "problem"); // possibly during the response
    }
    await sleep(delay);
  }
}

async function loadPicture(side) {
  const file = await request(`picture/${pair.trial}/${side}`, "blob");
  return file && createImageBitmap(file);
}

// Wait for the frame that is closest to `ms` after the frame at `start`, and return its time.
async function frameAfter(start, ms) {
  let previous = start;
  for (;;) {
    const now = await nextFrame();
    if (now - start + (now - previous) / 2 >= ms) return now;
    previous = now;
  }
}

// Show a picture for a second, after a pause that begins at the frame `start`. Changes in a frame's callback are
// painted in that frame, so its time is the display time.
async function show(side, start, pause) {
  const begin = await frameAfter(start, pause);
  canvases[side].classList.add("visible");
  const end = await frameAfter(begin, DISPLAY_MS);
  canvases[side].classList.remove("visible");
  return { begin, end };
}

async function presentPair() {
  showPosition();
  find("next").hidden = true;
  showMessage("Loading …");
  const pictures = await Promise.all(SIDES.map(loadPicture));
  if (pictures.some((picture) => picture === null)) return loadState(); // the pair was answered in another tab
  SIDES.forEach((side, number) => canvases[side].getContext("2d").drawImage(pictures[number], 0, 0));
  showMessage("Look …");
  wasHidden = document.hidden;
  const first = await show(pair.first, await nextFrame(), BEFORE_MS);
  const second = await show(pair.first === "left" ? "right" : "left", first.end, BETWEEN_MS);
  timing = { first_ms: first.end - first.begin, second_ms: second.end - second.begin, answerStart: performance.now() };
  for (const side of SIDES) {
    const canvas = canvases[side];
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    buttons[side].disabled = false;
  }
  showMessage("Which one is fake?");
}

async function sendChoice(side) {
  if (timing === null) return;
  const body = {
    trial: pair.trial,
    side,
    first_ms: Math.min(timing.first_ms, MAX_MS),
    second_ms: Math.min(timing.second_ms, MAX_MS),
    response_ms: Math.min(performance.now() - timing.answerStart, MAX_MS),
    hidden: wasHidden,
  };
  timing = null;
  for (const button of Object.values(buttons)) button.disabled = true;
  const headers = { "Content-Type": "application/json" };
  const state = await request("answer", "json", { method: "POST", headers, body: JSON.stringify(body) });
  if (state === null) return loadState();
  if (state.right === undefined) {
    setPair(state);
    if (pair) presentPair();
    return;
  }
  const other = side === "left" ? "right" : "left";
  if (state.right) showMessage(`Correct: the ${side} one was fake.`, "right");
  else showMessage(`Wrong: the ${other} one was fake.`, "wrong");
  setPair(state);
  if (pair) offerNext(state.number === state.practice ? "Practice is over. Show the first pair" : "Show the next pair");
}

// Set the current pair, or go to the last page if there is none.
function setPair(state) {
  pair = state.trial ? state : null;
  if (!pair) location.assign("end");
}

// Show the number of the current pair.
function showPosition() {
  const isPractice = pair.number < pair.practice;
  const [number, total] = isPractice
    ? [pair.number + 1, pair.practice]
    : [pair.number - pair.practice + 1, pair.total - pair.practice];
  find("position").textContent = `${isPractice ? "Practice, pair" : "Pair"} ${number} of ${total}`;
  find("progress").max = pair.total;
  find("progress").value = pair.number;
}

function offerNext(label) {
  find("next").textContent = label;
  find("next").hidden = false;
  find("next").focus({ preventScroll: true });
}

async function loadState() {
  const state = await request("state", "json");
  if (state === null) {
    location.assign("./");
    return;
  }
  setPair(state);
  if (!pair) return;
  showPosition();
  showMessage("");
  offerNext(pair.number ? "Continue" : "Show the first pair");
}

document.addEventListener("visibilitychange", () => {
  wasHidden = wasHidden || document.hidden;
});
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const side = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
  if (side && timing) {
    event.preventDefault();
    sendChoice(side);
  }
});
for (const side of SIDES) buttons[side].addEventListener("click", () => sendChoice(side));
find("next").addEventListener("click", presentPair);
loadState();
