// User interface: file input, slider between original and result, downloads. A worker processes the pictures.

const find = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const MAX_PICTURES = 50; // limits the memory of the stored predictions
const pendingRequests = new Map(); // requests to the worker, by id: {resolve, reject}
const pictures = []; // {key, name, width, height, before, button}
let net = null; // settings of the model
let current = null; // selected picture
let requestCount = 0;
let drawCount = 0;
let addQueue = Promise.resolve();
let waitingFiles = 0; // files added while the page was loading
let isLoading = true;
let settingsPromise = null; // resolves to whether the settings could be loaded
let workerError = null; // error that stopped the worker

worker.onmessage = ({ data }) => {
  const { resolve, reject } = pendingRequests.get(data.id);
  pendingRequests.delete(data.id);
  if (data.problem) reject(new Error(data.problem));
  else resolve(data.result);
};

worker.onerror = (event) => {
  event.preventDefault();
  const detail = event.message ? ` (${event.message})` : "";
  workerError = new Error(`a part of this page could not be loaded${detail}; reload the page`);
  for (const { reject } of pendingRequests.values()) reject(workerError);
  pendingRequests.clear();
};

// Run a task in the worker, and return a promise of its result.
function runTask(task, parameters) {
  if (workerError) return Promise.reject(workerError);
  const id = ++requestCount;
  return new Promise((resolve, reject) => {
    pendingRequests.set(id, { resolve, reject });
    worker.postMessage({ id, task, ...parameters });
  });
}

function showMessage(text, isProblem = false) {
  find("message").textContent = text;
  find("message").className = isProblem ? "problem" : "";
}

// Return the width and height of a picture, without decoding it.
async function readSize(file) {
  const image = new Image();
  const address = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(new Error("it is not a picture in a format that this browser can read"));
      image.src = address;
    });
    return [image.naturalWidth, image.naturalHeight];
  } finally {
    URL.revokeObjectURL(address);
  }
}

// Colour pictures one at a time, once the settings of the model are loaded and earlier pictures are finished.
function addFiles(files) {
  if (!files.length) return;
  waitingFiles += files.length;
  if (isLoading) showLoading();
  addQueue = addQueue.then(async () => {
    if (!(await settingsPromise)) return;
    const problems = [];
    for (const file of files) {
      showMessage(`Colouring ${file.name} …`);
      try {
        await addPicture(file);
      } catch (error) {
        problems.push(`Could not colour ${file.name}: ${error.message}.`);
      }
    }
    const count = pictures.length === 1 ? "Coloured." : `${pictures.length} coloured.`;
    showMessage([...(pictures.length ? [count] : []), ...problems].join(" "), problems.length > 0);
  });
}

function showLoading() {
  const count = waitingFiles === 1 ? "1 picture is waiting" : `${waitingFiles} pictures are waiting`;
  showMessage(waitingFiles ? `Loading the model … ${count}.` : "Loading the model …");
}

async function addPicture(file) {
  const [width, height] = await readSize(file);
  if (width * height > net.most_pixels) {
    throw new Error(`it has ${((width * height) / 1e6).toFixed(1)} megapixels; the limit is ${net.most_pixels / 1e6}`);
  }
  if (pictures.length === MAX_PICTURES) {
    throw new Error(`the limit is ${MAX_PICTURES} pictures at a time; reload the page for more`);
  }
  const key = pictures.length;
  const picture = { key, name: file.name, ...(await runTask("open", { key, file, net })) };
  pictures.push(picture);
  addToStrip(picture);
  await select(picture);
}

function addToStrip(picture) {
  const item = document.createElement("li");
  picture.button = document.createElement("button");
  picture.button.textContent = picture.name;
  picture.button.addEventListener("click", () => select(picture));
  item.append(picture.button);
  find("strip").append(item);
  find("strip").hidden = find("save-all").hidden = pictures.length < 2;
}

async function select(picture) {
  current = picture;
  find("result").hidden = false;
  for (const other of pictures) other.button.setAttribute("aria-pressed", String(other === picture));
  const maxWidth = Math.max(480, picture.width); // also limited by the height of the window
  find("compare").style.maxWidth = `min(${maxWidth}px, ${(75 * picture.width) / picture.height}vh)`;
  const canvas = find("before");
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture.before, 0, 0);
  await render();
}

