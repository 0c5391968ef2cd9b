// ZIP files without compression, since the pictures in them are already compressed.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

// Encode a record with a signature and little-endian fields [size in bytes, value].
function record(signature, fields) {
  const size = fields.reduce((sum, [bytes]) => sum + bytes, 4);
  const view = new DataView(new ArrayBuffer(size));
  view.setUint32(0, signature, true);
  let offset = 4;
  for (const [bytes, value] of fields) {
    if (bytes === 2) view.setUint16(offset, value, true);
    else view.setUint32(offset, value, true);
    offset += bytes;
  }
  return view.buffer;
}

// Pack files [{name, blob}] into a ZIP Blob.
export async function createZip(files) {
  const chunks = [];
  const directory = [];
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const nameBytes = new TextEncoder().encode(name);
    const commonFields = [
      [2, 20], // version needed to extract
      [2, 0x0800], // names are UTF-8
      [2, 0], // no compression
      [2, 0],
      [2, 0x21], // 1 January 1980, in place of the actual date
      [4, crc32(bytes)],
      [4, bytes.length],
      [4, bytes.length],
      [2, nameBytes.length],
      [2, 0],
    ];
    const header = record(0x04034b50, commonFields);
    chunks.push(header, nameBytes, blob);
    directory.push(record(0x02014b50, [[2, 20], ...commonFields, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), nameBytes);
    offset += header.byteLength + nameBytes.length + bytes.length;
    if (offset > 0xf0000000) throw new Error("the pictures exceed 4 GB in total; download them one by one");
  }
  const length = directory.reduce((sum, entry) => sum + entry.byteLength, 0);
  const end = [[2, 0], [2, 0], [2, files.length], [2, files.length], [4, length], [4, offset], [2, 0]];
  return new Blob([...chunks, ...directory, record(0x06054b50, end)], { type: "application/zip" });
}
