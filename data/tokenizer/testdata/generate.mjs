// Makes the tokenizers of this folder and what the reference implementations make of some texts. Not needed to build
// or test; run again only to add cases:
//
//   npm install @anush008/tokenizers@0.6.0   # the Rust library "tokenizers" 0.22.2
//   apt-get install sentencepiece            # 0.1.97: spm_train, spm_encode, spm_decode
//   node generate.mjs CORPUS.txt             # any English text of 100 kB or more; the committed files come from
//                                            # the first 120,000 bytes of "tiny Shakespeare" (public domain)
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";

const { Tokenizer } = createRequire(path.join(process.cwd(), "x"))("@anush008/tokenizers");
const here = path.dirname(new URL(import.meta.url).pathname);
const out = here;
const corpus = fs.readFileSync(process.argv[2], "utf8").slice(0, 120000);
const tmp = fs.mkdtempSync(path.join(os.tmpdir(), "tok"));
fs.writeFileSync(path.join(tmp, "corpus.txt"), corpus);

const texts = [
  "",
  " ",
  "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.",
  "  two leading and trailing spaces  ",
  "tabs\tand\r\nlines\n\n\n   indented\n",
  "I'll say it's DON'T, we'VE, you're; they'd 'tis",
  "numbers 1 22 333 4444 1234567 3.14 1,000",
  "café naïve Ångström cafe\u0301 ﬁne Ⅳ ½ ２",
  "日本語 と 中文 mixed words",
  "emoji 👍🏽 and 👩‍👩‍👧 flags 🇨🇭",
  "non\u00a0breaking\u2003wide\u3000spaces\u200bzero\u00adsoft",
  "control\u0000\u0001\u007f\ufeffchars\ufffd",
  "punctuation!?... (brackets) [more] {x} <y> #hash $5 a+b=c -- — … “quoted” ¿qué?",
  "<s>special</s> inside <|endoftext|> text [SEP] and [MASK] end<mask>",
  "word<|endoftext|>word <user>hi",
  "averyveryverylongwordwithoutanyspacewhatsoeverinitthatgoesonandonforeverandeverandeverandeverandeverandeverandever",
  "▁already ▁▁ marked ## a##b @@ </w>",
  "İstanbul ẞ Straße ΑΣ ﬀ Ǆ",
  "ไทย हिन्दी العربية עברית한국어",
  "a\u0300\u0316b\u0316\u0300 \u1100\u1161",
  "the the the the the the the king shall speak to the people of Rome",
  "x".repeat(150),
  "tail space \n ",
  "private \ue000one un\u0378assigned\u0085next\u000bline\u000c non\u{10ffff}character",
  "!",
];

// Byte-level alphabet of GPT-2: printable bytes stand for themselves, the others for code points from 256 on.
const alphabet = [];
for (let b = 0, n = 0; b < 256; b++) {
  const printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  alphabet.push(String.fromCodePoint(printable ? b : 256 + n++));
}
const bytes = (s) => [...Buffer.from(s)].map((b) => alphabet[b]);

// merges learns byte-pair merges from words.
function merges(words, n) {
  const counts = new Map();
  for (const w of words) counts.set(w, (counts.get(w) ?? 0) + 1);
  let rows = [...counts].map(([w, c]) => [bytes(w), c]);
  const learned = [];
  while (learned.length < n) {
    const pairs = new Map();
    for (const [w, c] of rows) for (let i = 0; i + 1 < w.length; i++) {
      const k = w[i] + " " + w[i + 1];
      pairs.set(k, (pairs.get(k) ?? 0) + c);
    }
    const [best] = [...pairs].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))[0];
    const [l, r] = best.split(" ");
    learned.push([l, r]);
    for (const row of rows) {
      const w = [];
      for (const s of row[0]) {
        if (w.length && w[w.length - 1] === l && s === r && row.last !== w.length) { w[w.length - 1] = l + r; row.last = w.length; }
        else { w.push(s); row.last = 0; }
      }
      row[0] = w;
    }
  }
  return learned;
}

const gptSplit = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
const learned = merges(corpus.match(gptSplit), 160);
const pretty = (m) => m.map(([l, r]) => l + " " + r);
const added = (id, content, o = {}) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true, ...o });

// ids numbers symbols.
function ids(symbols) {
  const v = {};
  for (const s of symbols) if (!(s in v)) v[s] = Object.keys(v).length;
  return v;
}
const byteVocab = (first = []) => ids([...first, ...alphabet, ...learned.map(([l, r]) => l + r)]);

