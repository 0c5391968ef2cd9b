// JavaScript port of crosschannel's colorizer: lightness, resizing, decoding, upsampling and gamut mapping. It works on
// typed arrays and does not depend on the page.

const WHITE = [0.95047, 1.0, 1.08883];
const RGB_TO_XYZ = [
  [0.412453, 0.35758, 0.180423],
  [0.212671, 0.71516, 0.072169],
  [0.019334, 0.119193, 0.950227],
];
const XYZ_TO_RGB = inverse(RGB_TO_XYZ).map((row) => row.map((value, column) => value * WHITE[column]));
const LUMINANCE = RGB_TO_XYZ[1];
// Standard deviations of the Gaussian weights of lightness differences.
const GRID_SIGMA = 9.0; // for upsampling from the prediction grid to the input
const PICTURE_SIGMA = 14.0; // for upsampling from the input to the picture
const MIN_WEIGHT = 1e-6; // added to all weights, for pixels whose neighbours all differ in lightness
const GAMUT_TOLERANCE = 2e-4; // margin by which in-gamut sRGB values may lie outside 0..1
const BISECTIONS = 10; // steps of the search for the largest chroma in the gamut
const MAX_ASPECT = 4; // maximum ratio of the long to the short side of the input

function inverse(m) {
  const [[a, b, c], [d, e, f], [g, h, i]] = m;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  return [
    [(e * i - f * h) / det, (c * h - b * i) / det, (b * f - c * e) / det],
    [(f * g - d * i) / det, (a * i - c * g) / det, (c * d - a * f) / det],
    [(d * h - e * g) / det, (b * g - a * h) / det, (a * e - b * d) / det],
  ];
}

const LINEAR = Float64Array.from({ length: 256 }, (_, level) => {
  const x = level / 255;
  return x > 0.04045 ? ((x + 0.055) / 1.055) ** 2.4 : x / 12.92;
});

// Return the lightness L (0..100) of interleaved RGBA pixels, or of RGB pixels with `channels` = 3.
export function lightnessOf(pixels, channels = 4) {
  const lightness = new Float32Array(pixels.length / channels);
  for (let i = 0, j = 0; i < lightness.length; i++, j += channels) {
    const y =
      LUMINANCE[0] * LINEAR[pixels[j]] + LUMINANCE[1] * LINEAR[pixels[j + 1]] + LUMINANCE[2] * LINEAR[pixels[j + 2]];
    lightness[i] = 116 * (y > 0.008856 ? Math.cbrt(y) : 7.787 * y + 16 / 116) - 16;
  }
  return lightness;
}

// Return the width and height of the model's input for a picture.
export function inputSize(width, height, net) {
  if (net.squash) return [net.size, net.size];
  const factor = net.size / Math.min(width, height);
  const side = (length) => Math.min(MAX_ASPECT * net.size, Math.max(8, roundEven((length * factor) / 8) * 8));
  return [side(width), side(height)];
}

// Round halves to the even number, like Python.
function roundEven(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 ? floor + 1 : floor;
}

const FILTERS = {
  bilinear: { support: 1, kernel: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    kernel: (signed) => {
      const x = Math.abs(signed);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    },
  },
};

