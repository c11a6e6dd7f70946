// Greedy decoding over the plain interface of ONNX Runtime for JavaScript, in Node and in browsers. ort is its module.
//
// Inputs are told by their names, as exporters give them: input_ids, attention_mask, position_ids, cache_position and pasts.
export async function greedy(ort, session, prompt, count) {
  const int64 = (values, dims) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), dims);
  const pasts = session.inputMetadata.filter((m) => m.name.startsWith('past'));
  let caches = {};
  for (const m of pasts) {
    // An open dimension is the batch, of one sequence, where it comes first, and the positions, none yet, elsewhere.
    const dims = m.shape.map((d, axis) => (typeof d === 'number' && d >= 0 ? d : axis === 0 ? 1 : 0));
    caches[m.name] = new ort.Tensor(m.type, new Float32Array(dims.reduce((a, b) => a * b, 1)), dims);
  }
  const tokens = [];
  let next = prompt;
  for (let past = 0; tokens.length < count; ) {
    const total = past + next.length;
    const positions = next.map((_, i) => past + i);
    const made = {
      input_ids: () => int64(next, [1, next.length]),
      attention_mask: () => int64(Array(total).fill(1), [1, total]),
      position_ids: () => int64(positions, [1, next.length]),
    };
    const feeds = { ...caches };
    for (const name of session.inputNames) {
      if (name in feeds) continue;
      if (!(name in made)) throw new Error(`input ${name} is not known`);
      feeds[name] = made[name]();
    }
    const output = await session.run(feeds);
    caches = {};
    for (const m of pasts) caches[m.name] = output[m.name.replace(/past_key_values|past/, 'present')];
    const { dims, data } = output.logits;
    const scores = data.subarray(data.length - dims.at(-1));
    let best = 0;
    scores.forEach((x, i) => { if (x > scores[best]) best = i; });
    tokens.push(best);
    next = [best];
    past = total;
  }
  return tokens;
}