function sentencepiece(name, ...args) {
  execFileSync("spm_train", ["--input=corpus.txt", "--model_prefix=" + name, "--num_threads=1", ...args], { stdio: "ignore", cwd: tmp });
  return fs.readFileSync(path.join(tmp, name + ".vocab"), "utf8").trimEnd().split("\n").map((l) => {
    const [p, s] = l.split("\t");
    return [p, +s];
  });
}
// The merges of a SentencePiece BPE vocabulary: every split of a piece into two pieces, by the piece's rank.
function spmMerges(vocab) {
  const rank = new Map(vocab.map(([p], i) => [p, i]));
  const m = [];
  for (const [p, i] of rank) {
    const cs = [...p];
    if (i < 259) continue;
    for (let k = 1; k < cs.length; k++) {
      const l = cs.slice(0, k).join(""), r = cs.slice(k).join("");
      if (rank.has(l) && rank.has(r)) m.push([i, rank.get(l), rank.get(r), l, r]);
    }
  }
  m.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  return m.map((x) => [x[3], x[4]]);
}

const spm = {
  "spm-bpe": ["--vocab_size=400", "--model_type=bpe", "--byte_fallback=true", "--character_coverage=1.0", "--normalization_rule_name=identity"],
  "spm-unigram": ["--vocab_size=400", "--model_type=unigram", "--byte_fallback=true", "--character_coverage=1.0", "--normalization_rule_name=identity"],
  "spm-spaces": ["--vocab_size=180", "--model_type=unigram", "--normalization_rule_name=identity", "--split_digits=true", "--remove_extra_whitespaces=false", "--add_dummy_prefix=false", "--user_defined_symbols=<user>,=c", "--bos_id=-1", "--eos_id=1", "--unk_id=2", "--pad_id=0"],
  "spm-rules": ["--vocab_size=180", "--model_type=unigram", "--normalization_rule_tsv=rules.tsv"],
  "spm-suffix": ["--vocab_size=150", "--model_type=bpe", "--treat_whitespace_as_suffix=true", "--normalization_rule_name=identity"],
};
fs.writeFileSync(path.join(tmp, "rules.tsv"), [
  "FF12\t32", "C5\t41 30A", "FB01\t66 69", "3000\t20", "A0\t20", "2003\t20", "2163\t49 56", "BD\t31 2044 32", "AD\t", "9\t20", "A\t20", "D\t20",
  "65 301\tE9", "200B\t", "1C4\t44 17D", "61 300\tE0", "61 300 316\tE0 316", "2026\t2E 2E 2E"].join("\n") + "\n");
const vocabs = {};
for (const [name, args] of Object.entries(spm)) vocabs[name] = sentencepiece(name, ...args);
const charsmap = (name) => {
  // ModelProto field 3 (normalizer_spec), field 2 (precompiled_charsmap).
  const b = fs.readFileSync(path.join(tmp, name + ".model"));
  const walk = (b, want) => {
    for (let i = 0; i < b.length;) {
      const varint = () => { let v = 0, k = 1; for (;;) { const x = b[i++]; v += (x & 127) * k; k *= 128; if (x < 128) return v; } };
      const tag = varint(), field = tag >> 3;
      if ((tag & 7) === 2) { const n = varint(); if (field === want) return b.subarray(i, i + n); i += n; }
      else if ((tag & 7) === 0) varint(); else if ((tag & 7) === 5) i += 4; else i += 8;
    }
  };
  return walk(walk(b, 3), 2).toString("base64");
};

const words = ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
  ..."!\"#$%&'()*+,-./0123456789:;<=>?@[]{}abcdefghijklmnopqrstuvwxyz¿—…“”½".split(""),
  ..."abcdefghijklmnopqrstuvwxyz0123456789".split("").map((c) => "##" + c),
  "the", "king", "shall", "speak", "people", "rome", "first", "citizen", "##ing", "##er", "##s", "##ed", "an", "and", "any", "be", "##fore", "we",
  "cafe", "naive", "##ak", "sp", "##e", "日", "本", "文", "end", "of", "##te", "##xt", "proceed", "中", "ss", "straße"]);

