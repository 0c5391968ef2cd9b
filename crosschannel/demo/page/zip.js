// A ZIP of files as they are: pictures are packed already.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function checksum(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function record(signature, fields) {
  const size = fields.reduce((sum, [bytes]) => sum + bytes, 4);
  const view = new DataView(new ArrayBuffer(size));
  view.setUint32(0, signature, true);
  let at = 4;
  for (const [bytes, value] of fields) {
    if (bytes === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += bytes;
  }
  return view.buffer;
}

// files: [{name, blob}] → a Blob.
export async function zipped(files) {
  const parts = [];
  const index = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const label = new TextEncoder().encode(name);
    const shared = [
      [2, 20], // version that can read it
      [2, 0x0800], // names are UTF-8
      [2, 0], // stored
      [2, 0],
      [2, 0x21], // 1 January 1980: when it was made is nobody's business
      [4, checksum(bytes)],
      [4, bytes.length],
      [4, bytes.length],
      [2, label.length],
      [2, 0],
    ];
    const head = record(0x04034b50, shared);
    parts.push(head, label, blob);
    index.push(record(0x02014b50, [[2, 20], ...shared, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), label);
    offset += head.byteLength + label.length + bytes.length;
    if (offset > 0xf0000000) throw new Error("together they have more than 4 GB: download them one by one");
  }
  const length = index.reduce((sum, part) => sum + part.byteLength, 0);
  const end = [[2, 0], [2, 0], [2, files.length], [2, files.length], [4, length], [4, offset], [2, 0]];
  return new Blob([...parts, ...index, record(0x06054b50, end)], { type: "application/zip" });
}
