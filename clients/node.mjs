// Decodes greedily with ONNX Runtime for Node and prints the tokens as JSON.
//
//   node node.mjs MODEL N TOKEN,TOKEN,…
import * as ort from 'onnxruntime-node';
import { greedy } from './greedy.mjs';

const [model, count, prompt] = process.argv.slice(2);
const session = await ort.InferenceSession.create(model);
const tokens = await greedy(ort, session, prompt.split(',').map(Number), Number(count));
console.log(JSON.stringify({ version: ort.env.versions.common, tokens }));