const roberta = { type: "RobertaProcessing", sep: ["</s>", 2], cls: ["<s>", 0], trim_offsets: true, add_prefix_space: false };
const template = (before, after, ids) => ({
  type: "TemplateProcessing",
  single: [...before.map((id) => ({ SpecialToken: { id, type_id: 0 } })), { Sequence: { id: "A", type_id: 0 } }, ...after.map((id) => ({ SpecialToken: { id, type_id: 0 } }))],
  pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
  special_tokens: Object.fromEntries([...before, ...after].map((id) => [id, { id, ids: [ids[id]], tokens: [id] }])),
});
const byteLevel = (add_prefix_space, use_regex) => ({ type: "ByteLevel", add_prefix_space, trim_offsets: true, use_regex });
const bpe = (vocab, merges, o = {}) => ({ type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: false, byte_fallback: false, ignore_merges: false, vocab, merges, ...o });
const file = (o) => ({ version: "1.0", truncation: null, padding: null, added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, ...o });
const cl100k = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const llama = Object.fromEntries(vocabs["spm-bpe"].map(([p], i) => [p, i]));
const unigram = (name) => ({ type: "Unigram", unk_id: 0, byte_fallback: false, vocab: vocabs[name] });
const clipVocab = ids(["<|startoftext|>", "<|endoftext|>", ...alphabet, ...alphabet.map((c) => c + "</w>"), "th", "the</w>", "ki", "ng</w>", "king</w>", "sp", "ea", "spea", "speak</w>"]);

