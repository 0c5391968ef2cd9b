// What the net says of a lightness, computed here by onnxruntime-web.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that not every host of files can send
let session = null;

export async function predict(lightness, width, height) {
  session ??= ort.InferenceSession.create(new URL("./model.onnx", import.meta.url).href, { executionProviders: ["wasm"] });
  const input = new ort.Tensor("float32", Float32Array.from(lightness), [1, 1, height, width]);
  const found = await (await session).run({ lightness: input });
  return { distribution: found.distribution ? found.distribution.data : null, ab: found.ab.data };
}
