package testmodels

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// HuggingFace writes the tokenizer as a tokenizer.json: byte-pair merges in the order of their scores, spaces as "▁", bytes
// as a fallback, the begin of text in front.
func (t *Llama2CTokenizer) HuggingFace() ([]byte, error) {
	type object = map[string]any
	marked := func(text string) string { return strings.ReplaceAll(text, " ", "▁") }
	vocab := map[string]int{}
	for id, token := range t.tokens {
		switch {
		case id == 0:
			token = "<unk>"
		case id == llama2cBOS:
			token = "<s>"
		case id == llama2cBOS+1:
			token = "</s>"
		case id < llama2cBytes+256:
			token = fmt.Sprintf("<0x%02X>", id-llama2cBytes)
		}
		if _, ok := vocab[marked(token)]; !ok {
			vocab[marked(token)] = id
		}
	}
	type merge struct {
		left, right string
		score       float32
	}
	var merges []merge
	for id := llama2cBytes + 256; id < len(t.tokens); id++ {
		token := marked(t.tokens[id])
		for at := range token {
			left, right := token[:at], token[at:]
			_, a := vocab[left]
			_, b := vocab[right]
			if at > 0 && a && b {
				merges = append(merges, merge{left, right, t.scores[id]})
			}
		}
	}
	slices.SortStableFunc(merges, func(a, b merge) int { return cmp.Compare(b.score, a.score) })
	pairs := make([]string, len(merges))
	for i, m := range merges {
		pairs[i] = m.left + " " + m.right
	}
	var added []object
	for id, token := range []string{"<unk>", "<s>", "</s>"} {
		added = append(added, object{
			"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
		})
	}
	return json.MarshalIndent(object{
		"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added,
		"normalizer": object{"type": "Sequence", "normalizers": []object{
			{"type": "Prepend", "prepend": "▁"},
			{"type": "Replace", "pattern": object{"String": " "}, "content": "▁"},
		}},
		"pre_tokenizer": nil,
		"post_processor": object{
			"type":           "TemplateProcessing",
			"single":         []object{{"SpecialToken": object{"id": "<s>", "type_id": 0}}, {"Sequence": object{"id": "A", "type_id": 0}}},
			"pair":           []object{{"Sequence": object{"id": "A", "type_id": 0}}, {"Sequence": object{"id": "B", "type_id": 1}}},
			"special_tokens": object{"<s>": object{"id": "<s>", "ids": []int{llama2cBOS}, "tokens": []string{"<s>"}}},
		},
		"decoder": object{"type": "Sequence", "decoders": []object{
			{"type": "Replace", "pattern": object{"String": "▁"}, "content": " "},
			{"type": "ByteFallback"}, {"type": "Fuse"},
			{"type": "Strip", "content": " ", "start": 1, "stop": 0},
		}},
		"model": object{
			"type": "BPE", "dropout": nil, "unk_token": "<unk>", "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
			"fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": pairs,
		},
	}, "", " ")
}