const tokenizers = {
  "gpt2": (() => { const v = byteVocab(); const n = Object.keys(v).length;
    return file({ added_tokens: [added(n, "<|endoftext|>")], pre_tokenizer: byteLevel(false, true), post_processor: byteLevel(true, true), decoder: byteLevel(true, true), model: bpe({ ...v, "<|endoftext|>": n }, pretty(learned)) }); })(),
  "roberta": (() => { const v = byteVocab(["<s>", "<pad>", "</s>", "<unk>"]); const n = Object.keys(v).length;
    return file({ added_tokens: [added(0, "<s>"), added(2, "</s>"), added(n, "<mask>", { lstrip: true })], pre_tokenizer: byteLevel(true, true), post_processor: { ...roberta, add_prefix_space: true }, decoder: byteLevel(true, true), model: bpe({ ...v, "<mask>": n }, pretty(learned)) }); })(),
  "llama3": (() => { const v = byteVocab(); let n = Object.keys(v).length; v["Ġproceed"] = n++; v["further"] = n++;
    return file({ added_tokens: [added(n, "<|begin_of_text|>"), added(n + 1, "<|endoftext|>")],
      pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Split", pattern: { Regex: cl100k }, behavior: "Isolated", invert: false }, byteLevel(false, false)] },
      post_processor: { type: "Sequence", processors: [byteLevel(true, false), template(["<|begin_of_text|>"], [], { "<|begin_of_text|>": n })] },
      decoder: byteLevel(true, true), model: bpe(v, learned, { ignore_merges: true }) }); })(),
  "qwen2": (() => { const v = byteVocab(); const n = Object.keys(v).length;
    return file({ added_tokens: [added(n, "<|endoftext|>")], normalizer: { type: "NFC" },
      pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Split", pattern: { Regex: cl100k.replace("{1,3}", "") }, behavior: "Isolated", invert: false }, byteLevel(false, false)] },
      post_processor: byteLevel(false, false), decoder: byteLevel(false, false), model: bpe(v, pretty(learned)) }); })(),
  "deepseek": (() => { const v = byteVocab(); const n = Object.keys(v).length;
    return file({ added_tokens: [added(n, "<|endoftext|>", { normalized: true, single_word: true })],
      pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Split", pattern: { Regex: "[\r\n]" }, behavior: "Isolated", invert: false },
        { type: "Split", pattern: { Regex: "\\s?\\p{L}+" }, behavior: "Isolated", invert: false }, { type: "Split", pattern: { Regex: "\\s?\\p{P}+" }, behavior: "Isolated", invert: false },
        { type: "Split", pattern: { Regex: "[一-龥ࠀ-一가-퟿]+" }, behavior: "Isolated", invert: false }, { type: "Digits", individual_digits: true }, byteLevel(false, false)] },
      decoder: byteLevel(true, true), model: bpe(v, pretty(learned)) }); })(),
  "llama2": file({ added_tokens: [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
    normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, { type: "Replace", pattern: { String: " " }, content: "▁" }] },
    post_processor: template(["<s>"], [], { "<s>": 1 }),
    decoder: { type: "Sequence", decoders: [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }, { type: "Fuse" }, { type: "Strip", content: " ", start: 1, stop: 0 }] },
    model: bpe(llama, spmMerges(vocabs["spm-bpe"]), { unk_token: "<unk>", fuse_unk: true, byte_fallback: true }) }),
  "mistral": file({ added_tokens: [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: false }, post_processor: template(["<s>"], [], { "<s>": 1 }),
    decoder: { type: "Sequence", decoders: [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }, { type: "Fuse" }, { type: "Strip", content: " ", start: 1, stop: 0 }] },
    model: bpe(llama, pretty(spmMerges(vocabs["spm-bpe"])), { unk_token: "<unk>", fuse_unk: true, byte_fallback: true }) }),
  "gemma": file({ added_tokens: [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")], normalizer: { type: "Replace", pattern: { String: " " }, content: "▁" },
    pre_tokenizer: { type: "Split", pattern: { String: " " }, behavior: "MergedWithPrevious", invert: false }, post_processor: template(["<s>"], [], { "<s>": 1 }),
    decoder: { type: "Sequence", decoders: [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }, { type: "Fuse" }] },
    model: bpe(llama, spmMerges(vocabs["spm-bpe"]), { unk_token: "<unk>", fuse_unk: true, byte_fallback: true }) }),
  "bert": file({ added_tokens: [added(0, "[PAD]"), added(1, "[UNK]"), added(2, "[CLS]"), added(3, "[SEP]"), added(4, "[MASK]")],
    normalizer: { type: "BertNormalizer", clean_text: true, handle_chinese_chars: true, strip_accents: null, lowercase: true }, pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: template(["[CLS]"], ["[SEP]"], { "[CLS]": 2, "[SEP]": 3 }), decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: { type: "WordPiece", unk_token: "[UNK]", continuing_subword_prefix: "##", max_input_chars_per_word: 100, vocab: words } }),
  "bert-cased": file({ added_tokens: [added(1, "[UNK]"), added(2, "[CLS]"), added(3, "[SEP]")],
    normalizer: { type: "BertNormalizer", clean_text: true, handle_chinese_chars: false, strip_accents: false, lowercase: false }, pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: { type: "BertProcessing", sep: ["[SEP]", 3], cls: ["[CLS]", 2] }, decoder: { type: "WordPiece", prefix: "##", cleanup: false },
    model: { type: "WordPiece", unk_token: "[UNK]", continuing_subword_prefix: "##", max_input_chars_per_word: 20, vocab: words } }),
  "t5": file({ added_tokens: [added(2, "</s>"), added(0, "<unk>")], normalizer: { type: "Precompiled", precompiled_charsmap: charsmap("spm-rules") },
    pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "WhitespaceSplit" }, { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true }] },
    post_processor: template([], ["</s>"], { "</s>": 2 }), decoder: { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true }, model: unigram("spm-rules") }),
  "xlm-roberta": file({ added_tokens: [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
    normalizer: { type: "Sequence", normalizers: [{ type: "Precompiled", precompiled_charsmap: charsmap("spm-rules") }, { type: "Replace", pattern: { Regex: " {2,}" }, content: " " }] },
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true },
    post_processor: template(["<s>"], ["</s>"], { "<s>": 1, "</s>": 2 }), decoder: { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true }, model: unigram("spm-rules") }),
  "albert": file({ added_tokens: [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(180, "[MASK]", { lstrip: true, rstrip: true })],
    normalizer: { type: "Sequence", normalizers: [{ type: "Replace", pattern: { String: "``" }, content: "\"" }, { type: "NFKD" }, { type: "StripAccents" }, { type: "Lowercase" }, { type: "Strip", strip_left: true, strip_right: true }] },
    pre_tokenizer: { type: "Metaspace", replacement: "▁", add_prefix_space: true }, post_processor: template(["<s>"], ["</s>"], { "<s>": 1, "</s>": 2 }),
    decoder: { type: "Metaspace", replacement: "▁", add_prefix_space: true }, model: unigram("spm-rules") }),
  "unigram-bytes": file({ added_tokens: [added(0, "<unk>")], pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "never", split: true },
    decoder: { type: "Sequence", decoders: [{ type: "ByteFallback" }, { type: "Metaspace", replacement: "▁", prepend_scheme: "never", split: true }] }, model: { ...unigram("spm-unigram"), byte_fallback: true } }),
  "clip": file({ added_tokens: [added(0, "<|startoftext|>"), added(1, "<|endoftext|>")],
    normalizer: { type: "Sequence", normalizers: [{ type: "NFC" }, { type: "Replace", pattern: { Regex: "\\s+" }, content: " " }, { type: "Lowercase" }] },
    pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Split", pattern: { Regex: "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+" }, behavior: "Removed", invert: true }, byteLevel(false, true)] },
    post_processor: { type: "RobertaProcessing", sep: ["<|endoftext|>", 1], cls: ["<|startoftext|>", 0], trim_offsets: false, add_prefix_space: false },
    decoder: byteLevel(true, true), model: bpe(clipVocab, ["t h", "th e</w>", "k i", "n g</w>", "ki ng</w>", "s p", "e a", "sp ea", "spea k</w>"], { unk_token: "<|endoftext|>", end_of_word_suffix: "</w>", continuing_subword_prefix: "" }) }),
  "wordlevel": file({ added_tokens: [added(1, "[UNK]"), added(4, "[MASK]", { single_word: true }), added(Object.keys(words).length, "hear me", { special: false, normalized: true })], normalizer: { type: "Sequence", normalizers: [{ type: "NFKC" }, { type: "Lowercase" }] },
    pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Whitespace" }, { type: "Punctuation", behavior: "Isolated" }] }, model: { type: "WordLevel", vocab: words, unk_token: "[UNK]" } }),
  "prefixed": (() => { const cs = [...new Set([...corpus.toLowerCase().replace(/\s/g, ""), ..."àéñ\u0300\u0301_▁@<>|"])];
    const v = ids(["[UNK]", ...cs, ...cs.map((c) => "##" + c), ...cs.map((c) => c + "</w>"), ...cs.map((c) => "##" + c + "</w>"), "th", "the</w>", "##ea", "spea", "sp", "speak</w>", "##ing</w>", "##ng</w>"]);
    return file({ normalizer: { type: "Sequence", normalizers: [{ type: "Nmt" }, { type: "NFD" }] }, pre_tokenizer: { type: "WhitespaceSplit" }, decoder: { type: "BPEDecoder", suffix: "</w>" },
      model: bpe(v, [["t", "##h"], ["th", "##e</w>"], ["s", "##p"], ["##e", "##a"], ["sp", "##ea"], ["spea", "##k</w>"], ["##n", "##g</w>"], ["##i", "##ng</w>"]], { unk_token: "[UNK]", continuing_subword_prefix: "##", end_of_word_suffix: "</w>", fuse_unk: true }) }); })(),
  "bytes": file({ normalizer: { type: "ByteLevel" }, decoder: byteLevel(false, false), model: bpe(byteVocab(), pretty(learned)) }),
  "splits": file({ pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Split", pattern: { String: "," }, behavior: "MergedWithNext", invert: false }, { type: "Split", pattern: { Regex: "[aeiou]" }, behavior: "Contiguous", invert: false },
      { type: "Digits", individual_digits: false }, { type: "Punctuation", behavior: "MergedWithPrevious" }, { type: "CharDelimiterSplit", delimiter: "k" }, byteLevel(false, false)] },
    decoder: byteLevel(false, false), model: bpe(byteVocab(), pretty(learned)) }),
};

