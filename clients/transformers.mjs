// Generates with transformers.js from a model folder on this machine, and prints what it says as JSON.
//
//   node transformers.mjs FOLDER N PROMPTS [PACKAGE]
//
// N is the number of tokens to generate; PROMPTS is a JSON array: texts, or arrays of numbers for a model that hears (the
// features of a recording, [channels][time]). PACKAGE is another release of transformers.js: the name that it is installed
// under, or its file.
import { readFile } from 'node:fs/promises';
import path from 'node:path';

const [folder, count, given, name = '@huggingface/transformers'] = process.argv.slice(2);
const { AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, AutoTokenizer, Tensor, env, pipeline } = await import(name);

// Nothing may come from elsewhere: what is missing in the folder has to show.
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder)) + path.sep;
const model = path.basename(path.resolve(folder));
const config = JSON.parse(await readFile(path.join(folder, 'config.json')));

const prompts = JSON.parse(given);
const options = { max_new_tokens: Number(count), do_sample: false };
const rows = (tensor) => tensor.tolist().map((row) => row.map(Number));

if (typeof prompts[0] !== 'string') {
  // One after the other: Whisper's generate() begins one text at a time.
  const listener = await AutoModelForSpeechSeq2Seq.from_pretrained(model, { dtype: 'fp32' });
  const tokens = [];
  for (const sound of prompts) {
    const features = new Tensor('float32', Float32Array.from(sound.flat()), [1, sound.length, sound[0].length]);
    tokens.push(...rows(await listener.generate({ input_features: features, ...options })));
  }
  print({ tokens });
} else {
  // Once with the parts, for the token ids, and once as most people would.
  const tokenizer = await AutoTokenizer.from_pretrained(model);
  const [Auto, task] = config.is_encoder_decoder ? [AutoModelForSeq2SeqLM, 'text2text-generation'] : [AutoModelForCausalLM, 'text-generation'];
  tokenizer.padding_side = config.is_encoder_decoder ? 'right' : 'left';
  const generator = await Auto.from_pretrained(model, { dtype: 'fp32' });
  const inputs = tokenizer(prompts, { padding: prompts.length > 1 });
  const output = rows(await generator.generate({ ...inputs, ...options }));
  const before = config.is_encoder_decoder ? 0 : inputs.input_ids.dims[1];
  const texts = (await (await pipeline(task, model, { dtype: 'fp32' }))(prompts, options)).map((said) => [said].flat()[0].generated_text);
  print({
    prompts: rows(inputs.input_ids).map((row, i) => row.filter((_, j) => inputs.attention_mask[i].data[j] === 1n)),
    tokens: output.map((row) => row.slice(before)),
    texts,
  });
}

function print(result) {
  console.log(JSON.stringify(result));
}
