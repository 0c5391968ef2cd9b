// What the net says of a lightness, computed here by onnxruntime-web.

import * as ort from "./ort/ort.js";

const at = (name) => new URL(name, import.meta.url).href;
ort.env.wasm.wasmPaths = { mjs: at("./ort/ort-wasm.js"), wasm: at("./ort/ort-wasm.wasm") };
ort.env.wasm.numThreads = 1; // more need headers that not every host of files can send
let session = null;

export async function predict(lightness, width, height) {
  session ??= await ort.InferenceSession.create(at("./model.onnx"), { executionProviders: ["wasm"] });
  const input = new ort.Tensor("float32", Float32Array.from(lightness), [1, 1, height, width]);
  const found = await session.run({ lightness: input });
  return { distribution: found.distribution ? found.distribution.data : null, ab: found.ab.data };
}
