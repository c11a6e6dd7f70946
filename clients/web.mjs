// Decodes greedily with ONNX Runtime for browsers (WebAssembly) in headless Chromium and prints the tokens as JSON.
//
//   node web.mjs MODEL N TOKEN,TOKEN,… [BROWSER]
//
// A server on this machine gives out the page, the runtime and the model; the page sends the tokens back to it.
import { spawn } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';

const [model, count, prompt, browser = 'chromium'] = process.argv.slice(2);
const here = import.meta.dirname;
const runtime = path.join(here, 'node_modules', 'onnxruntime-web', 'dist');
const page = `<!DOCTYPE html><meta charset="utf-8"><script type="module">
const send = (result) => fetch('/result', { method: 'POST', body: JSON.stringify(result) });
try {
  const ort = await import('/ort/ort.wasm.bundle.min.mjs');
  const { greedy } = await import('/greedy.mjs');
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = '/ort/';
  const session = await ort.InferenceSession.create('/model', { executionProviders: ['wasm'] });
  await send({ agent: navigator.userAgent, version: ort.env.versions.web, tokens: await greedy(ort, session, [${prompt}], ${Number(count)}) });
} catch (e) {
  await send({ error: String(e.stack ?? e) });
}
</script>`;
const types = { '.mjs': 'text/javascript', '.wasm': 'application/wasm' };

const result = await new Promise(async (resolve, reject) => {
  const server = createServer(async (request, response) => {
    const name = new URL(request.url, 'http://localhost').pathname;
    if (name === '/result') {
      let body = '';
      for await (const part of request) body += part;
      response.end();
      finish(() => resolve(JSON.parse(body)));
    } else if (name === '/') {
      response.setHeader('Content-Type', 'text/html').end(page);
    } else {
      const file = name === '/model' ? model : name === '/greedy.mjs' ? path.join(here, 'greedy.mjs') : path.join(runtime, path.basename(name));
      response.setHeader('Content-Type', types[path.extname(file)] ?? 'application/octet-stream');
      createReadStream(file).on('error', () => response.writeHead(404).end()).pipe(response);
    }
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  const profile = await mkdtemp(path.join(tmpdir(), 'chromium-'));
  const child = spawn(browser, [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', `--user-data-dir=${profile}`,
    `http://127.0.0.1:${server.address().port}/`,
  ], { stdio: 'ignore', detached: true });
  const timer = setTimeout(() => finish(() => reject(new Error('the page sent nothing back in 120 s'))), 120_000);
  let finished = false;
  function finish(then) {
    if (finished) return;
    finished = true;
    clearTimeout(timer);
    server.closeAllConnections();
    server.close();
    try { process.kill(-child.pid, 'SIGKILL'); } catch { /* it has ended */ }
    setTimeout(() => rm(profile, { recursive: true, force: true, maxRetries: 5 }).finally(then), 100);
  }
  child.on('error', (e) => finish(() => reject(e)));
});
console.log(JSON.stringify(result));
if (result.error) process.exitCode = 1;
