// The page: pictures in, a slider between before and after, downloads. The work is the worker's.

const find = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const MOST = 50; // pictures at a time: what the net says of each is kept
const waiting = new Map();
const pictures = []; // {key, name, width, height, before, button}
let net = null; // the description of the model
let current = null;
let asked = 0;
let drawn = 0; // of the renderings that were asked for, the last that is on the page
let adding = Promise.resolve();
let waitingFiles = 0; // files added while the page was loading
let isLoading = true;
let loaded = null; // promise of whether the description has loaded
let broken = null; // why the worker does nothing any more

worker.onmessage = ({ data }) => {
  const { done, failed } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.problem) failed(new Error(data.problem));
  else done(data.found);
};

worker.onerror = (event) => {
  event.preventDefault();
  broken = new Error(`a part of this page could not be loaded${event.message ? ` (${event.message})` : ""}; load it again`);
  for (const { failed } of waiting.values()) failed(broken);
  waiting.clear();
};

function ask(task, more) {
  if (broken) return Promise.reject(broken);
  const id = ++asked;
  return new Promise((done, failed) => {
    waiting.set(id, { done, failed });
    worker.postMessage({ id, task, ...more });
  });
}

function say(words, isProblem = false) {
  find("said").textContent = words;
  find("said").className = isProblem ? "problem" : "";
}

// How large a picture is, from its head alone.
async function sizeOf(file) {
  const image = new Image();
  const address = URL.createObjectURL(file);
  try {
    await new Promise((done, failed) => {
      image.onload = done;
      image.onerror = () => failed(new Error("it is not a picture that this browser reads"));
      image.src = address;
    });
    return [image.naturalWidth, image.naturalHeight];
  } finally {
    URL.revokeObjectURL(address);
  }
}

// Colour pictures one at a time once the description of the model has loaded; later ones queue behind them.
function add(files) {
  if (!files.length) return;
  waitingFiles += files.length;
  if (isLoading) sayLoading();
  adding = adding.then(async () => {
    if (!(await loaded)) return;
    const problems = [];
    for (const file of files) {
      say(`Colouring ${file.name} …`);
      try {
        await addOne(file);
      } catch (error) {
        problems.push(`Cannot colour ${file.name}: ${error.message}.`);
      }
    }
    const count = pictures.length === 1 ? "Coloured." : `${pictures.length} coloured.`;
    say([...(pictures.length ? [count] : []), ...problems].join(" "), problems.length > 0);
  });
}

function sayLoading() {
  const count = waitingFiles === 1 ? "1 picture waits" : `${waitingFiles} pictures wait`;
  say(waitingFiles ? `Loading the model … ${count} for it.` : "Loading the model …");
}

async function addOne(file) {
  const [width, height] = await sizeOf(file);
  if (width * height > net.most_pixels) {
    throw new Error(`it has ${((width * height) / 1e6).toFixed(1)} megapixels, and ${net.most_pixels / 1e6} are the most`);
  }
  if (pictures.length === MOST) throw new Error(`${MOST} pictures are the most at a time; load the page again for more`);
  const key = pictures.length;
  const picture = { key, name: file.name, ...(await ask("open", { key, file, net })) };
  pictures.push(picture);
  list(picture);
  await choose(picture);
}

function list(picture) {
  const item = document.createElement("li");
  picture.button = document.createElement("button");
  picture.button.textContent = picture.name;
  picture.button.addEventListener("click", () => choose(picture));
  item.append(picture.button);
  find("strip").append(item);
  find("strip").hidden = find("save-all").hidden = pictures.length < 2;
}

async function choose(picture) {
  current = picture;
  find("shown").hidden = false;
  for (const one of pictures) one.button.setAttribute("aria-pressed", String(one === picture));
  const widest = Math.max(480, picture.width); // and so that all of it is seen
  find("compare").style.maxWidth = `min(${widest}px, ${(75 * picture.width) / picture.height}vh)`;
  const canvas = find("before");
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture.before, 0, 0);
  await paint();
}

