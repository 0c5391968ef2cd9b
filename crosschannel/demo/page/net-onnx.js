// Prediction from a lightness channel in the browser, with onnxruntime-web.

import * as ort from "./ort/ort.js";

const urlOf = (name) => new URL(name, import.meta.url).href;
ort.env.wasm.wasmPaths = { mjs: urlOf("./ort/ort-wasm.js"), wasm: urlOf("./ort/ort-wasm.wasm") };
ort.env.wasm.numThreads = 1; // more threads require headers that not every static host can send
let session = null;

export async function predict(lightness, width, height) {
  session ??= await ort.InferenceSession.create(urlOf("./model.onnx"), { executionProviders: ["wasm"] });
  const input = new ort.Tensor("float32", Float32Array.from(lightness), [1, 1, height, width]);
  const output = await session.run({ lightness: input });
  return { distribution: output.distribution ? output.distribution.data : null, ab: output.ab.data };
}
