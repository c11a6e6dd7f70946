// Generates text with transformers.js from a model folder on this machine, and prints the tokens and the text as JSON.
//
//   node transformers.mjs FOLDER N PROMPT [PACKAGE]
//
// N is the number of tokens to generate; PACKAGE is another release of transformers.js that is installed under that name.
import path from 'node:path';

const [folder, count, prompt, name = '@huggingface/transformers'] = process.argv.slice(2);
const { AutoModelForCausalLM, AutoTokenizer, env, pipeline } = await import(name);

// Nothing may come from elsewhere: what is missing in the folder has to show.
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder)) + path.sep;
const model = path.basename(path.resolve(folder));

// Once with the parts, for the token ids, and once as most people would.
const tokenizer = await AutoTokenizer.from_pretrained(model);
const decoder = await AutoModelForCausalLM.from_pretrained(model, { dtype: 'fp32' });
const inputs = tokenizer(prompt);
const options = { max_new_tokens: Number(count), do_sample: false };
const output = await decoder.generate({ ...inputs, ...options });
const ids = Array.from(output.data, Number);

const generate = await pipeline('text-generation', model, { dtype: 'fp32' });
const [{ generated_text: text }] = await generate(prompt, options);
console.log(JSON.stringify({ prompt: Array.from(inputs.input_ids.data, Number), tokens: ids.slice(inputs.input_ids.dims[1]), text }));
