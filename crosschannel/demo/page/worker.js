// Does the work beside the page: looks at pictures once, keeps what the net says of each, paints as often as asked.

import { Resizer, annealedMean, lightnessOf, lookAt, paint, rowsOf, workingSize } from "./colour.js";
import { predict } from "./net.js";

const STRIP = 1 << 20; // pixels held at a time
const PREVIEW = 1200; // longest side of what the page shows
const pictures = new Map();
let net = null;

function canvasOf(width, height) {
  return new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
}

// Strips of a picture of that size, on a ground of that colour or none: their first row, and pixels of four numbers.
function* strips(bitmap, width, height, ground = null) {
  const most = Math.max(1, Math.floor(STRIP / width));
  for (let start = 0; start < height; start += most) {
    const count = Math.min(most, height - start);
    const canvas = canvasOf(width, count);
    canvas.imageSmoothingQuality = "high";
    if (ground) {
      canvas.fillStyle = ground;
      canvas.fillRect(0, 0, width, count);
    }
    canvas.drawImage(bitmap, 0, -start, width, height);
    yield { start, count, image: canvas.getImageData(0, 0, width, count) };
  }
}

async function open(key, file, description) {
  net = description;
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  const [seenWidth, seenHeight] = workingSize(width, height, net);
  const resizer = new Resizer(width, height, seenWidth, seenHeight, net.interpolation);
  for (const { image } of strips(bitmap, width, height, "white")) resizer.add(image.data);
  const lightness = lightnessOf(resizer.finish(), 3);
  const seen = { width: seenWidth, height: seenHeight, lightness };
  const said = await predict(lightness, seenWidth, seenHeight);
  const scale = Math.min(1, PREVIEW / Math.max(width, height));
  const preview = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
  preview.strips = [...strips(bitmap, preview.width, preview.height)].map((strip) => ({
    ...strip,
    lightness: lightnessOf(strip.image.data),
  }));
  bitmap.close();
  pictures.set(key, { file, width, height, seen, said, preview, maps: null, heat: undefined });
  const grey = canvasOf(preview.width, preview.height);
  for (const { start, image } of preview.strips) grey.putImageData(image, 0, start);
  return { width: preview.width, height: preview.height, before: grey.canvas.transferToImageBitmap() };
}

// ab of every pixel that the net has seen, at a temperature; null: by the net's own decode.
function mapsOf(picture, temperature) {
  if (picture.heat !== temperature) {
    const { distribution, ab } = picture.said;
    const decoded =
      temperature === null || !distribution ? ab : annealedMean(distribution, net.bins, ab.length / 2, temperature);
    picture.maps = lookAt(picture.seen, decoded, net);
    picture.heat = temperature;
  }
  return picture.maps;
}

function render(key, temperature, saturation) {
  const picture = pictures.get(key);
  const maps = mapsOf(picture, temperature);
  const { preview } = picture;
  const canvas = canvasOf(preview.width, preview.height);
  for (const { start, count, image, lightness } of preview.strips) {
    const pixels = new ImageData(new Uint8ClampedArray(image.data), preview.width, count);
    paint(pixels.data, lightness, rowsOf(picture.seen, maps, preview, start, count, lightness), saturation);
    canvas.putImageData(pixels, 0, start);
  }
  return { after: canvas.canvas.transferToImageBitmap() };
}

// Canvases beyond a browser's limit, which phones have, stay empty without a word.
function holds(canvas, { width, height }) {
  if (!canvas) return false;
  canvas.fillRect(width - 1, height - 1, 1, 1);
  const is = canvas.getImageData(width - 1, height - 1, 1, 1).data[3] === 255;
  canvas.clearRect(width - 1, height - 1, 1, 1);
  return is;
}

async function save(key, temperature, saturation) {
  const picture = pictures.get(key);
  const maps = mapsOf(picture, temperature);
  const bitmap = await createImageBitmap(picture.file);
  const canvas = canvasOf(picture.width, picture.height);
  if (!holds(canvas, picture)) {
    throw new Error(`this browser cannot hold ${((picture.width * picture.height) / 1e6).toFixed(0)} megapixels; try another`);
  }
  for (const { start, count, image } of strips(bitmap, picture.width, picture.height)) {
    const lightness = lightnessOf(image.data);
    paint(image.data, lightness, rowsOf(picture.seen, maps, picture, start, count, lightness), saturation);
    canvas.putImageData(image, 0, start);
  }
  bitmap.close();
  return { blob: await canvas.canvas.convertToBlob({ type: "image/png" }) };
}

const tasks = {
  open: ({ key, file, net: description }) => open(key, file, description),
  render: ({ key, temperature, saturation }) => render(key, temperature, saturation),
  save: ({ key, temperature, saturation }) => save(key, temperature, saturation),
};
let last = Promise.resolve();

onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      const found = await tasks[data.task](data);
      const moved = Object.values(found).filter((value) => value instanceof ImageBitmap);
      postMessage({ id: data.id, found }, moved);
    } catch (error) {
      postMessage({ id: data.id, problem: String(error.message || error) });
    }
  });
};
