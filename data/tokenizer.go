package data

import "onnx-dha/data/tokenizer"

// Tokenizer turns text into token ids and back.
type Tokenizer = tokenizer.Tokenizer
