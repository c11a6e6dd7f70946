package data

import "fmt"

// document is a run of tokens that belong together.
type document struct {
	source string // "" for the only document of a file
	tokens []int64
	from   int // number of its first token, when others were cut off before
}

// cutting says how documents become samples.
type cutting struct {
	before, after []int64 // special tokens around every sample, part of its length
	length        int     // of a sample; 0 leaves documents whole
}

// cut makes samples of the documents and splits them in two. A single document is split at a token, several between
// documents, so that no sample has tokens of both parts.
func (c cutting) cut(docs []document, o Options) (train, heldOut []Sample, err error) {
	tokens := 0
	for _, d := range docs {
		tokens += len(d.tokens)
	}
	framed := len(c.before) + len(c.after)
	switch {
	case tokens == 0:
		return nil, nil, fmt.Errorf("it is empty; want at least %d tokens", max(2, c.length-framed))
	case c.length > 0 && c.length < framed+1 || c.length == 1:
		return nil, nil, fmt.Errorf("a sequence length of %d leaves no token to predict beside %d special ones; want %d and more",
			c.length, framed, max(2, framed+1))
	}
	first, last := docs, []document(nil)
	if o.HeldOut > 0 {
		first, last = split(docs, o.HeldOut)
	}
	if train = pick(c.samples(first), o.Samples); len(train) == 0 {
		return nil, nil, c.short(tokens, first, o.HeldOut, "to learn from")
	}
	if heldOut = pick(c.samples(last), o.HeldOutSamples); len(heldOut) == 0 && o.HeldOut > 0 {
		return nil, nil, c.short(tokens, last, o.HeldOut, "kept for reporting")
	}
	return train, heldOut, nil
}

func (c cutting) short(tokens int, part []document, heldOut float64, what string) error {
	n := 0
	for _, d := range part {
		n += len(d.tokens)
	}
	need := max(2, c.length) - len(c.before) - len(c.after)
	if heldOut == 0 {
		return fmt.Errorf("it has %d tokens, and a sample takes %d; want more data, or a sequence length of at most %d",
			tokens, need, n+len(c.before)+len(c.after))
	}
	return fmt.Errorf("it has %d tokens, of which %d are %s (held-out share %v), and a sample takes %d; want more data, "+
		"shorter sequences, or another held-out share", tokens, n, what, heldOut, need)
}

// split keeps the share at the end apart.
func split(docs []document, heldOut float64) (first, last []document) {
	if len(docs) > 1 {
		at := share(len(docs), heldOut)
		return docs[:at], docs[at:]
	}
	d := docs[0]
	at := int((1 - heldOut) * float64(len(d.tokens)))
	return []document{{d.source, d.tokens[:at], d.from}}, []document{{d.source, d.tokens[at:], d.from + at}}
}

// share returns how many of n things, at least 2, are to learn from when a share is held out: one is left on either side.
func share(n int, heldOut float64) int { return min(max(int((1-heldOut)*float64(n)), 1), n-1) }

// samples cuts every document. The only document of a file must fill a sample; of several, short ones are samples as
// they are, since texts that end are what the model knows.
func (c cutting) samples(docs []document) []Sample {
	var out []Sample
	for _, d := range docs {
		n := c.length - len(c.before) - len(c.after)
		if c.length == 0 || d.source != "" && len(d.tokens) < n {
			n = len(d.tokens)
		}
		for at := 0; n > 0 && at+n <= len(d.tokens); at += n {
			s := Sample{Tokens: make([]int64, 0, len(c.before)+n+len(c.after))}
			s.Tokens = append(append(append(s.Tokens, c.before...), d.tokens[at:at+n]...), c.after...)
			switch {
			case d.source == "":
				s.Source = fmt.Sprintf("sample from token %d", d.from+at)
			case d.from+at == 0:
				s.Source = d.source
			default:
				s.Source = fmt.Sprintf("%s from token %d", d.source, d.from+at)
			}
			if len(s.Tokens) >= 2 {
				out = append(out, s)
			}
		}
	}
	return out
}

// pick takes n samples evenly, all when n is 0 or there are no more.
func pick[T any](all []T, n int) []T {
	if n == 0 || len(all) <= n {
		return all
	}
	out := make([]T, n)
	for i := range out {
		out[i] = all[i*len(all)/n]
	}
	return out
}