const write = (name, value) => fs.writeFileSync(path.join(out, name), value);
const cases = {};
for (const [name, t] of Object.entries(tokenizers)) {
  const text = JSON.stringify(t);
  write(name + ".json", text + "\n");
  const r = Tokenizer.fromString(text);
  cases[name + ".json"] = [];
  for (const s of texts) {
    const bare = [...(await r.encode(s, null, { addSpecialTokens: false })).getIds()];
    const framed = [...(await r.encode(s, null, { addSpecialTokens: true })).getIds()];
    cases[name + ".json"].push({ text: s, ids: bare, framed, decoded: await r.decode(bare, false) });
  }
}
for (const name of Object.keys(spm)) {
  fs.copyFileSync(path.join(tmp, name + ".model"), path.join(out, name + ".model"));
  cases[name + ".model"] = [];
  for (const s of texts) {
    if (/[\n\0]/.test(s)) continue; // the programs read lines
    const run = (cmd, input, ...a) => execFileSync(cmd, ["--model=" + path.join(tmp, name + ".model"), ...a], { input: input + "\n", stdio: ["pipe", "pipe", "ignore"] }).toString().replace(/\n$/, "");
    const ids = run("spm_encode", s, "--output_format=id");
    cases[name + ".model"].push({ text: s, ids: ids === "" ? [] : ids.split(" ").map(Number), decoded: run("spm_decode", ids, "--input_format=id") });
  }
}
const lines = Object.entries(cases).map(([n, c]) => JSON.stringify(n) + ": [\n" + c.map((x) => JSON.stringify(x)).join(",\n") + "\n]");
write("expected.json", "{\n" + lines.join(",\n") + "\n}\n");
