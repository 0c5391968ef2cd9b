// Prediction from a lightness channel on the server, which receives only this small channel and does not store it.

export async function predict(lightness, width, height) {
  const body = new Uint8Array(8 + 4 * lightness.length);
  const head = new DataView(body.buffer);
  head.setUint32(0, width, true);
  head.setUint32(4, height, true);
  lightness.forEach((value, i) => head.setFloat32(8 + 4 * i, value, true));
  const headers = { "Content-Type": "application/octet-stream" };
  const response = await fetch("predict", { method: "POST", headers, body });
  if (!response.ok) throw new Error((await response.text()) || `the server responded with status ${response.status}`);
  const bytes = await response.arrayBuffer();
  const [bins, rows, columns] = new Uint32Array(bytes, 0, 3);
  const points = rows * columns;
  const ab = new Float32Array(bytes.slice(12, 12 + 8 * points));
  if (!bins) return { distribution: null, ab };
  const logProbabilities = new Uint16Array(bytes.slice(12 + 8 * points));
  const table = halfPrecisionTable();
  return { distribution: Float32Array.from(logProbabilities, (half) => Math.exp(table[half])), ab };
}

let halfPrecisionValues = null;

// Return the values of half-precision floats, by bit pattern.
function halfPrecisionTable() {
  halfPrecisionValues ??= Float32Array.from({ length: 1 << 16 }, (_, pattern) => {
    const sign = pattern & 0x8000 ? -1 : 1;
    const exponent = (pattern >> 10) & 31;
    const fraction = pattern & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  });
  return halfPrecisionValues;
}