// The temperature that was chosen; null: the net's own decode.
function temperature() {
  const input = find("temperature");
  return input.dataset.touched ? Number(input.value) : null;
}

function settings() {
  return { temperature: temperature(), saturation: Number(find("saturation").value) };
}

// What is on the page, by the sliders; of several askings in a row only the last is painted.
let isPainting = false;
let isStale = false;
async function paint() {
  isStale = true;
  if (isPainting) return;
  isPainting = true;
  try {
    while (isStale) {
      isStale = false;
      const picture = current;
      const { after } = await ask("render", { key: picture.key, ...settings() });
      const canvas = find("after");
      canvas.width = picture.width;
      canvas.height = picture.height;
      canvas.getContext("2d").drawImage(after, 0, 0);
      canvas.dataset.drawn = String(++drawn);
    }
  } catch (error) {
    say(error.message, true);
  } finally {
    isPainting = false;
  }
}

function split() {
  const share = Number(find("split").value);
  find("before").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  find("after").style.clipPath = `inset(0 0 0 ${share}%)`; // what is transparent shows neither through the other
  find("line").style.left = `${share}%`;
}

function describe() {
  const heat = temperature();
  find("temperature-said").textContent = heat === null ? "as the net has it" : heat.toFixed(2);
  find("saturation-said").textContent = Number(find("saturation").value).toFixed(2);
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const coloured = (name) => `${name.replace(/\.[^.]*$/, "")}-coloured.png`;

async function busily(button, work) {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

// Names of all files, no two alike, nor for systems that do not tell A from a.
function namesOf(some) {
  const seen = new Map();
  return some.map(({ name }) => {
    const stem = coloured(name);
    const count = seen.get(stem.toLowerCase()) || 0;
    seen.set(stem.toLowerCase(), count + 1);
    return count ? stem.replace(/\.png$/, `-${count + 1}.png`) : stem;
  });
}

find("save").addEventListener("click", () =>
  busily(find("save"), async () => {
    const { key, name } = current;
    say(`Packing ${coloured(name)} …`);
    const { blob } = await ask("save", { key, ...settings() });
    download(blob, coloured(name));
    say("");
  }),
);
find("save-all").addEventListener("click", () =>
  busily(find("save-all"), async () => {
    const some = [...pictures];
    const chosen = settings();
    const names = namesOf(some);
    const files = [];
    for (const [place, { key }] of some.entries()) {
      say(`Packing ${names[place]} …`);
      files.push({ name: names[place], blob: (await ask("save", { key, ...chosen })).blob });
    }
    const { zipped } = await import("./zip.js");
    download(await zipped(files), "coloured.zip");
    say(`${files.length} packed.`);
  }),
);
find("temperature").addEventListener("input", () => {
  find("temperature").dataset.touched = "yes";
  describe();
  paint();
});
find("saturation").addEventListener("input", () => {
  describe();
  paint();
});
find("split").addEventListener("input", split);
find("compare").addEventListener("pointermove", (event) => {
  if (event.pointerType === "mouse" && !event.buttons) return;
  const box = find("compare").getBoundingClientRect();
  find("split").value = String((100 * (event.clientX - box.left)) / box.width);
  split();
});

find("files").addEventListener("change", addChosen);
for (const kind of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") add([...event.dataTransfer.files]);
  });
}

function addChosen() {
  add([...find("files").files]);
  find("files").value = "";
}

// Fetch the description of the model; return whether that worked.
async function loadDescription() {
  try {
    const answer = await fetch("net.json");
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    net = await answer.json();
  } catch (error) {
    say(`This page could not be loaded whole: ${error.message}. Load it again.`, true);
    return false;
  } finally {
    isLoading = false;
  }
  find("heat").hidden = net.temperature === null;
  find("temperature").value = String(net.temperature ?? 1);
  split();
  describe();
  say("");
  document.body.dataset.ready = "yes";
  return true;
}

sayLoading();
loaded = loadDescription();
addChosen(); // files chosen before this script ran
