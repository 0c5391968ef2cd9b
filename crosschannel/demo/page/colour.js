// The colorizer's arithmetic, as crosschannel has it in Python: lightness, resizing, decode, upsampling, gamut.
// Pictures are planes of numbers; nothing here knows a page.

const WHITE = [0.95047, 1.0, 1.08883];
const RGB_TO_XYZ = [
  [0.412453, 0.35758, 0.180423],
  [0.212671, 0.71516, 0.072169],
  [0.019334, 0.119193, 0.950227],
];
const FROM_XYZ = inverse(RGB_TO_XYZ).map((row) => row.map((value, column) => value * WHITE[column]));
const LUMINANCE = RGB_TO_XYZ[1];
const SIGMA_OF_GRIDS = 9.0; // differences of lightness at which a point counts less
const SIGMA_OF_PICTURES = 14.0;
const FLOOR = 1e-6;
const SLACK = 2e-4;
const HALVINGS = 10;
const LONGEST = 4; // the net sees at most this many times its short side

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

// L in 0..100 of pixels with four (or three) numbers each.
export function lightnessOf(pixels, channels = 4) {
  const found = new Float32Array(pixels.length / channels);
  for (let i = 0, at = 0; i < found.length; i++, at += channels) {
    const y =
      LUMINANCE[0] * LINEAR[pixels[at]] + LUMINANCE[1] * LINEAR[pixels[at + 1]] + LUMINANCE[2] * LINEAR[pixels[at + 2]];
    found[i] = 116 * (y > 0.008856 ? Math.cbrt(y) : 7.787 * y + 16 / 116) - 16;
  }
  return found;
}

// Width and height that the net sees.
export function workingSize(width, height, net) {
  if (net.squash) return [net.size, net.size];
  const factor = net.size / Math.min(width, height);
  const side = (length) => Math.min(LONGEST * net.size, Math.max(8, roundEven((length * factor) / 8) * 8));
  return [side(width), side(height)];
}

// Halves to the even number, as Python rounds.
function roundEven(x) {
  const whole = Math.floor(x);
  const rest = x - whole;
  if (rest !== 0.5) return Math.round(x);
  return whole % 2 ? whole + 1 : whole;
}

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (signed) => {
      const x = Math.abs(signed);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    },
  },
};

// Which pixels of a line make up each pixel of a shorter or longer one, and by how much.
function weightsOf(from, to, { support, at }) {
  const scale = from / to;
  const stretch = Math.max(1, scale);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const last = Math.min(from, Math.trunc(centre + support * stretch + 0.5));
    const weights = Float64Array.from({ length: last - first }, (_, i) => at((first + i - centre + 0.5) / stretch));
    const total = weights.reduce((sum, one) => sum + one, 0);
    return { first, weights: weights.map((one) => one / total) };
  });
}

const toByte = (x) => (x < 0 ? 0 : x > 255 ? 255 : Math.floor(x + 0.5));

// A picture resized as Pillow does it, to 8 bits after each direction. Rows are given as they come.
export class Resizer {
  constructor(width, height, toWidth, toHeight, interpolation) {
    const filter = FILTERS[interpolation];
    Object.assign(this, { width, height, toWidth, toHeight, row: 0 });
    this.across = width === toWidth ? null : weightsOf(width, toWidth, filter);
    this.down = height === toHeight ? null : weightsOf(height, toHeight, filter);
    this.rows = new Uint8ClampedArray(toWidth * height * 3);
  }

  // Rows of pixels with four numbers each.
  add(pixels) {
    const count = pixels.length / (4 * this.width);
    for (let y = 0; y < count; y++, this.row++) {
      let to = this.row * this.toWidth * 3;
      for (let x = 0; x < this.toWidth; x++) {
        for (let channel = 0; channel < 3; channel++, to++) {
          if (!this.across) {
            this.rows[to] = pixels[(y * this.width + x) * 4 + channel];
            continue;
          }
          const { first, weights } = this.across[x];
          let sum = 0;
          for (let i = 0, at = (y * this.width + first) * 4 + channel; i < weights.length; i++, at += 4) {
            sum += weights[i] * pixels[at];
          }
          this.rows[to] = toByte(sum);
        }
      }
    }
  }

  // The picture, three numbers a pixel.
  finish() {
    if (!this.down) return this.rows;
    const line = this.toWidth * 3;
    const found = new Uint8ClampedArray(line * this.toHeight);
    this.down.forEach(({ first, weights }, y) => {
      for (let x = 0; x < line; x++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * this.rows[(first + i) * line + x];
        found[y * line + x] = toByte(sum);
      }
    });
    return found;
  }
}

