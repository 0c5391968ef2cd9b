// Web worker: predicts the colours of each picture once, and renders them whenever the settings change.

import {
  Resizer,
  annealedMean,
  colourPixels,
  inputSize,
  lightnessOf,
  upsamplePrediction,
  upsampleRows,
} from "./colour.js";
import { predict } from "./net.js";

const STRIP_PIXELS = 1 << 20; // number of pixels processed at a time
const PREVIEW_SIDE = 1200; // longest side of the previews
const pictures = new Map();
let net = null;

function createContext(width, height) {
  return new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
}

// Yield the strips of a resized picture, over a background colour if any: first row, row count, RGBA pixels.
function* strips(bitmap, width, height, background = null) {
  const maxRows = Math.max(1, Math.floor(STRIP_PIXELS / width));
  for (let start = 0; start < height; start += maxRows) {
    const count = Math.min(maxRows, height - start);
    const context = createContext(width, count);
    context.imageSmoothingQuality = "high";
    if (background) {
      context.fillStyle = background;
      context.fillRect(0, 0, width, count);
    }
    context.drawImage(bitmap, 0, -start, width, height);
    yield { start, count, image: context.getImageData(0, 0, width, count) };
  }
}

async function open(key, file, settings) {
  net = settings;
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  const [inputWidth, inputHeight] = inputSize(width, height, net);
  const resizer = new Resizer(width, height, inputWidth, inputHeight, net.interpolation);
  for (const { image } of strips(bitmap, width, height, "white")) resizer.add(image.data);
  const lightness = lightnessOf(resizer.finish(), 3);
  const input = { width: inputWidth, height: inputHeight, lightness };
  const prediction = await predict(lightness, inputWidth, inputHeight);
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(width, height));
  const preview = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
  preview.strips = [...strips(bitmap, preview.width, preview.height)].map((strip) => ({
    ...strip,
    lightness: lightnessOf(strip.image.data),
  }));
  bitmap.close();
  pictures.set(key, { file, width, height, input, prediction, preview, ab: null, temperature: undefined });
  const original = createContext(preview.width, preview.height);
  for (const { start, image } of preview.strips) original.putImageData(image, 0, start);
  return { width: preview.width, height: preview.height, before: original.canvas.transferToImageBitmap() };
}

// Return the ab of each input pixel, decoded at a temperature; null: default decoding of the model.
function decodeInput(picture, temperature) {
  if (picture.temperature !== temperature) {
    const { distribution, ab } = picture.prediction;
    const decoded =
      temperature === null || !distribution ? ab : annealedMean(distribution, net.bins, ab.length / 2, temperature);
    picture.ab = upsamplePrediction(picture.input, decoded, net);
    picture.temperature = temperature;
  }
  return picture.ab;
}

function render(key, temperature, saturation) {
  const picture = pictures.get(key);
  const ab = decodeInput(picture, temperature);
  const { preview } = picture;
  const context = createContext(preview.width, preview.height);
  for (const { start, count, image, lightness } of preview.strips) {
    const pixels = new ImageData(new Uint8ClampedArray(image.data), preview.width, count);
    colourPixels(pixels.data, lightness, upsampleRows(picture.input, ab, preview, start, count, lightness), saturation);
    context.putImageData(pixels, 0, start);
  }
  return { after: context.canvas.transferToImageBitmap() };
}

// Return whether a canvas can store pixels. Browsers, especially on phones, silently ignore drawing above a size limit.
function isUsable(context, { width, height }) {
  if (!context) return false;
  context.fillRect(width - 1, height - 1, 1, 1);
  const isStored = context.getImageData(width - 1, height - 1, 1, 1).data[3] === 255;
  context.clearRect(width - 1, height - 1, 1, 1);
  return isStored;
}

async function save(key, temperature, saturation) {
  const picture = pictures.get(key);
  const ab = decodeInput(picture, temperature);
  const bitmap = await createImageBitmap(picture.file);
  const context = createContext(picture.width, picture.height);
  if (!isUsable(context, picture)) {
    const megapixels = ((picture.width * picture.height) / 1e6).toFixed(0);
    throw new Error(`this browser does not support pictures of ${megapixels} megapixels; try another browser`);
  }
  for (const { start, count, image } of strips(bitmap, picture.width, picture.height)) {
    const lightness = lightnessOf(image.data);
    colourPixels(image.data, lightness, upsampleRows(picture.input, ab, picture, start, count, lightness), saturation);
    context.putImageData(image, 0, start);
  }
  bitmap.close();
  return { blob: await context.canvas.convertToBlob({ type: "image/png" }) };
}

const tasks = {
  open: ({ key, file, net: settings }) => open(key, file, settings),
  render: ({ key, temperature, saturation }) => render(key, temperature, saturation),
  save: ({ key, temperature, saturation }) => save(key, temperature, saturation),
};
let queue = Promise.resolve(); // tasks run one after the other

onmessage = ({ data }) => {
  queue = queue.then(async () => {
    try {
      const result = await tasks[data.task](data);
      const bitmaps = Object.values(result).filter((value) => value instanceof ImageBitmap);
      postMessage({ id: data.id, result }, bitmaps);
    } catch (error) {
      postMessage({ id: data.id, problem: String(error.message || error) });
    }
  });
};