// Return the selected temperature; null: default decoding of the model.
function temperature() {
  const input = find("temperature");
  return input.dataset.touched ? Number(input.value) : null;
}

function settings() {
  return { temperature: temperature(), saturation: Number(find("saturation").value) };
}

// Render the selected picture with the current settings. Any number of calls while it renders cause one more rendering.
let isRendering = false;
let isStale = false;
async function render() {
  isStale = true;
  if (isRendering) return;
  isRendering = true;
  try {
    while (isStale) {
      isStale = false;
      const picture = current;
      const { after } = await runTask("render", { key: picture.key, ...settings() });
      const canvas = find("after");
      canvas.width = picture.width;
      canvas.height = picture.height;
      canvas.getContext("2d").drawImage(after, 0, 0);
      canvas.dataset.drawn = String(++drawCount);
    }
  } catch (error) {
    showMessage(error.message, true);
  } finally {
    isRendering = false;
  }
}

function updateSplit() {
  const percent = Number(find("split").value);
  find("before").style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
  find("after").style.clipPath = `inset(0 0 0 ${percent}%)`; // otherwise it would show through transparent pixels
  find("line").style.left = `${percent}%`;
}

function updateLabels() {
  const value = temperature();
  find("temperature-value").textContent = value === null ? "default" : value.toFixed(2);
  find("saturation-value").textContent = Number(find("saturation").value).toFixed(2);
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const outputName = (name) => `${name.replace(/\.[^.]*$/, "")}-coloured.png`;

// Disable a button while its action runs, and show errors of the action.
async function runAction(button, action) {
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    showMessage(error.message, true);
  } finally {
    button.disabled = false;
  }
}

// Return the output file names of pictures, which are unique even on case-insensitive file systems.
function uniqueNames(files) {
  const counts = new Map();
  return files.map(({ name }) => {
    const output = outputName(name);
    const count = counts.get(output.toLowerCase()) || 0;
    counts.set(output.toLowerCase(), count + 1);
    return count ? output.replace(/\.png$/, `-${count + 1}.png`) : output;
  });
}

find("save").addEventListener("click", () =>
  runAction(find("save"), async () => {
    const { key, name } = current;
    showMessage(`Preparing ${outputName(name)} …`);
    const { blob } = await runTask("save", { key, ...settings() });
    download(blob, outputName(name));
    showMessage("");
  }),
);
find("save-all").addEventListener("click", () =>
  runAction(find("save-all"), async () => {
    const selected = [...pictures];
    const parameters = settings();
    const names = uniqueNames(selected);
    const files = [];
    for (const [index, { key }] of selected.entries()) {
      showMessage(`Preparing ${names[index]} …`);
      files.push({ name: names[index], blob: (await runTask("save", { key, ...parameters })).blob });
    }
    const { createZip } = await import("./zip.js");
    download(await createZip(files), "coloured.zip");
    showMessage(`${files.length} pictures saved to coloured.zip.`);
  }),
);
find("temperature").addEventListener("input", () => {
  find("temperature").dataset.touched = "yes";
  updateLabels();
  render();
});
find("saturation").addEventListener("input", () => {
  updateLabels();
  render();
});
find("split").addEventListener("input", updateSplit);
find("compare").addEventListener("pointermove", (event) => {
  if (event.pointerType === "mouse" && !event.buttons) return;
  const box = find("compare").getBoundingClientRect();
  find("split").value = String((100 * (event.clientX - box.left)) / box.width);
  updateSplit();
});

find("files").addEventListener("change", addSelectedFiles);
for (const kind of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") addFiles([...event.dataTransfer.files]);
  });
}

function addSelectedFiles() {
  addFiles([...find("files").files]);
  find("files").value = "";
}

// Load the settings of the model, and return whether this succeeded.
async function loadSettings() {
  try {
    const response = await fetch("net.json");
    if (!response.ok) throw new Error(`the server responded with status ${response.status}`);
    net = await response.json();
  } catch (error) {
    showMessage(`A part of this page could not be loaded: ${error.message}. Please reload the page.`, true);
    return false;
  } finally {
    isLoading = false;
  }
  find("temperature-control").hidden = net.temperature === null;
  find("temperature").value = String(net.temperature ?? 1);
  updateSplit();
  updateLabels();
  showMessage("");
  document.body.dataset.ready = "yes";
  return true;
}

showLoading();
settingsPromise = loadSettings();
addSelectedFiles(); // files that were selected before this script ran