// ab of a grid from a distribution over bins, (bins, points): the annealed mean at a temperature.
export function annealedMean(distribution, bins, points, temperature) {
  const ab = new Float32Array(2 * points);
  const powers = new Float64Array(bins.length);
  for (let point = 0; point < points; point++) {
    let most = 0;
    for (let bin = 0; bin < bins.length; bin++) most = Math.max(most, distribution[bin * points + point]);
    let total = 0;
    for (let bin = 0; bin < bins.length; bin++) {
      powers[bin] = (distribution[bin * points + point] / most) ** (1 / temperature);
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

// For each pixel of a line: the points before and after it, and how far it is between them.
function between(start, count, scale, offset, points) {
  const first = new Int32Array(count);
  const rest = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const at = Math.min(points - 1, Math.max(0, (start + i + 0.5) * scale - offset));
    first[i] = Math.min(Math.floor(at), Math.max(0, points - 2));
    rest[i] = at - first[i];
  }
  return { first, rest };
}

// ab of rows of a picture from those of a grid of points.
//   grid: {ab, width, height, lightness}; of the points
//   rows: {start, count, width, lightness}; of the picture
export function upsampled(grid, rows, scale, offset, sigma) {
  const pixels = rows.count * rows.width;
  const points = grid.width * grid.height;
  const found = new Float32Array(2 * pixels);
  const down = between(rows.start, rows.count, scale[0], offset, grid.height);
  const across = between(0, rows.width, scale[1], offset, grid.width);
  const factor = -0.5 / (sigma * sigma);
  for (let y = 0, at = 0; y < rows.count; y++) {
    const lines = [down.first[y], Math.min(down.first[y] + 1, grid.height - 1)];
    const ofLines = [1 - down.rest[y], down.rest[y]];
    for (let x = 0; x < rows.width; x++, at++) {
      const columns = [across.first[x], Math.min(across.first[x] + 1, grid.width - 1)];
      const ofColumns = [1 - across.rest[x], across.rest[x]];
      let total = 0;
      let a = 0;
      let b = 0;
      for (let i = 0; i < 2; i++) {
        for (let j = 0; j < 2; j++) {
          const point = lines[i] * grid.width + columns[j];
          const difference = grid.lightness[point] - rows.lightness[at];
          const weight = ofLines[i] * ofColumns[j] * (Math.exp(difference * difference * factor) + FLOOR);
          total += weight;
          a += weight * grid.ab[point];
          b += weight * grid.ab[points + point];
        }
      }
      found[at] = a / total;
      found[pixels + at] = b / total;
    }
  }
  return found;
}

// Lightness at the points of a net's grid: of their pixels, or the mean of their blocks.
export function atPoints(lightness, width, height, stride, ofBlocks) {
  const columns = Math.ceil(width / stride);
  const rows = Math.ceil(height / stride);
  const found = new Float32Array(columns * rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const side = ofBlocks ? stride : 1;
      let sum = 0;
      let count = 0;
      for (let y = row * stride; y < Math.min(height, row * stride + side); y++) {
        for (let x = column * stride; x < Math.min(width, column * stride + side); x++, count++) sum += lightness[y * width + x];
      }
      found[row * columns + column] = sum / count;
    }
  }
  return found;
}

// sRGB of a colour, unclipped, into `rgb`.
function toRgb(lightness, a, b, rgb) {
  const y = (lightness + 16) / 116;
  const f = [y + a / 500, y, Math.max(0, y - b / 200)];
  const xyz = f.map((root) => (root > 0.2068966 ? root * root * root : (root - 16 / 116) / 7.787));
  for (let i = 0; i < 3; i++) {
    const linear = FROM_XYZ[i][0] * xyz[0] + FROM_XYZ[i][1] * xyz[1] + FROM_XYZ[i][2] * xyz[2];
    rgb[i] = linear > 0.0031308 ? 1.055 * linear ** (1 / 2.4) - 0.055 : 12.92 * linear;
  }
}

const isShown = (rgb) => rgb.every((value) => value >= -SLACK && value <= 1 + SLACK);

// Lightness and ab of pixels into the colours of pixels of four numbers, whose fourth is kept; colours that sRGB cannot
// show move towards grey until it can.
export function paint(pixels, lightness, ab, saturation) {
  const count = lightness.length;
  const rgb = [0, 0, 0];
  for (let i = 0; i < count; i++) {
    const a = ab[i] * saturation;
    const b = ab[count + i] * saturation;
    toRgb(lightness[i], a, b, rgb);
    if (!isShown(rgb)) {
      let low = 0;
      let high = 1;
      for (let halving = 0; halving < HALVINGS; halving++) {
        const middle = (low + high) / 2;
        toRgb(lightness[i], a * middle, b * middle, rgb);
        if (isShown(rgb)) low = middle;
        else high = middle;
      }
      toRgb(lightness[i], a * low, b * low, rgb);
    }
    for (let channel = 0; channel < 3; channel++) pixels[4 * i + channel] = toByte(255 * rgb[channel]);
  }
}

// ab of every pixel that the net has seen, from what it says of its grid.
export function lookAt(seen, ab, net) {
  const columns = Math.ceil(seen.width / net.stride);
  const rows = Math.ceil(seen.height / net.stride);
  const guide = atPoints(seen.lightness, seen.width, seen.height, net.stride, net.half_pixel);
  const grid = { ab, width: columns, height: rows, lightness: guide };
  const all = { start: 0, count: seen.height, width: seen.width, lightness: seen.lightness };
  const scale = [1 / net.stride, 1 / net.stride];
  return upsampled(grid, all, scale, net.half_pixel ? 0.5 : 0.5 / net.stride, SIGMA_OF_GRIDS);
}

// ab of some rows of a picture, from those of every pixel that the net has seen.
export function rowsOf(seen, maps, picture, start, count, lightness) {
  const rows = { start, count, width: picture.width, lightness };
  if (seen.width === picture.width && seen.height === picture.height) {
    const pixels = seen.width * seen.height;
    const part = (from) => maps.subarray(from + start * seen.width, from + (start + count) * seen.width);
    const found = new Float32Array(2 * count * seen.width);
    found.set(part(0));
    found.set(part(pixels), count * seen.width);
    return found;
  }
  const grid = { ab: maps, width: seen.width, height: seen.height, lightness: seen.lightness };
  return upsampled(grid, rows, [seen.height / picture.height, seen.width / picture.width], 0.5, SIGMA_OF_PICTURES);
}
