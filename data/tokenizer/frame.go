package tokenizer

import (
	"encoding/json"
	"fmt"
)

// frame is what a post-processor puts around a single text.
type frame struct{ before, after []int64 }

var postProcessors map[string]func(json.RawMessage) (frame, error)

func init() { // a row for sequences refers to the table
	postProcessors = map[string]func(json.RawMessage) (frame, error){
		"BertProcessing":     newClassFrame,
		"ByteLevel":          func(json.RawMessage) (frame, error) { return frame{}, nil }, // changes offsets only
		"RobertaProcessing":  newClassFrame,
		"Sequence":           newFrames,
		"TemplateProcessing": newTemplate,
	}
}

func newFrames(b json.RawMessage) (frame, error) {
	var c struct{ Processors []json.RawMessage }
	if err := json.Unmarshal(b, &c); err != nil {
		return frame{}, err
	}
	frames, err := parseAll(postProcessors, "post-processor", c.Processors)
	var out frame
	for _, f := range frames {
		out.before = append(append([]int64(nil), f.before...), out.before...)
		out.after = append(out.after, f.after...)
	}
	return out, err
}

// newClassFrame reads `"cls": ["[CLS]", 101], "sep": ["[SEP]", 102]`.
func newClassFrame(b json.RawMessage) (frame, error) {
	var c struct{ Cls, Sep []json.RawMessage }
	if err := json.Unmarshal(b, &c); err != nil {
		return frame{}, err
	}
	id := func(name string, pair []json.RawMessage) ([]int64, error) {
		var id int64
		if len(pair) != 2 || json.Unmarshal(pair[1], &id) != nil {
			return nil, fmt.Errorf("%q is no pair of token and id", name)
		}
		return []int64{id}, nil
	}
	var f frame
	var err error
	if f.before, err = id("cls", c.Cls); err != nil {
		return f, err
	}
	f.after, err = id("sep", c.Sep)
	return f, err
}

func newTemplate(b json.RawMessage) (frame, error) {
	var c struct {
		Single []struct {
			SpecialToken *struct{ ID string }
			Sequence     *struct{ ID string }
		}
		SpecialTokens map[string]struct{ IDs []int64 } `json:"special_tokens"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return frame{}, err
	}
	var f frame
	texts := 0
	for _, item := range c.Single {
		switch {
		case item.Sequence != nil:
			texts++
		case item.SpecialToken != nil:
			token, ok := c.SpecialTokens[item.SpecialToken.ID]
			if !ok {
				return f, fmt.Errorf("special token %q has no id", item.SpecialToken.ID)
			}
			if texts == 0 {
				f.before = append(f.before, token.IDs...)
			} else {
				f.after = append(f.after, token.IDs...)
			}
		}
	}
	if texts != 1 {
		return f, fmt.Errorf("the template for one text has %d places for it; want 1", texts)
	}
	return f, nil
}