// Return the first source pixel and the weights of source pixels, for each target pixel of a resized line.
function resizeWeights(from, to, { support, kernel }) {
  const scale = from / to;
  const stretch = Math.max(1, scale);
  return Array.from({ length: to }, (_, target) => {
    const centre = (target + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const end = Math.min(from, Math.trunc(centre + support * stretch + 0.5));
    const weights = Float64Array.from({ length: end - first }, (_, i) => kernel((first + i - centre + 0.5) / stretch));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

const toByte = (x) => (x < 0 ? 0 : x > 255 ? 255 : Math.floor(x + 0.5));

// Picture resizing like Pillow's, with rounding to 8 bits after each direction. Rows are added one strip at a time.
export class Resizer {
  constructor(width, height, toWidth, toHeight, interpolation) {
    const filter = FILTERS[interpolation];
    Object.assign(this, { width, height, toWidth, toHeight, row: 0 });
    this.horizontal = width === toWidth ? null : resizeWeights(width, toWidth, filter);
    this.vertical = height === toHeight ? null : resizeWeights(height, toHeight, filter);
    this.rows = new Uint8ClampedArray(toWidth * height * 3);
  }

  // Add rows of RGBA pixels.
  add(pixels) {
    const count = pixels.length / (4 * this.width);
    for (let y = 0; y < count; y++, this.row++) {
      let to = this.row * this.toWidth * 3;
      for (let x = 0; x < this.toWidth; x++) {
        for (let channel = 0; channel < 3; channel++, to++) {
          if (!this.horizontal) {
            this.rows[to] = pixels[(y * this.width + x) * 4 + channel];
            continue;
          }
          const { first, weights } = this.horizontal[x];
          let sum = 0;
          for (let i = 0, j = (y * this.width + first) * 4 + channel; i < weights.length; i++, j += 4) {
            sum += weights[i] * pixels[j];
          }
          this.rows[to] = toByte(sum);
        }
      }
    }
  }

  // Return the resized picture as RGB pixels.
  finish() {
    if (!this.vertical) return this.rows;
    const line = this.toWidth * 3;
    const resized = new Uint8ClampedArray(line * this.toHeight);
    this.vertical.forEach(({ first, weights }, y) => {
      for (let x = 0; x < line; x++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * this.rows[(first + i) * line + x];
        resized[y * line + x] = toByte(sum);
      }
    });
    return resized;
  }
}

// Return the annealed mean at a temperature, ab (2, points), of a distribution (bins, points).
export function annealedMean(distribution, bins, points, temperature) {
  const ab = new Float32Array(2 * points);
  const powers = new Float64Array(bins.length);
  for (let point = 0; point < points; point++) {
    let max = 0;
    for (let bin = 0; bin < bins.length; bin++) max = Math.max(max, distribution[bin * points + point]);
    let total = 0;
    for (let bin = 0; bin < bins.length; bin++) {
      powers[bin] = (distribution[bin * points + point] / max) ** (1 / temperature);
      total += powers[bin];
    }
    let a = 0;
    let b = 0;
    for (let bin = 0; bin < bins.length; bin++) {
      a += powers[bin] * bins[bin][0];
      b += powers[bin] * bins[bin][1];
    }
    ab[point] = a / total;
    ab[points + point] = b / total;
  }
  return ab;
}

// Return the grid point before each pixel of a line, and the fraction of the way to the next point.
function locateOnGrid(start, count, scale, offset, points) {
  const first = new Int32Array(count);
  const fraction = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const position = Math.min(points - 1, Math.max(0, (start + i + 0.5) * scale - offset));
    first[i] = Math.min(Math.floor(position), Math.max(0, points - 2));
    fraction[i] = position - first[i];
  }
  return { first, fraction };
}

// Upsample ab from a grid of points to rows of a picture. Points that match a pixel's lightness have more weight.
//   grid: {ab, width, height, lightness} of the points
//   rows: {start, count, width, lightness} of the rows
export function upsample(grid, rows, scale, offset, sigma) {
  const pixels = rows.count * rows.width;
  const points = grid.width * grid.height;
  const ab = new Float32Array(2 * pixels);
  const vertical = locateOnGrid(rows.start, rows.count, scale[0], offset, grid.height);
  const horizontal = locateOnGrid(0, rows.width, scale[1], offset, grid.width);
  const factor = -0.5 / (sigma * sigma);
  for (let y = 0, pixel = 0; y < rows.count; y++) {
    const lines = [vertical.first[y], Math.min(vertical.first[y] + 1, grid.height - 1)];
    const lineWeights = [1 - vertical.fraction[y], vertical.fraction[y]];
    for (let x = 0; x < rows.width; x++, pixel++) {
      const columns = [horizontal.first[x], Math.min(horizontal.first[x] + 1, grid.width - 1)];
      const columnWeights = [1 - horizontal.fraction[x], horizontal.fraction[x]];
      let total = 0;
      let a = 0;
      let b = 0;
      for (let i = 0; i < 2; i++) {
        for (let j = 0; j < 2; j++) {
          const point = lines[i] * grid.width + columns[j];
          const difference = grid.lightness[point] - rows.lightness[pixel];
          const weight = lineWeights[i] * columnWeights[j] * (Math.exp(difference * difference * factor) + MIN_WEIGHT);
          total += weight;
          a += weight * grid.ab[point];
          b += weight * grid.ab[points + point];
        }
      }
      ab[pixel] = a / total;
      ab[pixels + pixel] = b / total;
    }
  }
  return ab;
}

// Return the lightness at each point of the prediction grid: the mean of its block, or the first pixel of the block.
export function gridLightness(lightness, width, height, stride, averageBlocks) {
  const columns = Math.ceil(width / stride);
  const rows = Math.ceil(height / stride);
  const values = new Float32Array(columns * rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const side = averageBlocks ? stride : 1;
      let sum = 0;
      let count = 0;
      for (let y = row * stride; y < Math.min(height, row * stride + side); y++) {
        for (let x = column * stride; x < Math.min(width, column * stride + side); x++, count++) sum += lightness[y * width + x];
      }
      values[row * columns + column] = sum / count;
    }
  }
  return values;
}

// Convert a Lab colour to sRGB, unclipped, and store it in `rgb`.
function toRgb(lightness, a, b, rgb) {
  const y = (lightness + 16) / 116;
  const f = [y + a / 500, y, Math.max(0, y - b / 200)];
  const xyz = f.map((root) => (root > 0.2068966 ? root * root * root : (root - 16 / 116) / 7.787));
  for (let i = 0; i < 3; i++) {
    const linear = XYZ_TO_RGB[i][0] * xyz[0] + XYZ_TO_RGB[i][1] * xyz[1] + XYZ_TO_RGB[i][2] * xyz[2];
    rgb[i] = linear > 0.0031308 ? 1.055 * linear ** (1 / 2.4) - 0.055 : 12.92 * linear;
  }
}

const isInGamut = (rgb) => rgb.every((value) => value >= -GAMUT_TOLERANCE && value <= 1 + GAMUT_TOLERANCE);

// Set the RGB channels of RGBA pixels from lightness and ab. Colours outside sRGB are moved towards grey.
export function colourPixels(pixels, lightness, ab, saturation) {
  const count = lightness.length;
  const rgb = [0, 0, 0];
  for (let i = 0; i < count; i++) {
    const a = ab[i] * saturation;
    const b = ab[count + i] * saturation;
    toRgb(lightness[i], a, b, rgb);
    if (!isInGamut(rgb)) {
      let low = 0;
      let high = 1;
      for (let step = 0; step < BISECTIONS; step++) {
        const middle = (low + high) / 2;
        toRgb(lightness[i], a * middle, b * middle, rgb);
        if (isInGamut(rgb)) low = middle;
        else high = middle;
      }
      toRgb(lightness[i], a * low, b * low, rgb);
    }
    for (let channel = 0; channel < 3; channel++) pixels[4 * i + channel] = toByte(255 * rgb[channel]);
  }
}

// Upsample predicted ab from the grid of the model to every pixel of its input.
export function upsamplePrediction(input, ab, net) {
  const columns = Math.ceil(input.width / net.stride);
  const rows = Math.ceil(input.height / net.stride);
  const lightness = gridLightness(input.lightness, input.width, input.height, net.stride, net.half_pixel);
  const grid = { ab, width: columns, height: rows, lightness };
  const allRows = { start: 0, count: input.height, width: input.width, lightness: input.lightness };
  const scale = [1 / net.stride, 1 / net.stride];
  return upsample(grid, allRows, scale, net.half_pixel ? 0.5 : 0.5 / net.stride, GRID_SIGMA);
}

// Upsample ab from the pixels of the model's input to rows of the picture.
export function upsampleRows(input, ab, picture, start, count, lightness) {
  const rows = { start, count, width: picture.width, lightness };
  if (input.width === picture.width && input.height === picture.height) {
    const pixels = input.width * input.height;
    const rowsOfChannel = (offset) => ab.subarray(offset + start * input.width, offset + (start + count) * input.width);
    const selected = new Float32Array(2 * count * input.width);
    selected.set(rowsOfChannel(0));
    selected.set(rowsOfChannel(pixels), count * input.width);
    return selected;
  }
  const grid = { ab, width: input.width, height: input.height, lightness: input.lightness };
  return upsample(grid, rows, [input.height / picture.height, input.width / picture.width], 0.5, PICTURE_SIGMA);
}
